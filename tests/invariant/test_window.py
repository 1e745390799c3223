"""Rows of a windowed rollout train as its turns do: however turns share rows, the loss and the update are the same."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.invariant.partitions import Partitions, gradients, use_loss
from tests.invariant.test_micro_batches import LOSSES, TASKS, trainer_of
from tests.trainers.small import history, parameters
from trl_agentic.batching.micro_batches import cut_by_rows, cut_by_tokens
from trl_agentic.types import Trajectory


TURNS = {"max_turns": 5, "max_completion_length": 240}


def trained(model: Path, output_dir: Path, size: int = 8, cuts: int = 1, **changes: Any) -> tuple[Any, ...]:
    trainer = trainer_of(model, output_dir, size, cuts, **TURNS, **changes)
    trainer.train()
    logged = {key: history(trainer, key) for key in ("loss", "kl", "entropy", "episode/turns")}
    return history(trainer, "num_tokens"), logged, parameters(trainer)


def assert_same(actual: tuple[Any, ...], expected: tuple[Any, ...]) -> None:
    assert actual[0] == expected[0]
    for key, values in expected[1].items():
        assert actual[1][key] == pytest.approx(values, rel=1e-4, abs=1e-6), key
    for name, weight in expected[2].items():
        torch.testing.assert_close(actual[2][name], weight, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("loss_type", LOSSES)
def test_a_long_window_trains_as_the_full_history_does(loss_type: str, model_dir: Path, tmp_path: Path):
    changes = {"loss_type": loss_type, "num_iterations": 2, "beta": 0.1}
    full = trained(model_dir, tmp_path, max_tokens_per_micro_batch=4096, **changes)
    assert_same(trained(model_dir, tmp_path, context="window", history_length=9, **changes), full)
    shorter = trained(model_dir, tmp_path, context="window", history_length=0, **changes)
    assert shorter[1]["loss"] != pytest.approx(full[1]["loss"], rel=1e-4)


def test_any_cut_of_a_window_trains_the_same(model_dir: Path, tmp_path: Path):
    runs = [
        trained(
            model_dir, tmp_path, size, cuts, context="window", history_length=1, num_iterations=2, beta=0.1,
            max_context_length=200, max_tokens_per_micro_batch=budget,
        )
        for size, cuts, budget in [(8, 1, None), (2, 4, None), (8, 1, 4000), (4, 2, 200)]
    ]  # fmt: skip
    for run in runs[1:]:
        assert_same(run, runs[0])


def apart(trajectory: Trajectory) -> Trajectory:
    """The same turns with the same contexts, none of which extends another."""
    context: list[int] = []
    turns = []
    for turn in trajectory.turns:
        context = (context if turn.extends else []) + turn.prompt_ids
        turns.append(replace(turn, prompt_ids=context, extends=False))
        context = context + turn.action_ids
    return replace(trajectory, turns=turns)


def shift(batch: dict[str, Tensor]) -> Tensor:
    """A difference between the old and the trained policy that depends on a token and its turn, not on its place."""
    return 0.1 * torch.sin(batch["completion_ids"] + 7.0 * batch["turn_ids"] + batch["rollout_ids"][:, None])


@pytest.mark.parametrize("level", ["turn", "token"])
@pytest.mark.parametrize("context", [{}, {"context": "window", "history_length": 2}])
def test_turns_in_rows_of_their_own_give_the_same_gradient(
    context: dict[str, Any], level: str, model_dir: Path, tmp_path: Path
):
    """In double precision, but for norms and the head of the model. Rows are cut in several ways."""
    trainer = trainer_of(
        model_dir, tmp_path, 8, 1, importance_sampling_level=level, num_iterations=2, invalid_action_penalty=0.1,
        max_tokens_per_micro_batch=20_000, **TURNS, **context,
    )  # fmt: skip
    trainer.model.train()
    shared, _ = trainer.generation.scored_rollouts(TASKS)
    together = Partitions(trainer, trajectories=shared, shift=shift)
    alone = Partitions(trainer, trajectories=[apart(t) for t in shared], shift=shift)
    assert len(together) < len(alone) == sum(len(t.turns) for t in shared)
    trainer.model.double()
    lengths = alone.prepared.lengths
    cuts = [cut_by_rows(range(len(lengths)), 5), cut_by_tokens(range(len(lengths)), lengths, max(lengths))]
    for loss_type in LOSSES:
        use_loss(trainer, loss_type)
        expected = gradients(trainer, together, [list(range(len(together)))])
        assert max(gradient.abs().max() for gradient in expected) > 1e-4
        for cut in cuts:
            for actual, wanted in zip(gradients(trainer, alone, cut), expected, strict=True):
                torch.testing.assert_close(actual, wanted, rtol=1e-6, atol=2e-8)
