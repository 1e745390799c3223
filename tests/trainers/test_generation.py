"""The generation pipeline: turns of a batch, their credit, and rollouts that the hooks of an algorithm complete."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.toys import Corridor
from tests.trainers.small import small_config, tasks
from trl_agentic import AgenticConfig, GAGPOConfig, GAGPOTrainer
from trl_agentic.rollout.engines import Engine
from trl_agentic.trainers.generation import GenerationPipeline, Position
from trl_agentic.trainers.objective import PolicyObjective
from trl_agentic.types import StopReason, Trajectory, Turn, TurnBatch


class Algorithm:
    """The hooks that credit needs. An advantage is ten times the reward."""

    def __init__(self, scales: Tensor | None = None):
        self.scales = scales
        self.calls: list[str] = []

    def turn_advantages(self, batch: TurnBatch) -> Tensor:
        self.calls.append("advantages")
        return 10 * batch.rewards

    def turn_clip_scales(self, batch: TurnBatch) -> Tensor | None:
        self.calls.append("scales")
        return self.scales

    def turn_diagnostics(self, batch: TurnBatch) -> dict[str, Tensor]:
        self.calls.append("diagnostics")
        return {"value": -batch.rewards}


def pipeline(output_dir: Path, algorithm: Any = None, **changes: Any) -> GenerationPipeline:
    """A pipeline that plays nothing."""
    args = small_config(AgenticConfig, output_dir, per_device_train_batch_size=4, num_generations=2, **changes)
    objective = PolicyObjective("dapo", "token", epsilon_low=0.2, epsilon_high=0.4)
    unused: Any = None
    return GenerationPipeline(
        args, algorithm or Algorithm(), unused, unused, unused, unused, unused, unused, objective, unused, unused,
        unused, lambda: Position(0, 0, 3, True),
    )  # fmt: skip


def rollout(*valid: bool, reason: StopReason = StopReason.TERMINATED) -> Trajectory:
    """A turn for each flag, with a reward of 1; an invalid action is reported as such."""
    turns = [
        Turn([1], [2], None, "go", f"cell {k}", f"cell {k}", reward=1.0, info={"is_action_valid": flag})
        for k, flag in enumerate(valid)
    ]
    return Trajectory({}, turns, reason)


PLAYED = [rollout(True, False), rollout(True), rollout(False, True, reason=StopReason.ERROR), rollout(False)]


def test_a_failed_rollout_has_no_turns(tmp_path: Path):
    batch = pipeline(tmp_path).turn_batch("train", PLAYED, None)
    assert batch.turn_mask.tolist() == [[True, True], [True, False], [False, False], [True, False]]
    assert batch.rewards.tolist() == [[1.0, 1.0], [1.0, 0.0], [0.0, 0.0], [1.0, 0.0]]
    assert batch.group_ids.tolist() == [0, 0, 1, 1]


def test_group_sizes_of_an_evaluation_may_differ(tmp_path: Path):
    own = pipeline(tmp_path, num_generations_eval=4)
    assert own.turn_batch("eval", PLAYED, None).group_ids.tolist() == [0, 0, 0, 0]
    assert pipeline(tmp_path).turn_batch("eval", PLAYED, None).group_ids.tolist() == [0, 0, 1, 1]


def test_penalties_are_separate_or_part_of_the_rewards(tmp_path: Path):
    separate = pipeline(tmp_path, invalid_action_penalty=0.25).turn_batch("train", PLAYED, None)
    assert separate.penalties.tolist() == [[0.0, 0.25], [0.0, 0.0], [0.0, 0.0], [0.25, 0.0]]
    assert separate.rewards[0].tolist() == [1.0, 1.0]
    together = pipeline(tmp_path, invalid_action_penalty=0.25, penalty_in_return=True)
    batch = together.turn_batch("train", PLAYED, None)
    assert batch.penalties is None
    assert batch.rewards.tolist() == [[1.0, 0.75], [1.0, 0.0], [0.0, 0.0], [0.75, 0.0]]
    assert PLAYED[0].turns[1].reward == 1.0


def test_information_gains_of_a_failed_rollout_are_left_out(tmp_path: Path):
    gains = [[0.5, torch.nan], [0.25], [7.0, 7.0], [-0.5]]
    batch = pipeline(tmp_path).turn_batch("train", PLAYED, gains)
    known = batch.information_gain[batch.turn_mask].nan_to_num(99.0)
    assert known.tolist() == [0.5, 99.0, 0.25, -0.5]
    assert not (batch.information_gain == 7.0).any()
    assert pipeline(tmp_path).turn_batch("train", PLAYED, None).information_gain is None


def test_credit_comes_from_the_hooks_each_called_once(tmp_path: Path):
    scales = torch.tensor([[1.0, 2.0], [0.5, 1.0], [1.0, 1.0], [1.0, 1.0]])
    algorithm = Algorithm(scales)
    own = pipeline(tmp_path, algorithm)
    batch = own.turn_batch("train", PLAYED, [[0.5, 0.5], [0.25], [], [-0.5]])
    credit = own.credit(batch)
    assert torch.equal(credit.advantages, 10 * batch.rewards) and credit.clip_scales is scales
    assert credit.diagnostics == {} and algorithm.calls == ["advantages", "scales"]
    columns = own.credit(batch, with_diagnostics=True).diagnostics
    assert columns.keys() == {"clip_low", "clip_high", "information_gain", "value"}
    torch.testing.assert_close(columns["clip_low"], 1 - 0.2 * scales)
    torch.testing.assert_close(columns["clip_high"], 1 + 0.4 * scales)
    assert torch.equal(columns["value"], -batch.rewards)
    plain = pipeline(tmp_path)
    columns = plain.credit(plain.turn_batch("train", PLAYED, None), with_diagnostics=True).diagnostics
    assert columns.keys() == {"clip_low", "clip_high", "value"}
    torch.testing.assert_close(columns["clip_low"], torch.full((4, 2), 0.8))


def test_the_shape_of_a_generation(tmp_path: Path):
    own = pipeline(tmp_path, num_iterations=3, gradient_accumulation_steps=2)
    assert own.steps_between_generations == 6 and own.shape == (4, 2, 2, 3)


@pytest.mark.parametrize("training", [True, False])
def test_rollouts_that_the_engine_completes_are_the_ones_that_get_credit(
    training: bool, tiny_model_dir: Callable[..., Path], tmp_path: Path
):
    played: list[Trajectory] = []
    seen: list[list[Trajectory]] = []

    class Completing(GAGPOTrainer):
        def ask_engine(self, engine: Engine, trajectories: list[Trajectory]) -> list[Trajectory]:
            played.extend(trajectories)
            return [replace(trajectory, answer_logprobs=[float(i)]) for i, trajectory in enumerate(trajectories)]

        def information_gains(self, rows: Any, trajectories: list[Trajectory]) -> None:
            seen.append(trajectories)

    args = small_config(GAGPOConfig, tmp_path)
    trainer = Completing(str(tiny_model_dir()), args=args, train_dataset=tasks(), environment_factory=Corridor)
    trainer.model.train(training)
    trajectories, credit = trainer.generation.scored_rollouts([{"length": 2}] * 8)
    assert [trajectory.answer_logprobs for trajectory in trajectories] == [[float(i)] for i in range(8)]
    assert seen == [trajectories]
    assert all(trajectory.answer_logprobs is None for trajectory in played)
    assert credit.advantages.shape == (8, max(len(trajectory.turns) for trajectory in trajectories))
