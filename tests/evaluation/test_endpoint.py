"""Policy behind a chat-completions endpoint, tested against a server on the loopback interface."""

from __future__ import annotations

import json
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from tests.toys import Corridor
from trl_agentic.evaluation.endpoint import Endpoint
from trl_agentic.evaluation.players import TextPlayer
from trl_agentic.rollout.engines import Sampling
from trl_agentic.rollout.loop import Episode
from trl_agentic.types import StopReason


Reply = Callable[[dict[str, Any]], tuple[int, Any]]


class Server:
    """Server that answers each request with `reply(body)`, a status and a JSON value, and keeps the requests."""

    def __init__(self) -> None:
        self.requests: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.retry_after: list[str] = []  # of the next answers
        self.reply: Reply = lambda body: (200, completion("go"))
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                outer.requests.append(body | {"path": self.path})
                outer.headers.append({name.lower(): value for name, value in self.headers.items()})
                status, value = outer.reply(body)
                data = json.dumps(value).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                if outer.retry_after:
                    self.send_header("Retry-After", outer.retry_after.pop(0))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *args: Any) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"


def completion(text: str, tokens: int = 5, finish_reason: str = "stop") -> dict[str, Any]:
    message = {"role": "assistant", "content": text}
    return {
        "choices": [{"message": message, "finish_reason": finish_reason}],
        "usage": {"completion_tokens": tokens},
    }


@pytest.fixture(autouse=True)
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds that the client would wait between its attempts. The test does not wait."""
    asked: list[float] = []
    real = time.sleep

    def sleep(seconds: float) -> None:
        caller = sys._getframe(1).f_globals["__name__"]
        (asked.append if caller.startswith("openai.") else real)(seconds)

    monkeypatch.setattr(time, "sleep", sleep)
    return asked


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    thread = threading.Thread(target=server.http.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.http.shutdown()
    thread.join()
    server.http.server_close()


def play(server: Server, count: int = 1, length: int = 2, max_turns: int = 9, **options: Any) -> Any:
    endpoint = Endpoint(server.url, "agent", Sampling(0.7, 0.9), max_turn_tokens=11, **options)
    player = TextPlayer(endpoint.policy, max_turns, workers=4)
    system = [{"role": "system", "content": "Walk."}]
    return player.play([Episode(Corridor(), {"length": length, "prompt": system}, seed) for seed in range(count)])


def test_a_rollout_is_a_growing_conversation(server: Server):
    (trajectory,) = play(server)  # "go" moves by 2 % 3 - 1 = 1
    assert [turn.action for turn in trajectory.turns] == ["go", "go"]
    assert (trajectory.stop_reason, trajectory.success) == (StopReason.TERMINATED, True)
    assert [turn.info["action_tokens"] for turn in trajectory.turns] == [5, 5]
    assert [turn.anchor_state for turn in trajectory.turns] == [
        "You stand in cell 0. The exit is cell 2.",
        "You stand in cell 1.",
    ]
    first, second = server.requests
    assert first["path"] == "/v1/chat/completions"
    assert (first["model"], first["temperature"], first["top_p"], first["max_tokens"]) == ("agent", 0.7, 0.9, 11)
    assert first["messages"] == [
        {"role": "system", "content": "Walk."},
        {"role": "user", "content": "You stand in cell 0. The exit is cell 2."},
    ]
    assert second["messages"] == [
        *first["messages"],
        {"role": "assistant", "content": "go"},
        {"role": "user", "content": "You stand in cell 1."},
    ]
    assert first["seed"] != second["seed"] < 2**31


def test_concurrent_rollouts_keep_their_order_and_seeds(server: Server):
    trajectories = play(server, count=6)
    assert [trajectory.success for trajectory in trajectories] == [True] * 6
    assert len({request["seed"] for request in server.requests}) == 12


def test_a_turn_at_its_budget_is_cut(server: Server):
    server.reply = lambda body: (200, completion("walk", finish_reason="length"))
    (trajectory,) = play(server, max_turns=1)
    assert trajectory.turns[0].cut
    assert trajectory.stop_reason is StopReason.MAX_TURNS


def test_a_request_to_a_busy_endpoint_is_repeated_with_its_seed(server: Server, pauses: list[float]):
    server.reply = lambda body: (503, {"error": "busy"}) if len(server.requests) < 3 else (200, completion("go"))
    (trajectory,) = play(server, length=1)
    assert trajectory.success
    assert len(server.requests) == 3
    assert len({request["seed"] for request in server.requests}) == 1
    assert 0 < pauses[0] < pauses[1]


def test_the_pause_before_the_next_attempt_is_the_one_that_the_endpoint_asks_for(server: Server, pauses: list[float]):
    server.retry_after = ["30", "Wed, 21 Oct 2015 07:28:00 GMT"]  # the second is over: the client's own pause counts
    server.reply = lambda body: (529, {}) if server.retry_after else (200, completion("go"))
    [trajectory] = play(server, length=1)
    assert trajectory.success
    assert pauses[0] == 30 and 0 < pauses[1] <= 1


@pytest.mark.parametrize(("options", "attempts"), [({"max_retries": 1}, 2), ({}, 9)])
def test_an_endpoint_that_stays_busy_ends_the_evaluation(server: Server, options: dict[str, int], attempts: int):
    server.reply = lambda body: (429, {"error": "slow down"})
    with pytest.raises(ConnectionError, match=r"stays busy \(429\): .*slow down"):
        play(server, **options)
    assert len(server.requests) == attempts


def test_an_endpoint_that_cannot_be_reached_ends_the_evaluation(pauses: list[float]):
    with socket.socket() as silent:  # bound, so that no other process takes the port, and not listening
        silent.bind(("127.0.0.1", 0))
        endpoint = Endpoint(f"http://127.0.0.1:{silent.getsockname()[1]}/v1", "agent", Sampling(), max_retries=2)
        with pytest.raises(ConnectionError, match="cannot be reached: .*refused"):
            TextPlayer(endpoint.policy).play([Episode(Corridor(), {"length": 2}, 0)])
    assert len(pauses) == 2


def test_a_refused_request_is_reported_and_not_repeated(server: Server):
    server.reply = lambda body: (401, {"error": "no such key"})
    with pytest.raises(RuntimeError, match=r"refused a request \(401\): .*no such key"):
        play(server)
    assert len(server.requests) == 1


def test_a_full_context_ends_the_rollout(server: Server):
    message = "This model's maximum context length is 64 tokens."
    server.reply = lambda body: (400, {"message": message}) if len(body["messages"]) > 2 else (200, completion("go"))
    (trajectory,) = play(server)
    assert trajectory.stop_reason is StopReason.CONTEXT_LENGTH
    assert len(trajectory.turns) == 1
    assert not trajectory.success


@pytest.mark.parametrize("reply", [{}, {"choices": []}, [1], "go", None, {"choices": [{"text": "go"}]}])
def test_an_answer_of_another_protocol_is_reported(server: Server, reply: Any):
    server.reply = lambda body: (200, reply)
    with pytest.raises(RuntimeError, match="does not answer as a chat-completions endpoint"):
        play(server)


def test_key_and_further_fields_are_sent(server: Server):
    play(server, api_key="secret", extra_body={"top_k": 3, "top_p": None, "max_tokens": 12, "model": "other"})
    assert server.headers[0]["authorization"] == "Bearer secret"
    first = server.requests[0]
    assert (first["top_k"], first["max_tokens"], first["model"]) == (3, 12, "other")
    assert "top_p" not in first


@pytest.mark.parametrize(("seed", "sent"), [(None, [None, None]), (7, [7, 7])])
def test_a_given_seed_replaces_those_of_the_requests(seed: int | None, sent: list[int | None], server: Server):
    play(server, extra_body={"seed": seed})
    assert [request.get("seed") for request in server.requests] == sent
    assert all(("seed" in request) == (seed is not None) for request in server.requests)


def test_nothing_of_the_clients_environment_is_sent(server: Server, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9/elsewhere")
    for name in ("OPENAI_API_KEY", "OPENAI_ADMIN_KEY", "OPENAI_ORG_ID", "OPENAI_PROJECT_ID"):
        monkeypatch.setenv(name, "private")
    monkeypatch.setenv("OPENAI_CUSTOM_HEADERS", "Authorization: Bearer private")
    for key in (None, "secret"):
        play(server, api_key=key)
    assert {request["path"] for request in server.requests} == {"/v1/chat/completions"}
    assert server.headers and not [value for sent in server.headers for value in sent.values() if "private" in value]
    assert server.headers[-1]["authorization"] == "Bearer secret"


def test_a_missing_client_is_reported_at_construction(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(ImportError, match=r"pip install 'trl-agentic\[endpoint\]'"):
        Endpoint("http://localhost:1/v1", "agent", Sampling())
