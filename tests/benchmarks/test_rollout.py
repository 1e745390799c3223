"""Rollout benchmark: the parts that need no training."""

from __future__ import annotations

import sys
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from trl_agentic import Trajectory, Turn
from trl_agentic.rollout.engines import Request, Sample


BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def countdown(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import countdown as module

    return module


@pytest.fixture
def rollout(countdown: Any) -> Any:
    sys.modules.pop("rollout", None)
    import rollout as module

    return module


def test_the_countdown(countdown: Any):
    clock = countdown.Countdown()
    assert clock.reset(turns=3, number=0, thinks=False) == " Left: 2."
    assert clock.tick().endswith(" Left: 1.") and clock.tick().endswith(" Time is up!")
    assert countdown.Countdown().reset(turns=1, number=0, thinks=True) == " Time is up!"


def test_thinking(countdown: Any):
    assert countdown.answer("barely") == f"Thinking: 2 1.{countdown.CALL}"
    assert countdown.answer() == countdown.CALL
    clocks = [countdown.Countdown() for _ in range(2)]
    first, second = ([clock.reset(turns=9, number=5, thinks=True), clock.tick(), clock.tick()] for clock in clocks)
    assert first == second  # both loops get the same thoughts
    words = [text.rstrip(".").split()[-1] for text in first]
    assert set(words) <= set(countdown.THOUGHTS) and len(set(words)) > 1


@pytest.mark.parametrize("lengths", ["equal", "uniform", "long-tailed"])
def test_loads(lengths: str, rollout: Any):
    load = rollout.Load(lengths, 64, 16, 0.0)
    counts = [row["turns"] for row in load.rows()]
    assert len(counts) == 64 and max(counts) == 16 and counts == [row["turns"] for row in load.rows()]
    mean = sum(counts) / 64
    assert load.name() + "; thinks" == rollout.Load(lengths, 64, 16, 0.0, True).name()
    assert {"equal": mean == 16, "uniform": 9 < mean < 11, "long-tailed": 1.5 < mean < 4}[lengths]


def test_the_table(rollout: Any):
    part = [rollout.Load("equal", 32, 4, 0.0), rollout.Load("long-tailed", 8, 16, 0.5)]
    results = {"TRL": [{"rate": 2.0}, {"rate": 1.0}], "ours": [{"rate": 5.0}, {"rate": 10.0}]}
    lines = rollout.table(part, results).splitlines()
    assert lines[2:] == [
        "| 4 | 32 | 0 ms | 2.0 | 5.0 | 2.5x |",
        "| long-tailed, up to 16 | 8 | 500 ms | 1.0 | 10.0 | 10.0x |",
    ]
    plays = [{"rate": 9.0, "alone": 9.0}, {"rate": 5.0, "alone": 6.25}, {"rate": 4.0, "alone": 8.0}]
    results["ours"][0] = rollout.medians(plays)  # includes the share of each play
    assert rollout.table(part, results).splitlines()[2:] == [
        "| 4 | 32 | 0 ms | 2.0 | 5.0 | 2.5x | 80% |",
        "| long-tailed, up to 16 | 8 | 500 ms | 1.0 | 10.0 | 10.0x |  |",
    ]
    results["ours"][0] = rollout.medians([play | {"in order": 10.0} for play in plays])
    assert rollout.table(part, results).splitlines()[2:] == [
        "| 4 | 32 | 0 ms | 2.0 | 5.0 | 2.5x | 80% | 50% |",
        "| long-tailed, up to 16 | 8 | 500 ms | 1.0 | 10.0 | 10.0x |  |  |",
    ]


def test_the_requests_of_a_rollout(rollout: Any):
    turns = [Turn([1, 2], [3], None, "", "", "", extends=False), Turn([4], [5, 6], None, "", "", "", extends=True)]
    requests = list(rollout.requests_of(7, Trajectory(task={}, turns=turns)))
    assert [(request.rollout, request.prompt_ids) for request in requests] == [(7, [1, 2]), (7, [1, 2, 3, 4])]


def test_the_engine_alone(rollout: Any):
    """In order there is one request of each rollout at a time; otherwise as many requests of any rollouts."""

    class Engine:
        def __init__(self) -> None:
            self.waiting: list[tuple[Request, Any]] = []
            self.batches: list[list[int]] = []

        def submit(self, request: Request, done: Any) -> None:
            self.waiting.append((request, done))

        def step(self, active: int, busy: int) -> None:
            assert active == len(self.waiting) and busy == 0
            batch, self.waiting = self.waiting, []
            self.batches.append([request.rollout for request, _ in batch])
            for _, done in batch:
                done(Sample([1], None, ended=True))

    engine = Engine()
    trainer = SimpleNamespace(use_vllm=False, _engine=lambda temperature: nullcontext(engine))
    lanes = [[Request(number, [1], 4, 0)] * turns for number, turns in enumerate((1, 3, 2))]
    assert rollout.seconds_alone(trainer, [iter(lane) for lane in lanes]) > 0
    assert engine.batches == [[0, 1, 2], [1, 2], [1]]
    engine.batches.clear()
    rollout.seconds_alone(trainer, [iter([request for lane in lanes for request in lane])] * 3)
    assert engine.batches == [[0, 1, 1], [1, 2, 2]]


def test_the_rate_that_the_engine_allows(rollout: Any):
    parts = {"thinking": [rollout.Load("equal", 2, 4, 0.0), rollout.Load("long-tailed", 64, 40, 0.0, True)]}
    rates = {"TRL": [{"rate": 1.0}, {"rate": 20.0}], "ours": [{"rate": 1.0}, {"rate": 25.0, "in order": 30.0}]}
    assert " ".join(rollout.limits(parts, {"thinking": rates}).split()) == (
        "Long-tailed, up to 40; thinks, 64 environments: TRL reaches 20.0 turns per second, ours 25.0, and the engine "
        "alone, turns in order, 30.0: 1.5x is about the most that a loop could reach there."
    )
