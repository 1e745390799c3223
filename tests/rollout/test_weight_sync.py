"""Weight synchronisation: when weights are sent, to which servers, and what a restart of a server leads to."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from trl_agentic.rollout.engine_source import VLLMSource
from trl_agentic.rollout.engines import Sampling
from trl_agentic.rollout.weight_sync import ColocateWeightSync, ServerWeightSync


URLS = ["http://a:1", "http://b:2"]


class Run:
    """A run whose vLLM servers record everything that happens to them, in one list."""

    def __init__(self, urls: list[str], sends: bool = True):
        self.step = 0
        self.events: list[str] = []
        self.starts = dict.fromkeys(urls, 1.0)
        self.clients = [Client(self, url) if sends else None for url in urls]
        self.generation = Generation(self)
        self.sync = ServerWeightSync(
            self.generation, urls, self.clients, self.starts.__getitem__, lambda: self.step, "cpu",
            lambda: self.events.append("barrier"), self.profile,
        )  # fmt: skip

    @contextmanager
    def profile(self, name: str) -> Iterator[None]:
        assert name == "sync_weights"
        yield

    def use(self) -> list[str]:
        """Events of one use of the engine."""
        self.events.clear()
        with self.sync.current():
            self.events.append("use")
        return list(self.events)


class Client:
    """TRL's client of a server."""

    def __init__(self, run: Run, url: str):
        self.run, self.url = run, url

    def close_communicator(self) -> None:
        self.run.events.append(f"leave {self.url}")

    def init_communicator(self, device: str) -> None:
        assert device == "cpu"
        self.run.events.append(f"join {self.url}")


class Generation:
    """TRL's `VLLMGeneration`: sends weights to its client."""

    def __init__(self, run: Run):
        self.run, self.vllm_client = run, run.clients[0]

    def sync_weights(self) -> None:
        url = self.vllm_client.url if self.vllm_client is not None else "none"
        self.run.events.append(f"send {url}")


def test_weights_are_sent_once_an_optimizer_step():
    run = Run(URLS[:1])
    assert run.use() == ["send http://a:1", "barrier", "use"]
    assert run.use() == ["use"]
    run.step = 1
    assert run.use() == ["send http://a:1", "barrier", "use"]
    assert run.use() == ["use"]


def test_weights_that_changed_without_a_step_are_sent_again():
    run = Run(URLS[:1])
    run.use()
    run.sync.invalidate()
    assert run.use() == ["send http://a:1", "barrier", "use"]
    assert run.use() == ["use"]


def test_every_server_gets_the_weights_and_the_client_of_trl_stays():
    run = Run(URLS)
    assert run.use() == ["send http://b:2", "send http://a:1", "barrier", "use"]
    assert run.generation.vllm_client is run.clients[0]


def test_a_process_that_does_not_send_takes_part():
    """TRL's `sync_weights` gathers sharded parameters on every process, and only the first one has clients."""
    run = Run(URLS, sends=False)
    assert run.use() == ["send none", "send none", "barrier", "use"]
    run.starts[URLS[1]], run.step = 2.0, 1
    assert run.use() == ["send none", "send none", "barrier", "use"]
    run.sync.check()


def test_a_server_that_was_restarted_between_generations_is_joined_again_and_sent_the_weights(
    caplog: pytest.LogCaptureFixture,
):
    run = Run(URLS)
    run.use()
    run.step, run.starts[URLS[1]] = 1, 2.0
    with caplog.at_level(logging.WARNING):
        assert run.use() == [
            "leave http://b:2", "join http://b:2", "send http://b:2", "send http://a:1", "barrier", "use",
        ]  # fmt: skip
    assert "http://b:2 was restarted" in caplog.text and "http://a:1" not in caplog.text
    run.sync.check()  # it has the weights of this step
    run.step = 2
    assert run.use() == ["send http://b:2", "send http://a:1", "barrier", "use"]


def test_servers_that_were_restarted_together_are_sent_the_weights_one_after_the_other():
    run = Run(URLS)
    run.use()
    run.step, run.starts = 1, run.starts
    run.starts.update(dict.fromkeys(URLS, 2.0))
    assert run.use() == [
        "leave http://b:2", "join http://b:2", "send http://b:2",
        "leave http://a:1", "join http://a:1", "send http://a:1", "barrier", "use",
    ]  # fmt: skip
    assert run.generation.vllm_client is run.clients[0]
    run.sync.check()


@pytest.mark.parametrize("restarted", URLS)
def test_a_restart_during_the_rollouts_stops_the_run(restarted: str):
    run = Run(URLS)
    engine = Engine()
    source = VLLMSource(run.sync, lambda sampling: engine)
    other = next(url for url in URLS if url != restarted)
    message = rf"The vLLM server at {restarted} was restarted during the rollouts.*`resume_from_checkpoint`"
    with pytest.raises(RuntimeError, match=message), source.open(Sampling()):
        run.starts[restarted] = 2.0
    assert engine.closed == 1
    with pytest.raises(RuntimeError, match=message):
        run.sync.check_server(restarted)
    run.sync.check_server(other)


def test_an_engine_without_a_context_has_the_current_weights_and_is_closed_by_its_user():
    run = Run(URLS[:1])
    engine = Engine()
    source = VLLMSource(run.sync, lambda sampling: engine)
    assert source.detached(Sampling()) is engine
    assert run.events == ["send http://a:1", "barrier"] and engine.closed == 0
    with source.open(Sampling()) as opened:
        assert opened is engine
    assert run.events == ["send http://a:1", "barrier"] and engine.closed == 1
    source.invalidate()
    source.detached(Sampling())
    assert run.events == ["send http://a:1", "barrier"] * 2


class Engine:
    def __init__(self) -> None:
        self.closed = 0

    def close(self) -> None:
        self.closed += 1


# vLLM in this process


class Colocated:
    """TRL's `VLLMGeneration` with vLLM in this process."""

    def __init__(self) -> None:
        self.events: list[str] = []
        self.llm: Any = self

    def sync_weights(self) -> None:
        self.events.append("weights")

    def wake_up(self, tags: list[str]) -> None:
        self.events.append(f"wake {tags}")

    def sleep(self, level: int) -> None:
        self.events.append(f"sleep {level}")


@contextmanager
def unmeasured(name: str) -> Iterator[None]:
    yield


def colocated(sleeps: bool) -> tuple[Colocated, ColocateWeightSync, list[int]]:
    generation, step = Colocated(), [0]
    return generation, ColocateWeightSync(generation, lambda: step[0], sleeps, unmeasured), step


def test_vllm_in_this_process_gets_the_weights_once_a_step():
    generation, sync, step = colocated(sleeps=False)
    for step[0] in (0, 0, 1):
        with sync.current():
            generation.events.append("use")
    assert generation.events == ["weights", "use", "use", "weights", "use"]
    sync.invalidate()
    with sync.current():
        pass
    assert generation.events[5:] == ["weights"]
    sync.check()


def test_vllm_that_sleeps_gets_the_weights_at_every_use_and_sleeps_after_it():
    generation, sync, _ = colocated(sleeps=True)
    for _ in range(2):
        with sync.current():
            generation.events.append("use")
    assert generation.events == ["weights", "wake ['kv_cache']", "use", "sleep 2"] * 2
    with pytest.raises(OSError), sync.current():
        raise OSError("the rollouts failed")
    assert generation.events[-1] == "sleep 2"
