"""The batch builder without a trainer: normalisers by hand, accumulation steps, and the order of training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.trainers.small import small_config
from trl_agentic import AgenticConfig
from trl_agentic.trainers.batches import BatchBuilder, MicroBatch, TurnCredit
from trl_agentic.types import StopReason, Trajectory, Turn


CPU = torch.device("cpu")


def rollout(
    *actions: int, reason: StopReason = StopReason.TERMINATED, error: str | None = None, extends: bool = True
) -> Trajectory:
    """A rollout whose turns have these numbers of sampled tokens, each after a prompt of two tokens."""
    turns = [
        Turn([7, 8], list(range(10, 10 + tokens)), None, "go", "here", "here", extends=extends and k > 0)
        for k, tokens in enumerate(actions)
    ]
    return Trajectory({}, turns, reason, error=error)


def builder(output_dir: Path, packs: bool = False, **changes: Any) -> BatchBuilder:
    args = small_config(AgenticConfig, output_dir, **changes)
    return BatchBuilder(args, 0, packs, has_logprobs=False, may_sort=True, max_context=500)


def credit(count: int, turns: int = 3) -> TurnCredit:
    """Advantage 10 i + k for turn k of rollout i."""
    advantages = 10.0 * torch.arange(count).unsqueeze(1) + torch.arange(turns)
    return TurnCredit(advantages, None, {})


def built(
    own: BatchBuilder, trajectories: list[Trajectory], mode: str = "train"
) -> tuple[list[list[MicroBatch]], int]:
    return own.build(mode, trajectories, credit(len(trajectories)), CPU)


def test_failed_empty_and_masked_rollouts_count_nowhere(tmp_path: Path):
    """Trained on: rollout 0 (3 + 1 tokens in 2 turns) and rollout 4 (2 tokens in a turn)."""
    played = [
        rollout(3, 1),
        rollout(5, reason=StopReason.ERROR, error="it broke"),
        rollout(reason=StopReason.CONTEXT_LENGTH),
        rollout(6, reason=StopReason.ROLLOUT_LENGTH),
        rollout(2),
    ]
    own = builder(tmp_path, mask_truncated_completions=True)
    [[batch]], tokens = built(own, played, "eval")
    assert (batch["num_rollouts_in_batch"], batch["num_turns_in_batch"], batch["num_items_in_batch"]) == (2, 3, 6)
    assert dict(zip(batch["rollout_ids"].tolist(), batch["rollout_tokens"].tolist(), strict=True)) == {
        0: 4, 1: 0, 2: 0, 3: 0, 4: 2,
    }  # fmt: skip
    assert batch["tool_mask"].sum() == 6
    assert tokens == (2 + 3 + 2 + 1) + (2 + 5) + 2 + (2 + 6) + (2 + 2)  # the empty one has a token and its stand-in
    [[batch]], _ = built(builder(tmp_path, mask_truncated_completions=False), played, "eval")
    assert (batch["num_rollouts_in_batch"], batch["num_turns_in_batch"], batch["num_items_in_batch"]) == (3, 4, 12)


def test_each_token_has_the_advantage_of_its_turn(tmp_path: Path):
    [[batch]], _ = built(builder(tmp_path), [rollout(3, 1), rollout(2)], "eval")
    rows = dict(zip(batch["rollout_ids"].tolist(), batch["advantages"], strict=True))
    assert rows[0].tolist() == [0.0, 0.0, 0.0, 0.0, 0.0, 1.0]  # turn 0, two observed tokens, turn 1
    assert rows[1].tolist() == [10.0, 10.0, 0.0, 0.0, 0.0, 0.0]
    assert "clip_scales" not in batch and "sampling_per_token_logps" not in batch


def test_each_accumulation_step_has_its_part_of_the_rollouts(tmp_path: Path):
    """Two updates of two accumulation steps share 8 rollouts, and each rollout is trained on once."""
    sizes = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "steps_per_generation": 4}
    own = builder(tmp_path, **sizes)
    assert own.updates_per_generation == 2
    steps, _ = built(own, [rollout(1 + i % 3) for i in range(8)])
    assert len(steps) == 4 and all(len(step) == 1 for step in steps)
    seen = [batch["rollout_ids"].tolist() for step in steps for batch in step]
    assert all(len(rollouts) == 2 for rollouts in seen) and sorted(sum(seen, [])) == list(range(8))
    assert all(batch["num_micro_batches"] == 1 for step in steps for batch in step)


def test_the_order_of_training_is_random_and_that_of_evaluation_is_not(tmp_path: Path):
    sizes = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 1, "steps_per_generation": 2}
    played = [rollout(2) for _ in range(8)]
    own = builder(tmp_path, per_device_eval_batch_size=8, **sizes)
    orders = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        steps, _ = built(own, played)
        orders.append([sorted(batch["rollout_ids"].tolist()) for step in steps for batch in step])
    assert orders[0] == orders[1] != orders[2]
    torch.manual_seed(0)
    first = torch.randperm(8)[:4].tolist()
    assert orders[0][0] == sorted(first)  # as TRL shuffles
    [[batch]], _ = built(own, played, "eval")
    assert batch["rollout_ids"].tolist() == list(range(8))


def test_a_micro_batch_holds_at_most_its_budget_of_tokens(tmp_path: Path):
    """Lengths 4, 8, 4, 8 and a budget of 16 positions: two of a length, padding included."""
    own = builder(tmp_path, max_tokens_per_micro_batch=16, per_device_train_batch_size=4)
    played = [rollout(2), rollout(6), rollout(2), rollout(6)]
    [step], tokens = built(own, played)
    sizes = [batch["prompt_ids"].numel() + batch["completion_ids"].numel() for batch in step]
    assert max(sizes) <= 16 and sum(sizes) == tokens == 24
    assert sorted(i for batch in step for i in batch["rollout_ids"].tolist()) == [0, 1, 2, 3]
    assert all(batch["num_micro_batches"] == len(step) for batch in step)
    assert all(batch["num_items_in_batch"] == 16 for batch in step)  # of the generation, not of the micro-batch


def test_a_sequence_longer_than_the_budget(tmp_path: Path):
    own = builder(tmp_path, max_tokens_per_micro_batch=7, per_device_train_batch_size=4)
    message = (
        "`max_tokens_per_micro_batch` is 7, but a training sequence has 8 tokens. Set it to at least 8, or to 500"
    )
    with pytest.raises(ValueError, match=message):
        built(own, [rollout(2), rollout(6)])


def test_turns_that_do_not_extend_one_another_are_sequences_of_their_own(tmp_path: Path):
    [[batch]], _ = built(builder(tmp_path), [rollout(2, 3, extends=False), rollout(1)], "eval")
    turns = [
        (rollout, sorted(set(row) - {-1}))
        for rollout, row in zip(batch["rollout_ids"].tolist(), batch["turn_ids"].tolist(), strict=True)
    ]
    assert sorted(turns) == [(0, [0]), (0, [1]), (1, [0])]
    assert (batch["num_rollouts_in_batch"], batch["num_turns_in_batch"], batch["num_items_in_batch"]) == (2, 3, 6)
    assert sorted(batch["rollout_tokens"].tolist()) == [1, 5, 5]
