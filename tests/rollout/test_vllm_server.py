"""A vLLM server that breaks off a request: nothing is sampled before it has its weights again."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from tests.waiting import wait_until
from trl_agentic.rollout.engines import Request, Sample, Sampling, VLLMServerEngine


class Server(ThreadingHTTPServer):
    """Speaks as much of vLLM's protocol as the engine hears. `dies` requests are broken off, so many `together`, then
    it is down for `down` health checks; or `busy` requests are answered with 503, or all are aborted."""

    def __init__(self, dies: int = 0, down: int = 0, together: int = 1, busy: int = 0, aborts: bool = False):
        super().__init__(("127.0.0.1", 0), Handler)
        self.busy, self.finish = busy, "abort" if aborts else "stop"
        self.together = threading.Barrier(together, timeout=30)
        self.dies, self.down, self.events, self.lock = dies, down, [], threading.Lock()
        self.url = f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        with self.server.lock:
            self.server.down -= 1
            up = self.server.down < 0
        self.send_response(200 if up else 503)
        self.end_headers()

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            self.server.dies -= 1
            self.server.busy -= 1
            broken, busy = self.server.dies >= 0, self.server.busy >= 0
            self.server.events.append("broken off" if broken else "busy" if busy else "sampled")
        if busy:
            self.send_response(503)
            self.send_header("Content-Length", "4")
            self.end_headers()
            self.wfile.write(b"busy")
            return
        if broken:
            self.server.together.wait()
            self.close_connection = True
            self.connection.close()
            return
        choice: dict[str, Any] = {"token_ids": [body["seed"], 2], "finish_reason": self.server.finish}
        choice["logprobs"] = {"token_logprobs": [-1.0, -1.0]}
        answer = json.dumps({"choices": [choice]}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def serve() -> Iterator[Any]:
    servers = []

    def start(**options: int) -> Server:
        servers.append(Server(**options))
        threading.Thread(target=servers[-1].serve_forever, daemon=True).start()
        return servers[-1]

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def sample(server: Server, count: int = 1, **options: Any) -> list[Sample | Exception]:
    engine = VLLMServerEngine([server.url], "model", [2], Sampling(), **options)
    answers: list[Any] = [None] * count
    done = threading.Semaphore(0)

    def take(i: int, answer: Sample | Exception) -> None:
        answers[i] = answer
        done.release()

    for i in range(count):
        engine.submit(Request(0, [5], 3, seed=i), lambda answer, i=i: take(i, answer))
    for _ in range(count):
        assert done.acquire(timeout=30)
    engine.close()
    return answers


def test_weights_come_before_the_next_token(serve: Any):
    server = serve(dies=1, down=2)
    [answer] = sample(server, on_return=lambda url: server.events.append(f"weights to {url}"))
    assert isinstance(answer, Sample) and answer.ids == [0, 2]
    assert server.events == ["broken off", f"weights to {server.url}", "sampled"]


def test_several_requests_that_break_off_together_wait_for_the_same_weights(serve: Any):
    server = serve(dies=4, down=1, together=4)
    answers = sample(server, count=4, on_return=lambda url: server.events.append("weights"))
    assert [answer.ids[0] for answer in answers] == [0, 1, 2, 3]
    assert server.events == ["broken off"] * 4 + ["weights"] + ["sampled"] * 4


def test_without_someone_to_send_weights_the_rollouts_end(serve: Any):
    server = serve(dies=1)
    [error] = sample(server)
    assert isinstance(error, ConnectionError) and "broke off a request" in str(error)
    assert "resume_from_checkpoint" in str(error) and server.events == ["broken off"]


def test_patience_has_an_end(serve: Any):
    server = serve(dies=1, down=99)
    [error] = sample(server, patience=0.1, on_return=lambda url: server.events.append("weights"))
    assert "did not answer again within 0.1 seconds (`vllm_server_timeout`)" in str(error)
    assert server.events == ["broken off"]


def test_a_server_that_breaks_off_everything(serve: Any):
    server = serve(dies=99)
    [error] = sample(server, attempts=3, on_return=lambda url: None)
    assert "broke off a request" in str(error) and server.events == ["broken off"] * 3


def test_connections_that_break_off_now_and_then_are_no_end(serve: Any):
    """A server closes a connection that was idle: nothing is lost."""
    server = serve()
    engine = VLLMServerEngine([server.url], "model", [2], Sampling(), attempts=2, on_return=lambda url: None)
    done: list[Sample | Exception] = []
    for i in range(5):
        server.dies = 1
        engine.submit(Request(0, [5], 3, seed=i), done.append)
        wait_until(lambda i=i: len(done) == i + 1)
    engine.close()
    assert all(isinstance(answer, Sample) for answer in done)
    assert server.events == ["broken off", "sampled"] * 5


def test_new_requests_wait_for_the_weights_too(serve: Any):
    server = serve(dies=1)
    begun, sent = threading.Event(), threading.Event()

    def send(url: str) -> None:
        begun.set()
        assert sent.wait(30)
        server.events.append("weights")

    engine = VLLMServerEngine([server.url], "model", [2], Sampling(), on_return=send)
    done: list[Sample | Exception] = []
    engine.submit(Request(0, [5], 3, seed=0), done.append)
    assert begun.wait(30)
    engine.submit(Request(1, [5], 3, seed=1), done.append)
    time.sleep(0.2)  # time enough to be sampled
    assert server.events == ["broken off"] and not done
    sent.set()
    wait_until(lambda: len(done) == 2)
    engine.close()
    assert server.events == ["broken off", "weights", "sampled", "sampled"]


def test_a_turn_that_was_aborted_is_an_error(serve: Any):
    server = serve(aborts=True)
    [error] = sample(server)
    assert isinstance(error, RuntimeError) and "abort" in str(error)


def test_weights_that_cannot_be_sent_end_the_rollouts(serve: Any):
    def fail(url: str) -> None:
        raise RuntimeError("no weights")

    [error] = sample(serve(dies=1), on_return=fail)
    assert "no weights" in str(error)


def test_a_busy_server_is_asked_again_and_not_for_ever(serve: Any):
    server = serve(busy=2)
    [answer] = sample(server)
    assert isinstance(answer, Sample) and server.events == ["busy", "busy", "sampled"]
    server = serve(busy=99)
    [error] = sample(server, attempts=2)
    assert "answered 503: busy" in str(error) and server.events == ["busy"] * 2
