"""A reset that begins before it is asked for: same outcome, and nothing is left over."""

from __future__ import annotations

import threading
import time
from concurrent.futures import wait
from pathlib import Path
from typing import Any

import pytest

from tests.environments.faulty import Faulty
from tests.toys import Corridor
from tests.waiting import wait_until
from trl_agentic.environments.handle import EnvironmentHandle, WorkerOptions
from trl_agentic.types import StepResult


class Gate(Corridor):
    """Its `reset` waits until it may go on, and is counted."""

    opened = threading.Event()
    events: list[str] = []

    def reset(self, **row: Any) -> str:
        assert self.opened.wait(timeout=30)
        self.events.append("reset")
        return super().reset(**row)

    def close(self) -> None:
        self.events.append("closed")


@pytest.fixture(autouse=True)
def gate() -> threading.Event:
    Gate.opened.clear()
    Gate.events.clear()
    return Gate.opened


def test_what_was_begun_is_asked_for_once(gate: threading.Event):
    handle = EnvironmentHandle(Gate, WorkerOptions())
    handle.prefetch_reset(length=3)
    gate.set()
    wait([handle.pending])
    time.sleep(0.05)
    assert handle.reset(length=3) == "You stand in cell 0. The exit is cell 3."
    assert Gate.events == ["reset"] and handle.pending is None
    assert 0 <= handle.seconds_saved < 30
    assert isinstance(handle.step("no"), StepResult)
    assert handle.reset(length=3).endswith("cell 3.")
    assert Gate.events == ["reset"] * 2 and handle.seconds_saved == 0.0
    handle.close()


def test_seconds_saved_are_those_before_the_question(gate: threading.Event, monkeypatch: pytest.MonkeyPatch):
    handle = EnvironmentHandle(Gate, WorkerOptions())
    begun = time.perf_counter()
    handle.prefetch_reset(length=3)
    time.sleep(0.2)
    asked: list[float] = []
    result = handle.pending.result

    def waited_for() -> Any:
        asked.append(time.perf_counter())
        time.sleep(0.3)
        gate.set()
        return result()

    monkeypatch.setattr(handle.pending, "result", waited_for)
    handle.reset(length=3)
    assert 0.2 <= handle.seconds_saved <= asked[0] - begun
    handle.close()


def test_a_discarded_reset_is_not_used(gate: threading.Event):
    gate.set()
    handle = EnvironmentHandle(Gate, WorkerOptions())
    handle.prefetch_reset(length=3)
    handle.discard_prefetched()
    assert handle.reset(length=2).endswith("cell 2.")
    handle.discard_prefetched()  # nothing to discard
    handle.prefetch_reset(length=3)
    handle.prefetch_reset(length=1)  # the one before is given up
    assert handle.reset(length=1).endswith("cell 1.")
    assert Gate.events == ["reset"] * 4
    handle.close()


@pytest.mark.parametrize(
    ("kind", "fault"), [("thread", "raise"), ("thread", "exit"), ("process", "kill"), ("process", "raise")]
)
def test_a_failing_reset_fails_as_it_does_at_its_time(kind: str, fault: str, tmp_path: Path):
    outcomes = []
    for ahead in (False, True):
        for times in (2, 3):
            row = {"fault": fault, "at": 0, "times": times, "count": str(tmp_path / f"count_{ahead}_{times}")}
            handle = EnvironmentHandle(Faulty, WorkerOptions(kind, timeout=30.0, retries=2))
            if ahead:
                handle.prefetch_reset(**row)
                wait([handle.pending])
            try:
                outcome = handle.reset(**row)
            except Exception as error:
                outcome = type(error), str(error).splitlines()[-1]
            outcomes.append((outcome, handle.retries))
            handle.close()
    assert outcomes[:2] == outcomes[2:]
    assert isinstance(outcomes[0][0], str) and isinstance(outcomes[1][0], tuple)
    assert [retries for _, retries in outcomes] == [2] * 4


def test_an_environment_is_closed_when_its_reset_ends(gate: threading.Event):
    handle = EnvironmentHandle(Gate, WorkerOptions())
    handle.prefetch_reset(length=3)
    answer = handle.pending
    handle.close()
    assert Gate.events == [] and not answer.done()
    gate.set()
    wait([answer])
    wait_until(lambda: Gate.events == ["reset", "closed"])
    assert handle.reset(length=2).endswith("cell 2.")  # by a fresh one
    handle.close()
