"""Rows of trajectories, with masks written out by hand."""

from __future__ import annotations

import pytest

from trl_agentic.batching.rows import TrainingSequence, trajectory_sequences
from trl_agentic.types import Trajectory, Turn


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
