"""Rows of trajectories, with masks written out by hand."""

from __future__ import annotations

import pytest
import torch
from trl.trainer.utils import shuffle_sequence_dict

from trl_agentic.batching.rows import (
    TrainingSequence,
    shuffle_order,
    training_sequences,
    trajectory_sequences,
    update_of_rollouts,
)
from trl_agentic.types import StopReason, Trajectory, Turn


def turn(
    prompt_ids: list[int], action_ids: list[int], logprobs: list[float] | None = None, extends: bool = True
) -> Turn:
    return Turn(prompt_ids, action_ids, logprobs, "go", "a room", "a room", extends=extends)


def test_a_rollout_with_the_full_history_is_one_row():
    trajectory = Trajectory(
        task={},
        turns=[
            turn([1, 2, 3], [10, 11], [-0.1, -0.2], extends=False),
            turn([4, 5], [12], [-0.3]),
            turn([6], [13, 14, 15], [-0.4, -0.5, -0.6]),
        ],
    )
    assert trajectory_sequences(trajectory, rollout=7) == [
        TrainingSequence(
            rollout=7,
            prompt_ids=[1, 2, 3],
            completion_ids=[10, 11, 4, 5, 12, 6, 13, 14, 15],
            turn_ids=[0, 0, -1, -1, 1, -1, 2, 2, 2],
            logprobs=[-0.1, -0.2, 0.0, 0.0, -0.3, 0.0, -0.4, -0.5, -0.6],
        )
    ]


def test_a_prompt_that_is_rendered_anew_begins_a_row():
    """Turns 0 and 1 extend one another, turn 2 begins anew, turn 3 extends it."""
    trajectory = Trajectory(
        task={},
        turns=[
            turn([1], [10], extends=False),
            turn([2], [11]),
            turn([1, 3], [12], extends=False),
            turn([4], [13, 14]),
        ],
    )
    assert trajectory_sequences(trajectory, rollout=0) == [
        TrainingSequence(rollout=0, prompt_ids=[1], completion_ids=[10, 2, 11], turn_ids=[0, -1, 1]),
        TrainingSequence(rollout=0, prompt_ids=[1, 3], completion_ids=[12, 4, 13, 14], turn_ids=[2, -1, 3, 3]),
    ]


def test_one_turn_is_all_mask():
    [row] = trajectory_sequences(Trajectory(task={}, turns=[turn([1, 2], [10, 11], [0.0, -1.0], extends=False)]), 3)
    assert row == TrainingSequence(3, [1, 2], [10, 11], [0, 0], [0.0, -1.0])


def test_the_first_turn_begins_a_row_whatever_it_says():
    [row] = trajectory_sequences(Trajectory(task={}, turns=[turn([1], [10])]), 0)
    assert row.prompt_ids == [1] and row.completion_ids == [10]


def test_no_turns_no_rows():
    assert trajectory_sequences(Trajectory(task={}), 0) == []


def test_an_action_without_tokens_keeps_its_number():
    trajectory = Trajectory(task={}, turns=[turn([1], [10], extends=False), turn([2], []), turn([3], [11])])
    [row] = trajectory_sequences(trajectory, 0)
    assert row.completion_ids == [10, 2, 3, 11] and row.turn_ids == [0, -1, -1, 2]


def test_the_trajectory_is_left_as_it_was():
    trajectory = Trajectory(task={}, turns=[turn([1], [10], [-1.0], extends=False), turn([2], [11], [-2.0])])
    before = repr(trajectory)
    [row] = trajectory_sequences(trajectory, 0)
    row.turn_ids[0] = row.completion_ids[0] = 99
    assert repr(trajectory) == before


def test_log_probabilities_of_some_turns_only_are_an_error():
    trajectory = Trajectory(task={}, turns=[turn([1], [10], [-1.0], extends=False), turn([2], [11])])
    with pytest.raises(ValueError, match="Turn 1 of rollout 4 has no log-probabilities"):
        trajectory_sequences(trajectory, 4)


LENGTH_STOPS = {StopReason.TURN_LENGTH, StopReason.ROLLOUT_LENGTH, StopReason.CONTEXT_LENGTH}


@pytest.mark.parametrize("mask_truncated", [False, True])
@pytest.mark.parametrize("reason", list(StopReason))
def test_rollouts_that_are_not_trained_on_keep_their_tokens(reason: StopReason, mask_truncated: bool):
    trajectory = Trajectory(task={}, turns=[turn([1], [10, 11], [-1.0, -2.0], extends=False)], stop_reason=reason)
    is_masked = reason is StopReason.ERROR or (mask_truncated and reason in LENGTH_STOPS)
    expected = TrainingSequence(3, [1], [10, 11], [-1, -1] if is_masked else [0, 0], [-1.0, -2.0])
    assert training_sequences(trajectory, 3, 99, mask_truncated, has_logprobs=True) == [expected]


@pytest.mark.parametrize(("has_logprobs", "logprobs"), [(True, [0.0]), (False, None)])
def test_a_rollout_without_turns_has_one_sequence_of_padding(has_logprobs: bool, logprobs: list[float] | None):
    sequences = training_sequences(Trajectory(task={}), 5, 99, False, has_logprobs)
    assert sequences == [TrainingSequence(5, [99], [99], [-1], logprobs)]


def test_counts_of_a_sequence():
    sequence = TrainingSequence(0, [1, 2, 3], [10, 4, 11, 12, 13], [0, -1, 1, 1, 4])
    assert (len(sequence), sequence.trained_tokens, sequence.trained_turns) == (8, 4, 3)
    masked = TrainingSequence(0, [1], [2, 3], [-1, -1])
    assert (len(masked), masked.trained_tokens, masked.trained_turns) == (3, 0, 0)


def test_the_order_is_that_of_trl():
    torch.manual_seed(4)
    positions = shuffle_order(9)
    torch.manual_seed(4)
    order = shuffle_sequence_dict({"rollout": list(range(9))})["rollout"]
    assert [order[position] for position in positions] == list(range(9))
    assert order != list(range(9)) and order != positions


def test_updates_divide_the_rollouts_of_a_process():
    assert update_of_rollouts([5, 0, 3, 2, 1, 4], per_process=6, updates=2) == [1, 0, 1, 0, 0, 1]
    assert update_of_rollouts([0, 1, 2, 3], per_process=4, updates=1) == [0, 0, 0, 0]
