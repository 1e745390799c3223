"""A policy behind a chat-completions endpoint, against a server on the loopback interface."""

from __future__ import annotations

import json
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
    """Answers each request with `reply(body)`, a status and a JSON value, and keeps the requests."""

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
                outer.headers.append(dict(self.headers))
                status, value = outer.reply(body)
                data = json.dumps(value).encode()
                self.send_response(status)
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
    endpoint = Endpoint(server.url, "agent", Sampling(0.7, 0.9), max_turn_tokens=11, pause=0.01, **options)
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


def test_rollouts_side_by_side_keep_their_order_and_seeds(server: Server):
    trajectories = play(server, count=6)
    assert [trajectory.success for trajectory in trajectories] == [True] * 6
    assert len({request["seed"] for request in server.requests}) == 12


def test_a_turn_at_its_budget_is_cut(server: Server):
    server.reply = lambda body: (200, completion("walk", finish_reason="length"))
    (trajectory,) = play(server, max_turns=1)
    assert trajectory.turns[0].cut
    assert trajectory.stop_reason is StopReason.MAX_TURNS


def test_a_busy_endpoint_is_asked_again(server: Server):
    server.reply = lambda body: (503, {"error": "busy"}) if len(server.requests) < 3 else (200, completion("go"))
    (trajectory,) = play(server, length=1)
    assert trajectory.success
    assert len(server.requests) == 3
    assert len({request["seed"] for request in server.requests}) == 1


def test_an_endpoint_that_stays_busy_ends_the_evaluation(server: Server):
    server.reply = lambda body: (429, {"error": "slow down"})
    with pytest.raises(ConnectionError, match="no answer in 2 attempts: HTTP Error 429"):
        play(server, attempts=2)


def test_a_refused_request_is_told_and_not_repeated(server: Server):
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


@pytest.mark.parametrize("reply", [{}, {"choices": []}, [1], {"choices": [{"text": "go"}]}])
def test_an_answer_of_another_protocol_is_told(server: Server, reply: Any):
    server.reply = lambda body: (200, reply)
    with pytest.raises(RuntimeError, match="does not answer as a chat-completions endpoint"):
        play(server)


def test_key_and_further_fields_are_sent(server: Server):
    play(server, api_key="secret", extra_body={"top_k": 3, "top_p": None})
    assert server.headers[0]["Authorization"] == "Bearer secret"
    assert server.requests[0]["top_k"] == 3
    assert "top_p" not in server.requests[0]


@pytest.mark.parametrize(("seed", "sent"), [(None, [None, None]), (7, [7, 7])])
def test_a_seed_of_ones_own_or_none(seed: int | None, sent: list[int | None], server: Server):
    play(server, extra_body={"seed": seed})
    assert [request.get("seed") for request in server.requests] == sent
    assert all(("seed" in request) == (seed is not None) for request in server.requests)


def test_an_endpoint_is_asked_again_when_it_says(server: Server, monkeypatch: pytest.MonkeyPatch):
    pauses: list[float] = []
    monkeypatch.setattr(time, "sleep", pauses.append)
    server.retry_after = ["30", "Wed, 21 Oct 2026 07:28:00 GMT"]
    server.reply = lambda body: (529, {}) if server.retry_after else (200, completion("go"))
    [trajectory] = play(server, length=1)
    assert trajectory.success
    assert 30 <= pauses[0] <= 37.5 and 0.02 <= pauses[1] <= 0.025
