"""Handles: an episode outlives its worker, and a failure that stays is told after the last retry."""

from __future__ import annotations

import os
import signal
import time
from functools import partial
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from tests.environments.faulty import Faulty
from tests.toys import Corridor
from tests.waiting import wait_until
from trl_agentic.environments.base import EpisodeRestarted, check_environment
from trl_agentic.environments.handle import EnvironmentHandle, WorkerOptions
from trl_agentic.environments.workers import EnvironmentTimeout, WorkerDied
from trl_agentic.types import StepResult


ACTIONS = ["no", "go", "no", "no"]  # moves of 1


def undisturbed() -> tuple[str, list[StepResult]]:
    corridor = Corridor()
    return corridor.reset(length=4), [corridor.step(action) for action in ACTIONS]


def play(handle: EnvironmentHandle, **row: Any) -> tuple[str, list[StepResult]]:
    return handle.reset(length=4, **row), [handle.step(action) for action in ACTIONS]


def play_begun(handle: EnvironmentHandle, seconds: float, **row: Any) -> tuple[Any, list[bool]]:
    """What `play` returns, with steps that were begun before; and which of them were over so soon."""
    first, results, over = handle.reset(length=4, **row), [], []
    for action in ACTIONS:
        over.append(handle.begin_step(action, seconds))
        results.append(handle.step(action))
    return (first, results), over


@pytest.mark.parametrize(
    ("kind", "fault"),
    [("thread", "raise"), ("thread", "exit"), ("thread", "hang"), ("process", "raise"), ("process", "kill")],
)
@pytest.mark.parametrize("at", [0, 3])
def test_an_episode_outlives_its_worker(kind: str, fault: str, at: int, tmp_path: Path):
    options = WorkerOptions(kind, timeout=1.0 if fault == "hang" else 30.0, retries=2)
    handle = EnvironmentHandle(Faulty, options)
    row = {"fault": fault, "at": at, "times": 2, "count": str(tmp_path / "count")}
    assert play(handle, **row) == undisturbed()
    assert handle.retries == 2
    assert play(handle) == undisturbed()
    assert handle.retries == 0  # of that episode
    handle.close()


@pytest.mark.parametrize("fault", ["raise", "exit", "hang"])
def test_a_begun_step_outlives_its_worker(fault: str, tmp_path: Path):
    handle = EnvironmentHandle(Faulty, WorkerOptions(timeout=1.0 if fault == "hang" else 30.0, retries=2))
    row = {"fault": fault, "at": 3, "times": 2, "count": str(tmp_path / "count")}
    assert play_begun(handle, 0.3 if fault == "hang" else 30.0, **row) == (undisturbed(), [True, True, False, True])
    assert handle.retries == 2
    handle.close()


def test_a_process_begins_no_step():
    handle = EnvironmentHandle(Faulty, WorkerOptions("process", timeout=30.0))
    assert play_begun(handle, 30.0) == (undisturbed(), [False] * 4)
    handle.close()


def test_a_slow_step_is_begun_once(tmp_path: Path):
    handle = EnvironmentHandle(partial(Slow, str(tmp_path)), WorkerOptions(retries=1))
    handle.reset(length=4)
    assert not handle.begin_step("a slow step", 0.01)
    (tmp_path / "end").touch()
    assert handle.step("a slow step").observation == "late"
    assert (tmp_path / "begun").read_text() == "x" and handle.retries == 0
    handle.close()


def test_a_begun_step_that_nobody_asked_for_belongs_to_its_episode():
    handle = EnvironmentHandle(Corridor, WorkerOptions())
    handle.reset(length=4)
    assert handle.begin_step("go", 30.0)
    assert play(handle) == undisturbed()
    handle.close()


def test_the_last_error_is_raised_when_retries_are_used_up(tmp_path: Path):
    row = {"fault": "raise", "at": 1, "times": 3, "count": str(tmp_path / "count")}
    handle = EnvironmentHandle(Faulty, WorkerOptions(retries=2))
    handle.reset(**row)
    with pytest.raises(RuntimeError, match="the corridor collapsed"):
        handle.step("no")
    assert handle.retries == 2
    assert "cell 0" in handle.reset()  # the next episode has a fresh environment
    assert len((tmp_path / "count").read_text()) == 3
    handle.close()


def test_a_hanging_process_costs_one_timeout(tmp_path: Path):
    handle = EnvironmentHandle(Faulty, WorkerOptions("process", timeout=4.0, retries=0))  # the start counts
    handle.reset(length=4, fault="hang", at=1, count=str(tmp_path / "count"))
    with pytest.raises(EnvironmentTimeout):
        handle.step("no")
    handle.close()


def test_a_process_killed_between_two_calls():
    handle = EnvironmentHandle(Faulty, WorkerOptions("process", timeout=30.0, retries=1))
    first, results = handle.reset(length=4), [handle.step(ACTIONS[0])]
    os.kill(handle._worker.pid, signal.SIGKILL)
    results += [handle.step(action) for action in ACTIONS[1:]]
    assert (first, results) == undisturbed() and handle.retries == 1
    os.kill(handle._worker.pid, signal.SIGKILL)
    handle.close()

    strict = EnvironmentHandle(Faulty, WorkerOptions("process", timeout=30.0, retries=0))
    strict.reset()
    os.kill(strict._worker.pid, signal.SIGKILL)
    with pytest.raises(WorkerDied):
        strict.step("no")
    strict.close()


def test_an_environment_that_answers_otherwise_begins_anew(tmp_path: Path):
    """A fresh environment shows another first observation than one in its second episode."""
    handle = EnvironmentHandle(Faulty, WorkerOptions(retries=1))
    handle.reset()
    row = {"length": 4, "tells_episode": True, "fault": "raise", "at": 2, "count": str(tmp_path / "count")}
    assert handle.reset(**row).endswith("Episode 2.")
    handle.step("no")
    with pytest.raises(EpisodeRestarted) as restart:
        handle.step("no")
    assert restart.value.observation.endswith("Episode 2.")  # the replay was its first
    assert handle.step("no").observation == "You stand in cell 1."
    assert handle.retries == 1
    handle.close()


class Random(Corridor):
    """Its answers are its own."""

    made = 0

    def __init__(self) -> None:
        Random.made += 1
        self.number = Random.made

    def step(self, action: str) -> StepResult:
        super().step(action)
        if self.steps == 2 and self.number == 1:
            raise RuntimeError("once")
        return StepResult(f"{self.number}", reward=0.0)


def test_a_step_that_answers_otherwise_begins_anew():
    Random.made = 0
    handle = EnvironmentHandle(Random, WorkerOptions(retries=1))
    first = handle.reset()
    assert handle.step("no").observation == "1"
    with pytest.raises(EpisodeRestarted) as restart:
        handle.step("no")
    assert restart.value.observation == first
    assert [handle.step("no").observation for _ in range(2)] == ["2", "2"]
    handle.close()


@pytest.mark.parametrize("kind", ["thread", "process"])
def test_a_leaking_environment_is_replaced(kind: str, tmp_path: Path):
    closed = tmp_path / "closed"
    handle = EnvironmentHandle(
        partial(Faulty, str(closed)), WorkerOptions(kind, timeout=30.0, retries=0, max_episodes=2)
    )
    told = [handle.reset(tells_episode=True)[-2] for _ in range(5)]
    assert told == ["1", "2", "1", "2", "1"]
    handle.close()
    pids = closed.read_text().split()
    assert len(pids) == 3 and len(set(pids)) == (1 if kind == "thread" else 3)


def test_a_handle_keeps_the_protocol():
    check_environment(partial(EnvironmentHandle, Corridor, WorkerOptions("process", 30.0)), {"length": 3})


@pytest.mark.parametrize("kind", ["thread", "process"])
def test_an_episode_waits_for_the_last_call_of_one_that_was_given_up(kind: str, tmp_path: Path):
    handle = EnvironmentHandle(partial(Slow, str(tmp_path)), WorkerOptions(kind, retries=1))
    assert handle.reset(length=4) == Corridor().reset(length=4)
    late: list[StepResult] = []
    given_up = Thread(target=lambda: late.append(handle.step("a slow step")))
    given_up.start()
    wait_until((tmp_path / "begun").exists)
    answers: list[Any] = []
    next_one = Thread(target=lambda: answers.extend(play(handle)))
    next_one.start()
    time.sleep(0.2)  # time enough to answer
    assert not answers
    (tmp_path / "end").touch()
    given_up.join(30)
    next_one.join(30)
    assert late[0].observation == "late" and tuple(answers) == undisturbed()
    handle.close()


class Slow(Corridor):
    """Its slow step ends when it is told to."""

    def __init__(self, folder: str):
        self.folder = Path(folder)

    def step(self, action: str) -> StepResult:
        if action != "a slow step":
            return super().step(action)
        with (self.folder / "begun").open("a") as file:
            file.write("x")
        wait_until((self.folder / "end").exists)
        return StepResult("late")
