"""Training rollouts on disk: which steps are saved, and that every turn has its own credit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.toys import Corridor
from tests.trainers.small import small_config, tasks
from trl_agentic import AgenticConfig, AgenticGRPOConfig, AgenticGRPOTrainer, GAGPOConfig, GAGPOTrainer
from trl_agentic.records import load_records
from trl_agentic.types import StepResult, TurnBatch


def test_every_second_step_is_saved_with_its_credit(tiny_model_dir: Callable[..., Path], tmp_path: Path):
    seen: list[torch.Tensor] = []

    class Recorded(GAGPOTrainer):
        def turn_advantages(self, batch: TurnBatch) -> torch.Tensor:
            seen.append(super().turn_advantages(batch))
            return seen[-1]

    config = small_config(GAGPOConfig, tmp_path, save_trajectories_steps=2, gamma=0.5, epsilon=0.25)
    trainer = Recorded(str(tiny_model_dir()), args=config, train_dataset=tasks(), environment_factory=Corridor)
    trainer.train()
    files = sorted(path.name for path in (tmp_path / "trajectories").iterdir())
    assert files == ["step_000001.parquet", "step_000003.parquet"]
    records = load_records(tmp_path / "trajectories")
    assert [(r["step"], r["group"], r["sample"]) for r in records] == [
        (step, group, sample) for step in (1, 3) for group in range(2) for sample in range(4)
    ]
    credited = 0.0
    for record, advantages in zip(records, [*seen[0], *seen[2]], strict=True):
        turns = record["turns"]
        assert [turn["advantage"] for turn in turns] == pytest.approx(advantages[: len(turns)].tolist())
        credited += sum(abs(turn["advantage"]) for turn in turns)
        for turn, following in zip(turns, [*turns[1:], {"return": 0.0}], strict=True):
            assert turn["return"] == pytest.approx(turn["reward"] + 0.5 * following["return"])
            assert (turn["clip_low"], turn["clip_high"]) == (0.75, 1.25)
            assert (turn["ratio"], turn["clipped"]) == (1.0, 0.0)  # one update a generation
            assert turn["information_gain"] is None
    assert credited > 1
    by_state: dict[tuple[int, str], list[dict[str, float]]] = {}
    for record in records[:8]:
        for turn in record["turns"]:
            by_state.setdefault((record["group"], turn["anchor_state"]), []).append(turn)
    for visits in by_state.values():
        mean = sum(turn["return"] for turn in visits) / len(visits)
        assert [turn["value"] for turn in visits] == pytest.approx([mean] * len(visits), abs=1e-6)


def test_the_ratio_of_a_turn_is_that_of_its_last_use(tiny_model_dir: Callable[..., Path], tmp_path: Path):
    config = small_config(
        GAGPOConfig, tmp_path, save_trajectories_steps=1, max_steps=2, num_iterations=2, epsilon=1e-4
    )
    trainer = GAGPOTrainer(str(tiny_model_dir()), args=config, train_dataset=tasks(), environment_factory=Corridor)
    trainer.train()
    files = sorted(path.name for path in (tmp_path / "trajectories").iterdir())
    assert files == ["step_000001.parquet"]  # the second update trains on the same rollouts
    turns = [turn for record in load_records(tmp_path / "trajectories") for turn in record["turns"]]
    outside = [turn for turn in turns if abs(turn["ratio"] - 1) > 1e-4]
    assert outside, "the first update has moved the policy"
    for turn in turns:
        stops = turn["ratio"] > turn["clip_high"] if turn["advantage"] > 0 else turn["ratio"] < turn["clip_low"]
        assert turn["clipped"] == (turn["advantage"] != 0 and stops)
    assert 0 < sum(turn["clipped"] for turn in turns) < len(turns)


def test_of_several_generations_in_an_update_the_first_is_saved(tiny_model_dir: Callable[..., Path], tmp_path: Path):
    sizes = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "steps_per_generation": 1}
    config = small_config(GAGPOConfig, tmp_path, save_trajectories_steps=1, max_steps=1, **sizes)
    trainer = GAGPOTrainer(str(tiny_model_dir()), args=config, train_dataset=tasks(), environment_factory=Corridor)
    trainer.train()
    records = load_records(tmp_path / "trajectories")
    assert [(record["step"], record["group"]) for record in records] == [(1, 0)] * 4
    assert all(turn["ratio"] == 1.0 for record in records for turn in record["turns"])


class Fragile(Corridor):
    """Fails at an action whose length is a multiple of 3."""

    def step(self, action: str) -> StepResult:
        if action and len(action) % 3 == 0:
            raise OSError("no way back")
        return super().step(action)


def test_a_failed_rollout_is_saved_without_credit(tiny_model_dir: Callable[..., Path], tmp_path: Path):
    config = small_config(AgenticGRPOConfig, tmp_path, save_trajectories_steps=1, max_steps=1)
    trainer = AgenticGRPOTrainer(
        str(tiny_model_dir()), args=config, train_dataset=tasks(), environment_factory=Fragile
    )
    trainer.train()
    records = load_records(tmp_path / "trajectories")
    failed = [record for record in records if record["error"]]
    assert failed and len(failed) < len(records) == 8
    assert all(turn["advantage"] is None for record in failed for turn in record["turns"])
    assert all(turn["advantage"] is not None for r in records if not r["error"] for turn in r["turns"])


def test_nothing_is_saved_by_default(tiny_model_dir: Callable[..., Path], tmp_path: Path):
    config = small_config(GAGPOConfig, tmp_path, max_steps=1)
    GAGPOTrainer(str(tiny_model_dir()), args=config, train_dataset=tasks(), environment_factory=Corridor).train()
    assert not (tmp_path / "trajectories").exists()
    with pytest.raises(ValueError, match="`save_trajectories_steps` must be at least 0, got -1"):
        small_config(AgenticConfig, tmp_path, save_trajectories_steps=-1)


def test_the_saved_clip_range_of_a_turn_includes_its_factor(tiny_model_dir: Callable[..., Path], tmp_path: Path):
    class Wide(GAGPOTrainer):
        def turn_clip_scales(self, batch: TurnBatch) -> torch.Tensor:
            return 1.0 + torch.arange(batch.rewards.shape[1]).expand_as(batch.rewards)

    config = small_config(GAGPOConfig, tmp_path, save_trajectories_steps=1, max_steps=1, epsilon=0.25)
    trainer = Wide(str(tiny_model_dir()), args=config, train_dataset=tasks(), environment_factory=Corridor)
    trainer.train()
    for record in load_records(tmp_path / "trajectories"):
        for k, turn in enumerate(record["turns"], start=1):
            assert (turn["clip_low"], turn["clip_high"]) == (1 - 0.25 * k, 1 + 0.25 * k)
