"""Metrics of episodes and tokens since the last log, worked out by hand."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import pytest
import torch

from trl_agentic.trainers.tracking import EpisodeTracker, advantage_metrics, episode_metrics, summarize
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


def test_metrics_that_no_environment_reports_are_not_logged():
    assert not {"episode/success", "episode/score"} & episode_metrics([summarize(rollout())]).keys()
    assert "episode/return" not in episode_metrics([summarize(rollout(StopReason.ERROR))])


# The tracker, on top of TRL's containers


def tracker() -> tuple[EpisodeTracker, dict[str, Any], dict[str, list[Any]], dict[str, list[float]]]:
    """A tracker, TRL's logs, and the columns and metrics that reward functions add."""
    logs: dict[str, Any] = {name: [] for name in ("prompt", "completion", "advantages")}
    logs |= {"rewards": defaultdict(list), "extra": defaultdict(list)}
    columns: dict[str, list[Any]] = {}
    metrics: dict[str, list[float]] = {}
    modes: dict[str, Any] = {"train": defaultdict(list), "eval": defaultdict(list)}
    return EpisodeTracker(modes, logs, columns, metrics), logs, columns, metrics


def test_token_metrics_are_means_over_all_tokens_since_the_last_log():
    """(1 + 3) / 2 tokens and 8 / 1 token: the mean over tokens is 4, not that of the two means, 5."""
    own, *_ = tracker()
    own.record_tokens("train", {"entropy": torch.tensor([[1.0, 3.0, 99.0]])}, torch.tensor([[1, 1, 0]]))
    own.record_tokens("train", {"entropy": torch.tensor([[8.0]])}, torch.tensor([[1]]))
    own.record_tokens("eval", {"entropy": torch.tensor([[5.0]])}, torch.tensor([[0]]))
    assert own.summarise("train")["entropy"] == [4.0]
    assert own.summarise("eval")["entropy"] == [0.0]  # no token was trained on
    own.record_tokens("train", {"entropy": torch.tensor([[2.0]])}, torch.tensor([[1]]))
    assert own.summarise("train")["entropy"] == [2.0]


def test_episodes_are_averaged_over_all_batches_since_the_last_log():
    own, logs, *_ = tracker()
    advantages, mask = torch.tensor([[1.0, 3.0], [5.0, 9.0]]), torch.tensor([[True, True], [True, False]])
    own.record_episodes("train", [rollout(success=True), rollout(success=True)], advantages, mask)
    own.record_episodes("train", [rollout(success=False)], advantages[:1], mask[:1])
    assert logs["advantages"] == [2.0, 5.0, 2.0]  # the mean over a rollout's turns
    assert own.summarise("train")["episode/success"] == [pytest.approx(2 / 3)]
    own.record_episodes("train", [rollout(success=False)], advantages[:1], mask[:1])
    assert own.summarise("train")["episode/success"] == [0.0]


def test_rollouts_that_only_fill_the_last_batch_of_an_evaluation_do_not_count():
    own, *_ = tracker()
    played = [rollout(success=True), rollout(success=False), rollout(success=True)]
    own.record_episodes("eval", played, torch.zeros(3, 2), torch.ones(3, 2))
    assert [summary.success for summary in own.evaluated_episodes(None)] == [True, False, True]
    assert [summary.success for summary in own.evaluated_episodes(2)] == [True, False]
    assert own.summarise("eval")["episode/success"] == [0.5]
    assert own.evaluated_episodes(None) == []


def test_columns_and_metrics_of_reward_functions_are_logged_once():
    own, logs, columns, metrics = tracker()
    columns["length"], metrics["mean"] = [3, 4], [1.0, 2.0]
    own.record_completions("train", ["p0", "p1"], ["c0", "c1"])
    assert (logs["prompt"], logs["completion"]) == (["p0", "p1"], ["c0", "c1"])
    assert logs["extra"] == {"length": [3, 4]} and own.metrics["train"]["mean"] == [1.5]
    assert not columns and not metrics
    own.record_completions("train", ["p2"], ["c2"])
    assert logs["extra"] == {"length": [3, 4]} and own.metrics["train"]["mean"] == [1.5]


def test_the_engine_mismatch():
    own, *_ = tracker()
    own.record_engine_mismatch("train", None)
    assert not own.metrics["train"]
    own.record_engine_mismatch("train", (0.25, 6.0, 4.0))  # largest difference, sum of weights, tokens
    assert own.metrics["train"] == {
        "sampling/sampling_logp_difference/max": [0.25],
        "sampling/importance_sampling_ratio/mean": [1.5],
    }


def test_advantages():
    """-2, 0, 0, 4: mean 0.5, mean square 5."""
    metrics = advantage_metrics(torch.tensor([-2.0, 0.0, 0.0, 4.0]))
    assert metrics["turns/advantage_std"] == pytest.approx((5 - 0.25) ** 0.5)
    assert (metrics["turns/advantage_abs_mean"], metrics["turns/advantage_abs_gt_1"]) == (1.5, 0.5)
    assert advantage_metrics(torch.zeros(0)) == {}
