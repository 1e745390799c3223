"""Published question-answering data sets, as rows of the environment."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .retrieval import load_table


@dataclass(frozen=True, slots=True)
class _Source:
    """Where a data set is on the Hub: its splits by our names."""

    repository: str
    config: str | None
    splits: dict[str, str]


def _flashrag(config: str, **splits: str) -> _Source:
    return _Source("RUC-NLPIR/FlashRAG_datasets", config, splits)


# The collection, and in it the splits, that papers on search agents train and evaluate on.
DATASETS = {
    "hotpotqa": _flashrag("hotpotqa", train="train", test="dev"),
    "2wikimultihopqa": _flashrag("2wikimultihopqa", train="train", test="dev"),
    "musique": _flashrag("musique", train="train", test="dev"),
    "bamboogle": _flashrag("bamboogle", test="test"),
    "nq": _flashrag("nq", train="train", test="test"),
    "triviaqa": _flashrag("triviaqa", train="train", test="test"),
    "popqa": _flashrag("popqa", test="test"),
}
"""The data sets that go by a name, and which split of each is which."""


def load_questions(source: str | Path, split: str) -> list[dict[str, Any]]:
    """Questions with their accepted answers.

    Args:
        source (`str` or `Path`): `"hotpotqa"`, `"2wikimultihopqa"`, `"musique"`, `"bamboogle"`, `"nq"`, `"triviaqa"`
            or `"popqa"`, downloaded from the Hub; a JSONL or Parquet file; or the id of another data set on the Hub.
            Its rows have the question in a column `question` (or `Question`), and the accepted answers in
            `ground_truth`, `golden_answers`, `possible_answers` or `answer` (or `Answer`): a text, a list, a list
            written as JSON, or TriviaQA's dictionary with `value` and `aliases`. Those in a column
            `answer_aliases` count, too.
        split (`str`): `"train"` or `"test"`; a file is one split. Of a data set by name, the split that papers
            evaluate on is the test split (the development split of HotpotQA, 2WikiMultihopQA and MuSiQue).

    Returns:
        `list[dict]`: `question`, `ground_truth` (`list[str]`) and `task_type` (the name of the source) of each row.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the data set has no such split, a column is missing, there is no row, or a row has no question or
            no answer. The message names the source, and the row.
    """
    source = str(source)
    if source in DATASETS:
        known = DATASETS[source]
        if split not in known.splits:
            raise ValueError(f"The data set {source} has no split {split!r}, only {', '.join(known.splits)}.")
        table = load_table(known.repository, known.splits[split], known.config)
    else:
        table = load_table(source, split)
    question, answers = _columns(source, table.column_names)
    if len(table) == 0:
        raise ValueError(f"{source} is empty: it must have at least one question.")
    rows = []
    for number, record in enumerate(table):
        accepted = _accepted(record[answers]) + _accepted(record.get("answer_aliases"))
        accepted = list(dict.fromkeys(text.strip() for text in accepted if text.strip()))
        if not record[question] or not record[question].strip():
            raise ValueError(f"Row {number} of {source} has no question: its column `{question}` is empty.")
        if not accepted:
            raise ValueError(f"Row {number} of {source} has no answer: its column `{answers}` is empty.")
        rows.append({"question": record[question].strip(), "ground_truth": accepted, "task_type": Path(source).stem})
    return rows


def _columns(source: str, names: list[str]) -> tuple[str, str]:
    found = []
    for candidates in (
        ("question", "Question"),
        ("ground_truth", "golden_answers", "possible_answers", "answer", "Answer"),
    ):
        present = [name for name in candidates if name in names]
        if not present:
            raise ValueError(
                f"{source} has none of the columns {', '.join(candidates)}, only {', '.join(names)}: rename the one "
                f"that holds the {candidates[0].replace('_', ' ')}."
            )
        found.append(present[0])
    return found[0], found[1]


def _accepted(value: Any) -> list[str]:
    """The answers in a cell, whatever form the data set gives them."""
    if value is None:
        return []
    if isinstance(value, dict):
        return [*_accepted(value.get("value")), *_accepted(value.get("aliases"))]
    if isinstance(value, str) and value.startswith("["):
        try:
            value = json.loads(value)
        except json.JSONDecodeError:
            return [value]
    return [value] if isinstance(value, str) else [str(item) for item in value]
