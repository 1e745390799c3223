"""The parts of the rollout benchmark that need no training."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest


BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def rollout(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    sys.modules.pop("rollout", None)
    import rollout as module

    return module


def test_the_countdown(rollout: Any):
    clock = rollout.Countdown()
    assert clock.reset(turns=3, number=0, thinks=False) == " Left: 2."
    assert clock.tick().endswith(" Left: 1.") and clock.tick().endswith(" Time is up!")
    assert rollout.Countdown().reset(turns=1, number=0, thinks=True) == " Time is up!"


def test_thinking(rollout: Any):
    assert rollout.answer("barely") == f"Thinking: 2 1.{rollout.CALL}"
    assert rollout.answer() == rollout.CALL
    clocks = [rollout.Countdown() for _ in range(2)]
    first, second = ([clock.reset(turns=9, number=5, thinks=True), clock.tick(), clock.tick()] for clock in clocks)
    assert first == second  # both loops have the same to think
    words = [text.rstrip(".").split()[-1] for text in first]
    assert set(words) <= set(rollout.THOUGHTS) and len(set(words)) > 1


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
    results["ours"][0] = rollout._median(plays)  # of each play's share, too
    assert rollout.table(part, results).splitlines()[2:] == [
        "| 4 | 32 | 0 ms | 2.0 | 5.0 | 2.5x | 80% |",
        "| long-tailed, up to 16 | 8 | 500 ms | 1.0 | 10.0 | 10.0x |  |",
    ]
