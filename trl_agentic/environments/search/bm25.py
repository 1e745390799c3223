"""Retrieval by words, on this machine."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .retrieval import Passage, passage_text


if TYPE_CHECKING:
    from datasets import Dataset


class BM25Retriever:
    """BM25 over a corpus, with the library `bm25s`.

    Equal scores are ordered by the passages' place in the corpus, so that results are the same everywhere. Words that
    no passage has count for nothing; a query without any other finds nothing.

    Args:
        passages (`Sequence[str]` or `datasets.Dataset`): the corpus; a data set as from [`load_corpus`].
        index (`str` or `Path`, *optional*): folder of the index. It is built there on first use and read from disk,
            memory-mapped, from then on. With `None` it is built in memory.
        k1 (`float`, *optional*, defaults to `0.9`): how soon further occurrences of a word stop to count.
        b (`float`, *optional*, defaults to `0.4`): how much long passages are held back.

    Raises:
        ImportError: the extra `search` is not installed.
        ValueError: the corpus is empty, or `index` was made from another corpus or with another `k1` or `b`.
    """

    def __init__(
        self,
        passages: Sequence[str] | Dataset,
        index: str | Path | None = None,
        k1: float = 0.9,
        b: float = 0.4,
    ):
        try:
            import bm25s
        except ImportError as error:
            raise ImportError("BM25Retriever needs `bm25s`: pip install trl-agentic[search]") from error
        if len(passages) == 0:
            raise ValueError("BM25Retriever: the corpus is empty; it must have at least one passage.")
        self._passages = passages
        self._bm25s = bm25s
        if index is None:
            self._index = _build(passages, k1, b, show_progress=False)
            return
        made_from = f"{_fingerprint(passages)} k1={k1} b={b}\n"
        folder = Path(index)
        label = folder / "made_from.txt"
        if not folder.exists():
            folder.parent.mkdir(parents=True, exist_ok=True)
            building = Path(tempfile.mkdtemp(dir=folder.parent, prefix=folder.name))
            _build(passages, k1, b, show_progress=True).save(building, show_progress=False)
            (building / label.name).write_text(made_from)
            _move(building, folder)
        if not label.is_file() or label.read_text() != made_from:
            raise ValueError(
                f"BM25Retriever: the folder {folder} holds no index of this corpus with k1={k1} and b={b}. Remove it, "
                "or name another one in `index`."
            )
        self._index = bm25s.BM25.load(folder, mmap=True, show_progress=False)

    def search(self, queries: Sequence[str], k: int) -> list[list[Passage]]:
        """Finds passages. See [`Retriever.search`]."""
        return [self._search(query, k) for query in queries]

    def _search(self, query: str, k: int) -> list[Passage]:
        (words,) = self._bm25s.tokenize([query], return_ids=False, show_progress=False)
        ids = self._index.get_tokens_ids(words)
        if not ids:
            return []
        scores = self._index.get_scores_from_ids(ids)
        k = min(k, len(scores))
        least = max(np.partition(scores, -k)[-k], np.nextafter(np.float32(0), np.float32(1)))
        candidates = np.flatnonzero(scores >= least)
        best = candidates[np.argsort(-scores[candidates], kind="stable")][:k].tolist()
        return [Passage(passage_text(self._passages[i]), float(scores[i])) for i in best]


def _build(passages: Sequence[str] | Dataset, k1: float, b: float, show_progress: bool) -> Any:
    import bm25s

    tokens = bm25s.tokenize([passage_text(row) for row in passages], show_progress=show_progress)
    index = bm25s.BM25(k1=k1, b=b)
    index.index(tokens, show_progress=show_progress)
    return index


def _fingerprint(passages: Sequence[str] | Dataset) -> str:
    """Identifies a corpus by its size and a sample of up to 1,000 passages."""
    digest = hashlib.sha256()
    for place in range(0, len(passages), max(1, len(passages) // 1000)):
        digest.update(passage_text(passages[place]).encode("utf-8", "replace") + b"\0")
    return f"{len(passages)} passages, {digest.hexdigest()[:16]}"


def _move(building: Path, folder: Path) -> None:
    """Puts a finished index in its place, where another process may have put the same meanwhile."""
    try:
        building.rename(folder)
    except OSError:
        if not folder.is_dir():
            raise
        shutil.rmtree(building)
