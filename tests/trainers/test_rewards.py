"""Scores of reward functions: added to the last turn of a copy, and logged. TRL's scoring is a function here."""

from __future__ import annotations

import copy
import math
from collections import defaultdict
from typing import Any

import pytest
import torch

from trl_agentic.trainers import rewards
from trl_agentic.trainers.rewards import RewardScorer, episode_return
from trl_agentic.trainers.tracking import EpisodeTracker
from trl_agentic.types import StopReason, Trajectory, Turn


def tracker() -> EpisodeTracker:
    modes: dict[str, Any] = {"train": defaultdict(list), "eval": defaultdict(list)}
    logs: dict[str, Any] = {name: [] for name in ("prompt", "completion", "advantages")}
    return EpisodeTracker(modes, logs | {"rewards": defaultdict(list), "extra": defaultdict(list)}, {}, {})


def rollout(*rewards: float, reason: StopReason = StopReason.TERMINATED, error: str | None = None) -> Trajectory:
    turns = [
        Turn([1], [2 + k], None, f"go {k}", f"cell {k}", f"cell {k}", reward=reward, extends=k > 0)
        for k, reward in enumerate(rewards)
    ]
    return Trajectory({"number": len(rewards)}, turns, reason, error=error)


def test_scores_are_added_to_the_last_turn_of_a_copy():
    """Two functions with weights 0.5 and -1; the environments' own return is the third and is not added again."""
    played = [rollout(0.0, 1.0), rollout(0.25)]
    before = copy.deepcopy(played)
    seen: list[Any] = []

    def calculate(inputs: list[Any], prompts: list[Any], completions: list[Any], ids: list[Any]) -> torch.Tensor:
        seen.append((inputs, prompts, completions, ids))
        own = episode_return([row["trajectory"] for row in inputs])
        return torch.tensor([[4.0, 1.0, own[0]], [math.nan, 3.0, own[1]]])

    own = tracker()
    scorer = RewardScorer(calculate, ["a", "b", "episode_return"], torch.tensor([0.5, -1.0, 1.0]), own)
    rows = [{"word": "x"}, {"word": "y"}]
    scored = scorer.score("train", rows, played, ["user", "tool"], first=0)
    assert played == before  # nothing changes a finished rollout
    assert [[turn.reward for turn in t.turns] for t in scored] == [[0.0, 1.0 + 0.5 * 4 - 1], [0.25 - 3.0]]
    [(inputs, prompts, completions, ids)] = seen
    assert [row["word"] for row in inputs] == ["x", "y"] and inputs[0]["trajectory"] is played[0]
    assert ids == [[2, 3], [2]] and len(prompts) == 2
    assert [message["role"] for message in completions[0]] == ["assistant", "user", "assistant"]
    metrics = own.summarise("train")
    assert metrics["rewards/a/mean"] == [4.0] and metrics["rewards/b/mean"] == [2.0]
    assert metrics["rewards/episode_return/mean"] == [0.625]
    totals = [2.0 - 1.0 + 1.0, -3.0 + 0.25]
    assert metrics["reward"] == [pytest.approx(sum(totals) / 2)]
    assert metrics["reward_std"] == [pytest.approx((totals[0] - totals[1]) / 2)]


def test_only_the_rollouts_of_this_process_get_their_scores(monkeypatch: pytest.MonkeyPatch):
    """Scores are of all processes. The two rollouts of this one start at index 1."""
    monkeypatch.setattr(rewards, "gather_object", lambda own: [False, *own])
    scores = torch.tensor([[9.0, 0.0], [1.0, 0.0], [2.0, 0.0]])
    scorer = RewardScorer(lambda *args: scores, ["a", "episode_return"], torch.tensor([1.0, 1.0]), tracker())
    scored = scorer.score("train", [{}] * 2, [rollout(0.0), rollout(0.5)], ["user"] * 2, first=1)
    assert [t.turns[-1].reward for t in scored] == [1.0, 2.5]


def test_failed_and_empty_rollouts_have_no_score():
    played = [rollout(1.0), rollout(1.0, reason=StopReason.ERROR, error="it broke"), rollout()]
    scores = torch.tensor([[2.0, 1.0], [5.0, 1.0], [7.0, 0.0]])
    own = tracker()
    scorer = RewardScorer(lambda *args: scores.clone(), ["a", "episode_return"], torch.tensor([1.0, 1.0]), own)
    scored = scorer.score("eval", [{}] * 3, played, ["user"] * 3, first=0)
    assert [[turn.reward for turn in t.turns] for t in scored] == [[3.0], [1.0], []]
    metrics = own.summarise("eval")
    assert metrics["rewards/a/mean"] == [2.0] and metrics["reward"] == [3.0] and metrics["reward_std"] == [0.0]
