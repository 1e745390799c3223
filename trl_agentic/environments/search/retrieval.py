"""What a retriever is, and where the passages come from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, runtime_checkable


if TYPE_CHECKING:
    from datasets import Dataset


@dataclass(frozen=True, slots=True)
class Passage:
    """A passage that was found.

    Attributes:
        contents: its text.
        score: how well it fits the query, comparable within one retriever only.
    """

    contents: str
    score: float


@runtime_checkable
class Retriever(Protocol):
    """What [`SearchEnv`] asks of a retriever. Several threads may call it at the same time."""

    def search(self, queries: Sequence[str], k: int) -> list[list[Passage]]:
        """Finds passages.

        Args:
            queries: what to search for.
            k: the most passages for each query.

        Returns:
            For each query up to `k` passages, the best first.
        """
        ...


def load_corpus(source: str | Path) -> Dataset:
    """Passages, memory-mapped.

    Args:
        source (`str` or `Path`): a JSONL or Parquet file, or the id of a data set on the Hub (its split `train`). Its
            rows have a column `contents`; or `text`, with `title` put before it if there is one.

    Returns:
        `datasets.Dataset`: one column, `contents`.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: there is no passage, a column is missing, or a passage is no text. The message names the source.
    """
    table = load_table(source, "train")
    names = table.column_names
    if "contents" not in names:
        if "text" not in names:
            raise ValueError(
                f"The corpus {source} has neither a column `contents` nor a column `text`, only {', '.join(names)}: "
                "rename the one that holds the passages."
            )
        table = table.map(_contents, remove_columns=names, desc="Reading the corpus")
    table = table.select_columns(["contents"])
    if len(table) == 0:
        raise ValueError(f"The corpus {source} is empty: it must have at least one passage.")
    kind = table.features["contents"].dtype
    if kind not in ("string", "large_string"):
        raise ValueError(f"The column `contents` of the corpus {source} must hold text, but its type is {kind}.")
    return table


def passage_text(row: str | dict[str, str]) -> str:
    """The text of a passage, given as it is or as a row of [`load_corpus`]."""
    return row if isinstance(row, str) else row["contents"]


def load_table(source: str | Path, split: str, config: str | None = None) -> Dataset:
    """Rows of a JSONL or Parquet file, or of a split of a data set on the Hub.

    Raises:
        FileNotFoundError: the file does not exist.
    """
    from datasets import load_dataset

    for kind, suffixes in (("json", (".jsonl", ".json", ".jsonl.gz")), ("parquet", (".parquet",))):
        if str(source).endswith(suffixes):
            if not Path(source).is_file():
                raise FileNotFoundError(f"There is no file {source}.")
            if Path(source).stat().st_size == 0:
                raise ValueError(f"The file {source} is empty.")
            return load_dataset(kind, data_files=str(source), split="train")
    return load_dataset(str(source), config, split=split)


def _contents(row: dict[str, str]) -> dict[str, str]:
    return {"contents": f'"{row["title"]}"\n{row["text"]}' if row.get("title") else row["text"]}
