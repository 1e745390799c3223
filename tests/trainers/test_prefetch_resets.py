"""Environments are reset for the next step while this one is trained on. Nothing else changes."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset, IterableDataset

from tests.environments.faulty import Faulty
from tests.toys import Corridor
from tests.trainers.small import history, parameters, small_config, tasks
from tests.trainers.test_resume import SHAPES
from tests.waiting import wait_until
from trl_agentic import GAGPOConfig, GAGPOTrainer


Model = Callable[..., Path]


def run(
    model: Path, output_dir: Path, environment: Any, rows: Any, kind: type[GAGPOTrainer] = GAGPOTrainer, **changes: Any
) -> GAGPOTrainer:
    args = small_config(GAGPOConfig, output_dir, **changes)
    trainer = kind(str(model), args=args, train_dataset=rows, eval_dataset=tasks(2), environment_factory=environment)
    trainer.train()
    return trainer


def numbered(count: int = 6) -> Dataset:
    return Dataset.from_list([{"length": 1 + i % 3, "number": i} for i in range(count)])


class Numbered(Corridor):
    """Remembers what it played, across instances."""

    played: list[int] = []
    lock = threading.Lock()

    def reset(self, number: int = -1, **row: Any) -> str:
        with self.lock:
            self.played.append(number)
        return super().reset(**row)


@pytest.mark.parametrize("shape", SHAPES)
def test_weights_and_resets_are_those_without(shape: str, tiny_model_dir: Model, tmp_path: Path):
    """Over several epochs, of which the last one is not played to its end."""
    ends, played = [], []
    for prefetch in (False, True):
        Numbered.played = []
        changes = SHAPES[shape] | {"prefetch_resets": prefetch, "eval_strategy": "steps", "eval_steps": 2}
        trainer = run(tiny_model_dir(), tmp_path / str(prefetch), Numbered, numbered(), **changes)
        ends.append(parameters(trainer))
        played.append(sorted(Numbered.played))
    assert played[0] == played[1] and len(played[0]) > 30
    for name, parameter in ends[0].items():
        assert torch.equal(ends[1][name], parameter), name


def test_resets_run_during_the_update(tiny_model_dir: Model, tmp_path: Path):
    ended: list[str] = []

    class Slow(Corridor):
        def reset(self, **row: Any) -> str:
            time.sleep(0.3)
            ended.append("reset")
            return super().reset(**row)

    class Patient(GAGPOTrainer):
        def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
            if self.state.global_step < 2:  # the resets of the next step end while this one is trained on
                wait_until(lambda: len(ended) >= 8 * (self.state.global_step + 2))
            return super().compute_loss(*args, **kwargs)

    off = run(tiny_model_dir(), tmp_path, Slow, tasks(40), max_steps=2, prefetch_resets=False)
    assert history(off, "rollout/env_wait_saved") == [0.0] * 2
    ended.clear()
    trainer = run(tiny_model_dir(), tmp_path, Slow, tasks(40), Patient)
    turns = [8 * turns for turns in history(trainer, "episode/turns")]
    waited, saved = history(trainer, "rollout/env_wait"), history(trainer, "rollout/env_wait_saved")
    assert waited[0] * turns[0] > 8 * 0.3 and saved[0] == 0.0
    for step in (1, 2):
        assert saved[step] * turns[step] > 8 * 0.3 > 2 * waited[step] * turns[step]


def test_a_stream_of_tasks(tiny_model_dir: Model, tmp_path: Path):
    ends = []
    for prefetch in (False, True):
        rows = IterableDataset.from_generator(lambda: iter({"length": 1 + i % 3} for i in range(20)))
        trainer = run(tiny_model_dir(), tmp_path, Corridor, rows, shuffle_dataset=False, prefetch_resets=prefetch)
        ends.append(parameters(trainer))
    for name, parameter in ends[0].items():
        assert torch.equal(ends[1][name], parameter), name


@pytest.mark.parametrize("times", [2, 99])
def test_a_reset_that_fails(times: int, tiny_model_dir: Model, tmp_path: Path):
    """In the second step: twice, which retries recover from, and always, which fails only those rollouts."""
    logs, ends = [], []
    for prefetch in (False, True):
        rows = [{"length": 3}] * 3 + [
            {"length": 3, "fault": "raise", "at": 0, "times": times, "count": str(tmp_path / f"{prefetch}")}
        ]
        columns = {key: [row.get(key) for row in rows] for key in rows[-1]}
        trainer = run(
            tiny_model_dir(), tmp_path / "out", Faulty, Dataset.from_dict(columns), shuffle_dataset=False,
            prefetch_resets=prefetch, max_steps=2, environment_retries=2,
        )  # fmt: skip
        ends.append(parameters(trainer))
        logs.append([history(trainer, name) for name in ("rollout/retries", "episode/stop_error", "episode/return")])
    assert logs[0] == logs[1]
    assert logs[0][:2] == ([[0.0, 2.0], [0.0, 0.0]] if times == 2 else [[0.0, 8.0], [0.0, 0.5]])
    for name, parameter in ends[0].items():
        assert torch.equal(ends[1][name], parameter), name


@pytest.mark.parametrize("prefetch", [False, True])
def test_batches_are_read_ahead_only_with_it(prefetch: bool, tiny_model_dir: Model, tmp_path: Path):
    distances: list[int] = []

    class Watched(GAGPOTrainer):
        def __init__(self, *args: Any, **kwargs: Any):
            super().__init__(*args, **kwargs)
            peek = self.generation.prefetcher.peek
            self.generation.prefetcher.peek = lambda distance: (distances.append(distance), peek(distance))[1]

    trainer = run(tiny_model_dir(), tmp_path, Corridor, numbered(), Watched, prefetch_resets=prefetch)
    assert distances == ([1, 1] if prefetch else [])  # the last of three steps needs no next batch
    assert trainer.generation.prefetcher.peek(1) is None  # nothing is kept
