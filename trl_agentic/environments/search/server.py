"""A retrieval server in the form of Search-R1's, for [`HTTPRetriever`] and others that speak it."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from .bm25 import BM25Retriever
from .dense import DenseRetriever
from .env import world_retriever
from .retrieval import Retriever, load_corpus


class RetrievalServer(ThreadingHTTPServer):
    """Answers `POST /retrieve` with a JSON body `{"queries": [...], "topk": 3, "return_scores": true}`.

    The answer is `{"result": [[{"document": {"contents": ...}, "score": ...}, ...], ...]}`, a list for each query;
    with `return_scores` false or absent, the documents stand there without scores. A body of another form is answered
    with status 400 and `{"error": ...}`.

    Args:
        retriever ([`Retriever`]): what searches.
        host (`str`, *optional*, defaults to `"127.0.0.1"`): address to listen at.
        port (`int`, *optional*, defaults to `8000`): port to listen at; 0 for any free one.
        topk (`int`, *optional*, defaults to `3`): passages for each query where the request does not say.

    Raises:
        OSError: the port is taken.
    """

    daemon_threads = True

    def __init__(self, retriever: Retriever, host: str = "127.0.0.1", port: int = 8000, topk: int = 3):
        super().__init__((host, port), _Handler)
        self.retriever = retriever
        self.topk = topk

    @property
    def url(self) -> str:
        """Where to post."""
        return f"http://{self.server_address[0]!s}:{self.server_address[1]}/retrieve"

    def answer(self, request: Any) -> dict[str, Any]:
        """The answer to a decoded request.

        Raises:
            ValueError: the request has another form.
        """
        if not isinstance(request, dict):
            raise ValueError("the body must be a JSON object")
        queries, topk = request.get("queries"), request.get("topk")
        if not isinstance(queries, list) or not all(isinstance(query, str) for query in queries):
            raise ValueError("`queries` must be a list of texts")
        topk = self.topk if topk is None else topk
        if not isinstance(topk, int) or isinstance(topk, bool) or topk < 1:
            raise ValueError(f"`topk` must be a number from 1, got {topk!r}")
        found = self.retriever.search(queries, topk)
        if not request.get("return_scores"):
            return {"result": [[{"contents": passage.contents} for passage in passages] for passages in found]}
        return {
            "result": [
                [{"document": {"contents": passage.contents}, "score": passage.score} for passage in passages]
                for passages in found
            ]
        }


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: RetrievalServer

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.path != "/retrieve":
            self._reply(404, {"error": f"there is nothing at {self.path}: post to /retrieve"})
            return
        try:
            answer = self.server.answer(json.loads(body))
        except ValueError as error:  # what is no JSON, too
            self._reply(400, {"error": str(error)})
            return
        self._reply(200, answer)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """One line a request would be all that one sees."""

    def _reply(self, status: int, answer: dict[str, Any]) -> None:
        body = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def build_parser(prog: str | None = None) -> argparse.ArgumentParser:
    """The arguments of the command."""
    parser = argparse.ArgumentParser(
        prog=prog, description="Serves a retriever over HTTP, as Search-R1's server does."
    )
    parser.add_argument("--corpus", required=True, help="JSONL or Parquet file, id on the Hub, or `world`")
    parser.add_argument("--retriever", choices=("bm25", "dense"), default="bm25", help="by words or by embeddings")
    parser.add_argument("--index", help="the index: a folder (bm25) or a FAISS file (dense); built if it is not there")
    parser.add_argument("--model", default="intfloat/e5-base-v2", help="embedding model (dense)")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at")
    parser.add_argument("--port", type=int, default=8000, help="port to listen at")
    parser.add_argument("--topk", type=int, default=3, help="passages for each query where a request does not say")
    return parser


def build_retriever(arguments: argparse.Namespace) -> Retriever:
    """The retriever that the arguments ask for.

    Raises:
        ValueError: `index` is missing.
        Exception: what [`load_corpus`] and the retriever raise.
    """
    if arguments.corpus == "world" and arguments.retriever == "bm25":
        return world_retriever()
    if arguments.index is None:
        raise ValueError("`--index` is missing: say where the index of the corpus is, or shall be built.")
    corpus = load_corpus(arguments.corpus)
    if arguments.retriever == "dense":
        return DenseRetriever(corpus, arguments.index, arguments.model)
    return BM25Retriever(corpus, arguments.index)


def main(argv: Sequence[str] | None = None) -> None:
    """Serves until it is interrupted.

    Args:
        argv (`Sequence[str]`, *optional*): arguments, as [`build_parser`] reads them; those of the process if `None`.
    """
    parser = build_parser("trl-agentic retriever")
    arguments = parser.parse_args(argv)
    try:
        retriever = build_retriever(arguments)
    except (ImportError, OSError, ValueError) as error:
        parser.error(str(error))
    with RetrievalServer(retriever, arguments.host, arguments.port, arguments.topk) as server:
        print(f"Serving {arguments.corpus} at {server.url}", flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print("Stopped.")


if __name__ == "__main__":
    main()
