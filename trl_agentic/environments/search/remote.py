"""Retrieval from a server over HTTP, in the form of Search-R1's retrieval server."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .retrieval import Passage


@dataclass(eq=False, slots=True)
class _Waiting:
    """The queries of one caller until they are answered."""

    queries: list[str]
    k: int
    passages: list[list[Passage]] | None = None
    error: str | None = None


class HTTPRetriever:
    """Asks a server: `POST {"queries": [...], "topk": k, "return_scores": true}`, answered by
    `{"result": [[{"document": {"contents": ...}, "score": ...}, ...], ...]}`, a list for each query.

    Threads share an instance. One request is under way at a time, and the queries of all threads that wait meanwhile
    go out together in the next.

    Args:
        url (`str`, *optional*, defaults to `"http://127.0.0.1:8000/retrieve"`): where to post.
        timeout (`float`, *optional*, defaults to `60.0`): seconds to wait for a connection, and for an answer.
        retries (`int`, *optional*, defaults to `4`): how often a request that fails (no connection, no answer in time,
            or status 429, 500, 502, 503, 504) is sent again, after 0.5, 1, 2, ... seconds.

    Raises:
        ImportError: the extra `search` is not installed.
    """

    def __init__(self, url: str = "http://127.0.0.1:8000/retrieve", timeout: float = 60.0, retries: int = 4):
        try:
            import requests
            from requests.adapters import HTTPAdapter
            from urllib3.util import Retry
        except ImportError as error:
            raise ImportError("HTTPRetriever needs `requests`: pip install trl-agentic[search]") from error
        self.url = url
        self.timeout = timeout
        again = Retry(
            total=retries, backoff_factor=0.5, status_forcelist=(429, 500, 502, 503, 504), allowed_methods=None
        )
        self._session = requests.Session()
        for scheme in ("http://", "https://"):
            self._session.mount(scheme, HTTPAdapter(max_retries=again))
        self._failures = requests.RequestException
        self._waiting: list[_Waiting] = []
        self._adding, self._sending = threading.Lock(), threading.Lock()

    def search(self, queries: Sequence[str], k: int) -> list[list[Passage]]:
        """Finds passages. See [`Retriever.search`].

        Raises:
            ConnectionError: the server cannot be reached, refuses, or answers in another form. The message names it.
        """
        if not queries:
            return []
        mine = _Waiting(list(queries), k)
        with self._adding:
            self._waiting.append(mine)
        with self._sending:
            if mine.passages is None and mine.error is None:
                with self._adding:
                    batch, self._waiting = self._waiting, []
                self._send(batch)
        if mine.passages is None:
            raise ConnectionError(mine.error)
        return mine.passages

    def _send(self, batch: list[_Waiting]) -> None:
        """One request for all; an error is an error for all."""
        queries = [query for waiting in batch for query in waiting.queries]
        body: dict[str, Any] = {"queries": queries, "topk": max(waiting.k for waiting in batch), "return_scores": True}
        try:
            response = self._session.post(self.url, json=body, timeout=self.timeout)
            response.raise_for_status()
            found = iter(_passages(response.json(), len(queries)))
        except (self._failures, ValueError) as error:
            for waiting in batch:
                waiting.error = (
                    f"The retriever at {self.url} does not serve: {error}. Is it running (`trl-agentic retriever`), "
                    "and is this its address?"
                )
            return
        for waiting in batch:
            waiting.passages = [next(found)[: waiting.k] for _ in waiting.queries]


def _passages(answer: Any, count: int) -> list[list[Passage]]:
    """The passages in an answer to `count` queries.

    Raises:
        ValueError: the answer has another form.
    """
    try:
        found = [
            [Passage(str(item["document"]["contents"]), float(item["score"])) for item in items]
            for items in answer["result"]
        ]
    except (KeyError, TypeError) as error:
        raise ValueError(f"its answer is not of the expected form ({type(error).__name__}: {error})") from error
    if len(found) != count:
        raise ValueError(f"it answers {len(found)} of {count} queries")
    return found
