"""Numbers of a batch of rollouts, worked out by hand."""

from __future__ import annotations

from typing import Any

from trl_agentic.trainers.tracking import episode_metrics, summarize
from trl_agentic.types import StopReason, Trajectory, Turn


def rollout(reason: StopReason = StopReason.TERMINATED, success: bool | None = None, **info: Any) -> Trajectory:
    turns = [Turn([1], [2, 3], None, "go", "here", "here", reward=0.5, info=info) for _ in range(2)]
    return Trajectory({"game": 1}, turns, reason, success=success)


def test_a_cut_rollout_is_no_success_and_a_failed_one_is_left_out():
    rollouts = [
        rollout(success=True, score=1.0, task_type="Pick"),
        rollout(success=False, score=0.5, task_type="Heat", is_action_valid=False),
        rollout(StopReason.ROLLOUT_LENGTH, task_type="Pick"),
        rollout(StopReason.ERROR, success=True, score=1.0),
    ]
    metrics = episode_metrics([summarize(one) for one in rollouts])
    assert metrics["episode/success"] == 1 / 3
    assert metrics["episode/score"] == 1.5 / 3
    assert (metrics["episode/success_Pick"], metrics["episode/success_Heat"]) == (1 / 2, 0.0)
    assert (metrics["episode/return"], metrics["episode/turns"], metrics["episode/tokens"]) == (1.0, 2.0, 4.0)
    assert metrics["episode/invalid_frac"] == 2 / 6
    assert (metrics["episode/stop_error"], metrics["episode/stop_terminated"]) == (1 / 4, 2 / 4)


def test_what_no_environment_tells_is_not_logged():
    assert not {"episode/success", "episode/score"} & episode_metrics([summarize(rollout())]).keys()
    assert "episode/return" not in episode_metrics([summarize(rollout(StopReason.ERROR))])
