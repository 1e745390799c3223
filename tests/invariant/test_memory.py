"""Memory of an update: bounded by the budget of tokens in a window, by the longest rollout without one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.trainers.small import small_config
from trl_agentic import GAGPOConfig, GAGPOTrainer
from trl_agentic.environments import ALFWorldEnv
from trl_agentic.environments.alfworld import ALFWorldPrompt


BUDGET = 1600


class Measured(GAGPOTrainer):
    """Counts, in each update, the positions of the largest forward pass and the bytes kept for the backward pass."""

    positions = kept = rows = 0

    def _compute_loss(self, model: Any, inputs: Any) -> torch.Tensor:
        self.positions = max(self.positions, inputs["prompt_ids"].numel() + inputs["completion_ids"].numel())
        self.rows += len(inputs["prompt_ids"])
        kept: dict[int, int] = {}

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            loss = super()._compute_loss(model, inputs)
        self.kept = max(self.kept, sum(kept.values()))
        return loss


def update(model: Path, output_dir: Path, turns: int, **changes: Any) -> tuple[Measured, int]:
    """One update on ALFWorld games of `turns` steps, and the tokens of the longest rollout, each counted once."""
    args = small_config(
        GAGPOConfig, output_dir, per_device_train_batch_size=2, num_generations=2, max_steps=1, max_turns=turns,
        max_turn_tokens=4, max_completion_length=10**6, **changes,
    )  # fmt: skip
    renderer = ALFWorldPrompt("plain") if args.context == "window" else None
    trainer = Measured(
        str(model), args=args, environment_factory=lambda: ALFWorldEnv(num_games=2, action_format="plain"),
        prompt_renderer=renderer,
    )  # fmt: skip
    lengths: list[int] = []
    play = trainer.runner.play

    def recorded(*args: Any, **kwargs: Any) -> Any:
        trajectories = play(*args, **kwargs)
        for t in trajectories:
            assert len(t.turns) == turns
            texts = [turn.observation for turn in t.turns]
            lengths.append(sum(len(trainer.chat.encode_data(text)) for text in texts))
        return trajectories

    trainer.runner.play = recorded  # type: ignore[method-assign]
    trainer.train()
    return trainer, max(lengths)


@pytest.mark.slow
def test_fifty_steps_of_alfworld_in_a_window(tiny_model_dir: Callable[..., Path], tmp_path: Path):
    model = tiny_model_dir("qwen3", max_position_embeddings=32768)
    window = {"context": "window", "max_context_length": BUDGET, "max_tokens_per_micro_batch": BUDGET}
    short, _ = update(model, tmp_path, 10, **window)
    long, tokens = update(model, tmp_path, 50, **window)
    assert tokens > 5 * BUDGET
    assert long.rows == 2 * 50 and short.rows == 2 * 10
    assert BUDGET / 4 < short.positions <= BUDGET and long.positions <= BUDGET
    assert long.kept < 1.5 * short.kept  # five times the steps
    # The full history keeps what its longest rollout needs.
    full, tokens = update(model, tmp_path, 10)
    assert full.positions > 2 * tokens and full.kept > 3 * short.kept
