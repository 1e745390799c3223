"""vLLM server engine with interrupted requests: they are sent again only after the server has been checked."""

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
    """Server with the part of vLLM's protocol that the engine uses.

    The first `interrupts` requests are interrupted, as soon as `together` of them have arrived. Then `down` health
    checks fail. Alternatively, `busy` requests are answered with 503, or every request is aborted.
    """

    def __init__(self, interrupts: int = 0, down: int = 0, together: int = 1, busy: int = 0, aborts: bool = False):
        super().__init__(("127.0.0.1", 0), Handler)
        self.busy, self.finish = busy, "abort" if aborts else "stop"
        self.together = threading.Barrier(together, timeout=30)
        self.interrupts, self.down, self.events, self.lock = interrupts, down, [], threading.Lock()
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
            self.server.interrupts -= 1
            self.server.busy -= 1
            interrupted, busy = self.server.interrupts >= 0, self.server.busy >= 0
            self.server.events.append("interrupted" if interrupted else "busy" if busy else "sampled")
        if busy:
            self.send_response(503)
            self.send_header("Content-Length", "4")
            self.end_headers()
            self.wfile.write(b"busy")
            return
        if interrupted:
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


def test_an_interrupted_request_is_sent_again_after_the_check(serve: Any):
    server = serve(interrupts=1, down=2)
    [answer] = sample(server, check=lambda url: server.events.append(f"check of {url}"))
    assert isinstance(answer, Sample) and answer.ids == [0, 2]
    assert server.events == ["interrupted", f"check of {server.url}", "sampled"]


def test_requests_that_are_interrupted_together_wait_for_one_check(serve: Any):
    server = serve(interrupts=4, down=1, together=4)
    answers = sample(server, count=4, check=lambda url: server.events.append("check"))
    assert [answer.ids[0] for answer in answers] == [0, 1, 2, 3]
    assert server.events == ["interrupted"] * 4 + ["check"] + ["sampled"] * 4


def test_without_a_check_an_interrupted_request_ends_the_rollouts(serve: Any):
    server = serve(interrupts=1)
    [error] = sample(server)
    assert isinstance(error, ConnectionError) and "interrupted a request" in str(error)
    assert "resume_from_checkpoint" in str(error) and server.events == ["interrupted"]


def test_a_server_that_stays_down_ends_the_rollouts(serve: Any):
    server = serve(interrupts=1, down=99)
    [error] = sample(server, timeout=0.1, check=lambda url: server.events.append("check"))
    assert isinstance(error, ConnectionError)
    assert "stopped answering for 0.1 seconds (`vllm_server_timeout`)" in str(error)
    assert "resume_from_checkpoint" in str(error) and server.events == ["interrupted"]


def test_a_server_that_interrupts_every_request(serve: Any):
    server = serve(interrupts=99)
    [error] = sample(server, attempts=3, check=lambda url: None)
    assert isinstance(error, ConnectionError)
    assert "interrupted a request" in str(error) and server.events == ["interrupted"] * 3


def test_each_request_has_its_own_attempts(serve: Any):
    """A server closes idle connections during a long run. These interruptions are not added up."""
    server = serve()
    engine = VLLMServerEngine([server.url], "model", [2], Sampling(), attempts=2, check=lambda url: None)
    done: list[Sample | Exception] = []
    for i in range(5):
        server.interrupts = 1
        engine.submit(Request(0, [5], 3, seed=i), done.append)
        wait_until(lambda i=i: len(done) == i + 1)
    engine.close()
    assert all(isinstance(answer, Sample) for answer in done)
    assert server.events == ["interrupted", "sampled"] * 5


def test_new_requests_wait_for_the_check_too(serve: Any):
    server = serve(interrupts=1)
    begun, may_end = threading.Event(), threading.Event()

    def check(url: str) -> None:
        begun.set()
        assert may_end.wait(30)
        server.events.append("check")

    engine = VLLMServerEngine([server.url], "model", [2], Sampling(), check=check)
    done: list[Sample | Exception] = []
    engine.submit(Request(0, [5], 3, seed=0), done.append)
    assert begun.wait(30)
    engine.submit(Request(1, [5], 3, seed=1), done.append)
    time.sleep(0.2)  # enough time to be sampled
    assert server.events == ["interrupted"] and not done
    may_end.set()
    wait_until(lambda: len(done) == 2)
    engine.close()
    assert server.events == ["interrupted", "check", "sampled", "sampled"]


def test_an_aborted_request_is_an_error(serve: Any):
    server = serve(aborts=True)
    [error] = sample(server)
    assert isinstance(error, RuntimeError) and "abort" in str(error)


def test_a_server_that_was_restarted_ends_the_rollouts(serve: Any):
    """None of the requests that the restart interrupted is sent again."""

    def check(url: str) -> None:
        raise RuntimeError("restarted")

    server = serve(interrupts=3, together=3)
    errors = sample(server, count=3, check=check)
    assert [str(error) for error in errors] == ["restarted"] * 3
    assert server.events == ["interrupted"] * 3


def test_a_request_is_sent_again_to_a_busy_server_a_limited_number_of_times(serve: Any):
    server = serve(busy=2)
    [answer] = sample(server)
    assert isinstance(answer, Sample) and server.events == ["busy", "busy", "sampled"]
    server = serve(busy=99)
    [error] = sample(server, attempts=2)
    assert "answered 503: busy" in str(error) and server.events == ["busy"] * 2
