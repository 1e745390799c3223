"""Retrieval by embeddings, on this machine."""

from __future__ import annotations

import os
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm.auto import trange

from .retrieval import Passage, passage_text


if TYPE_CHECKING:
    from datasets import Dataset

_CHUNK = 8192


class DenseRetriever:
    """Nearest passages by the inner product of embeddings: a `sentence-transformers` model and an exact FAISS index.

    Args:
        passages (`Sequence[str]` or `datasets.Dataset`): the corpus; a data set as from [`load_corpus`].
        index (`str` or `Path`): file of the FAISS index. One that exists is read memory-mapped, and must be of this
            corpus and model (published ones will do); else it is built and written there, which takes 4 bytes a
            dimension and passage of memory.
        model (`str`, *optional*, defaults to `"intfloat/e5-base-v2"`): the model, a name on the Hub or a folder.
        query_prefix (`str`, *optional*, defaults to `"query: "`): put before queries, as E5 wants it.
        passage_prefix (`str`, *optional*, defaults to `"passage: "`): put before passages when the index is built.
        device (`str`, *optional*): where the model runs; a GPU if there is one.

    Raises:
        ImportError: the extra `dense` is not installed.
        ValueError: the corpus is empty, or the index is not of this corpus or model.
    """

    def __init__(
        self,
        passages: Sequence[str] | Dataset,
        index: str | Path,
        model: str = "intfloat/e5-base-v2",
        query_prefix: str = "query: ",
        passage_prefix: str = "passage: ",
        device: str | None = None,
    ):
        try:
            import faiss
            from sentence_transformers import SentenceTransformer
        except ImportError as error:
            raise ImportError(
                "DenseRetriever needs `faiss-cpu` and `sentence-transformers`: pip install trl-agentic[dense]"
            ) from error
        if len(passages) == 0:
            raise ValueError("DenseRetriever: the corpus is empty; it must have at least one passage.")
        self._passages = passages
        self._query_prefix = query_prefix
        self._model = SentenceTransformer(model, device=device)
        self._lock = threading.Lock()
        path = Path(index)
        if not path.exists():
            built = faiss.IndexFlatIP(self._model.get_embedding_dimension())
            for start in trange(0, len(passages), _CHUNK, desc="Embedding the corpus"):
                chunk = [passage_text(passages[i]) for i in range(start, min(start + _CHUNK, len(passages)))]
                built.add(self._embed(passage_prefix, chunk))
            path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=path.parent) as folder:  # others may build it, too
                faiss.write_index(built, f"{folder}/index")
                os.replace(f"{folder}/index", path)
        try:
            self._index = faiss.read_index(str(path), faiss.IO_FLAG_MMAP)
        except RuntimeError as error:
            raise ValueError(f"DenseRetriever: {path} is no index of FAISS, or not a whole one. Remove it.") from error
        for what, has, needs in (
            ("passages", self._index.ntotal, len(passages)),
            ("dimensions", self._index.d, self._model.get_embedding_dimension()),
        ):
            if has != needs:
                raise ValueError(
                    f"DenseRetriever: the index {path} has {has} {what}, but the corpus or model has {needs}. Remove "
                    "the file, or name another one in `index`."
                )

    def search(self, queries: Sequence[str], k: int) -> list[list[Passage]]:
        """Finds passages. See [`Retriever.search`]."""
        if not queries:
            return []
        with self._lock:  # the model's tokenizer is not to be used by two threads
            scores, places = self._index.search(self._embed(self._query_prefix, queries), min(k, len(self._passages)))
        return [
            [Passage(passage_text(self._passages[int(i)]), float(score)) for i, score in zip(*row, strict=True)]
            for row in zip(places, scores, strict=True)
        ]

    def _embed(self, prefix: str, texts: Sequence[str]):
        return self._model.encode(
            [prefix + text for text in texts],
            normalize_embeddings=True,
            convert_to_numpy=True,
            show_progress_bar=False,
        )
