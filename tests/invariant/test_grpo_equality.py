"""With episodes of one turn AgenticGRPOTrainer is TRL's GRPOTrainer: same ids and rewards, same losses and weights.

Both run plain gradient descent: Adam would turn rounding in a near-zero gradient into a step of full size.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from trl import GRPOConfig, GRPOTrainer

from tests.toys import OneTurn, one_turn_reward
from tests.trainers.small import history, parameters, small_config
from trl_agentic import AgenticGRPOConfig, AgenticGRPOTrainer, StepResult, Trajectory
from trl_agentic.rollout.engines import Engine


ONE_TURN = {"max_turns": 1, "max_turn_tokens": 9, "max_completion_length": 9}
QUESTIONS = ["Say a word.", "What is 2 + 3?", "Name a colour, please: it may be any.", "Why?", "Go.", "And then?"]
LOGGED = ("loss", "grad_norm", "reward", "entropy", "num_tokens")


def rows() -> Dataset:
    return Dataset.from_list([{"prompt": [{"role": "user", "content": question}]} for question in QUESTIONS])


class Exact(OneTurn):
    """Pays multiples of 1/8, whose means have no rounding: TRL's advantages in a group of equal rewards are then 0."""

    def step(self, action: str) -> StepResult:
        return StepResult("", reward=eighths(action), terminated=True)


def eighths(action: str) -> float:
    return round(7 * one_turn_reward(action)) / 8


def reward(completions: list[Any], **kwargs: Any) -> list[float]:
    return [eighths(completion[0]["content"]) for completion in completions]


class Recording(AgenticGRPOTrainer):
    """Remembers the ids of every batch that it sampled."""

    def ask_engine(self, engine: Engine, trajectories: list[Trajectory]) -> list[Trajectory]:
        sampled = [(t.turns[0].prompt_ids, t.turns[0].action_ids) for t in trajectories]
        self.sampled = [*getattr(self, "sampled", []), sampled]
        return trajectories


class Replaying(GRPOTrainer):
    """TRL's trainer, which replays recorded samples."""

    sampled: list[list[tuple[list[int], list[int]]]]

    def _generate_single_turn(self, prompt_ids: list[list[int]], *args: Any, **kwargs: Any) -> Any:
        batch = self.sampled.pop(0)
        assert [prompt for prompt, _ in batch] == prompt_ids
        return [list(ids) for _, ids in batch], None


def compare(model: Path, output_dir: Path, **changes: Any) -> tuple[AgenticGRPOTrainer, GRPOTrainer]:
    """Trains both, TRL's on the ids that ours sampled, and checks that they do the same."""
    changes = {"optim": "sgd", "learning_rate": 0.05, **changes}
    args = small_config(AgenticGRPOConfig, output_dir / "ours", **ONE_TURN, **changes)
    ours = Recording(str(model), args=args, train_dataset=rows(), environment_factory=Exact)
    ours.train()

    changes = changes | as_trl_calls_it(changes)
    names = GRPOConfig.__dataclass_fields__
    plain = {name: value for name, value in small_options(output_dir / "theirs", changes).items() if name in names}
    theirs = Replaying(str(model), reward, GRPOConfig(**plain), rows())
    theirs.sampled = list(ours.sampled)
    theirs.train()

    assert theirs.sampled == []
    keys = [*LOGGED, *(["kl"] if changes.get("beta") else [])]
    if changes.get("importance_sampling_level") != "sequence":  # of which TRL counts sequences, and we count tokens
        keys += ["clip_ratio/low_mean", "clip_ratio/high_mean", "clip_ratio/region_mean"]
    for key in keys:
        assert history(ours, key) == pytest.approx(history(theirs, key), rel=1e-4, abs=1e-6), key
    for (name, left), right in zip(parameters(ours).items(), parameters(theirs).values(), strict=True):
        torch.testing.assert_close(left, right, rtol=1e-5, atol=1e-6, msg=lambda text, name=name: f"{name}: {text}")
    return ours, theirs


def as_trl_calls_it(changes: dict[str, Any]) -> dict[str, Any]:
    """An episode of one turn is a sequence: a ratio or a mean over a turn is one over a sequence."""
    names = {"importance_sampling_level": {"turn": "sequence"}, "loss_type": {"turn": "grpo"}}
    return {name: known[changes[name]] for name, known in names.items() if changes.get(name) in known}


def small_options(output_dir: Path, changes: dict[str, Any]) -> dict[str, Any]:
    config = small_config(AgenticGRPOConfig, output_dir, **ONE_TURN)
    shared = (
        "output_dir use_cpu bf16 report_to disable_tqdm save_strategy logging_steps max_steps learning_rate "
        "lr_scheduler_type per_device_train_batch_size num_generations max_completion_length"
    )
    return {name: getattr(config, name) for name in shared.split()} | changes


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"beta": 0.1},
        {"beta": 0.1, "num_iterations": 2, "max_steps": 4},
        {"loss_type": "grpo", "scale_rewards": "batch", "beta": 0.05},
        {"loss_type": "dr_grpo", "scale_rewards": "none"},
        {"loss_type": "bnpo", "num_iterations": 2, "epsilon": 1e-3, "max_steps": 4},
        {"importance_sampling_level": "sequence", "loss_type": "grpo", "num_iterations": 2, "epsilon": 1e-5},
        {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "beta": 0.1},
        {"per_device_train_batch_size": 4, "steps_per_generation": 2, "beta": 0.1, "max_steps": 4},
        {"pad_to_multiple_of": 8, "temperature": 0.7},
        # Ratio levels and loss types that only this package has, under TRL's names for episodes of one turn.
        {"importance_sampling_level": "turn", "loss_type": "turn", "beta": 0.1, "num_iterations": 2, "max_steps": 4},
        {"importance_sampling_level": "turn", "loss_type": "dapo", "num_iterations": 2, "epsilon": 1e-5},
        {"importance_sampling_level": "turn", "loss_type": "grpo", "beta": 0.1, "use_bias_correction_kl": False},
        {"importance_sampling_level": "token", "loss_type": "turn", "beta": 0.1, "num_iterations": 2, "epsilon": 0.01},
        {
            "importance_sampling_level": "turn",
            "loss_type": "dapo",
            "beta": 0.1,
            "per_device_train_batch_size": 4,
            "steps_per_generation": 2,
            "epsilon_high": 0.001,
            "max_steps": 4,
        },
    ],
    ids=lambda changes: "-".join(f"{k}={v}" for k, v in changes.items()) or "default",
)
def test_the_same_losses_and_weights(changes: dict[str, Any], model_dir: Path, tmp_path: Path):
    ours, _ = compare(model_dir, tmp_path, **changes)
    assert len(history(ours, "loss")) == changes.get("max_steps", 3)
    assert max(map(abs, history(ours, "grad_norm"))) > 1e-3  # they agree about something
    if "epsilon" in changes:
        assert max(history(ours, "clip_ratio/region_mean")) > 0


def test_the_comparison_can_fail(model_dir: Path, tmp_path: Path):
    """Another scale of the rewards is another run."""

    class Unscaled(Recording):
        def turn_advantages(self, batch: Any) -> torch.Tensor:
            return 1.01 * super().turn_advantages(batch)

    losses = []
    for trainer_class in (Recording, Unscaled):
        config = small_config(AgenticGRPOConfig, tmp_path, num_iterations=2, **ONE_TURN)
        trainer = trainer_class(str(model_dir), args=config, train_dataset=rows(), environment_factory=Exact)
        trainer.train()
        losses.append(history(trainer, "grad_norm"))
    assert losses[0] != pytest.approx(losses[1], rel=1e-4, abs=1e-6)
