"""Reward functions of the user, scored on finished rollouts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from accelerate.utils import gather_object
from torch import Tensor

from trl_agentic.rollout.prompts import completion_messages, prompt_messages
from trl_agentic.trainers.tracking import EpisodeTracker
from trl_agentic.types import Trajectory


def episode_return(trajectory: list[Trajectory], **kwargs: Any) -> list[float]:
    """Reward function of the environments: the undiscounted return of each rollout."""
    return [t.episode_return for t in trajectory]


class RewardScorer:
    """Scores finished rollouts and adds the result to the reward of their last turns.

    Args:
        calculate: TRL's `_calculate_rewards`: rows, prompts, completions and completion ids to scores (B, F) of all
            processes. The last function is [`episode_return`].
        names: names of the F reward functions.
        weights (`Tensor` of shape (F,)): weights of the functions.
        tracker: where scores are logged.
    """

    def __init__(
        self,
        calculate: Callable[[list[Any], list[Any], list[Any], list[Any]], Tensor],
        names: list[str],
        weights: Tensor,
        tracker: EpisodeTracker,
    ):
        self._calculate, self._names, self._weights, self._tracker = calculate, names, weights, tracker

    def score(
        self, mode: str, rows: list[dict[str, Any]], trajectories: list[Trajectory], roles: list[str], first: int
    ) -> list[Trajectory]:
        """Scores the rollouts of this process. Every process calls it together.

        Args:
            mode: `"train"` or `"eval"`.
            rows: dataset rows.
            trajectories: their rollouts.
            roles: role of the observations of each rollout.
            first: index of the first of these rollouts in the global batch.

        Returns:
            Trajectories whose last turn's reward includes the weighted scores of the user's functions.
        """
        prompts = [prompt_messages(t) for t in trajectories]
        completions = [completion_messages(t, role) for t, role in zip(trajectories, roles, strict=True)]
        ids = [[i for turn in t.turns for i in turn.action_ids] for t in trajectories]
        inputs = [{**row, "trajectory": t} for row, t in zip(rows, trajectories, strict=True)]
        scores = self._calculate(inputs, prompts, completions, ids)
        failed = torch.tensor(gather_object([t.error is not None or not t.turns for t in trajectories]))
        scores[failed.to(scores.device)] = torch.nan
        weighted = scores * self._weights.to(scores.device)
        total = weighted[~failed.to(weighted.device)].nansum(dim=1)
        self._tracker.record_rewards(mode, dict(zip(self._names, scores.unbind(1), strict=True)), total)
        self._tracker.record_completions(mode, prompts, completions)
        own = weighted[first : first + len(trajectories), :-1].nansum(dim=1).tolist()
        return [_with_reward(trajectory, extra) for trajectory, extra in zip(trajectories, own, strict=True)]


def _with_reward(trajectory: Trajectory, extra: float) -> Trajectory:
    if not trajectory.turns:
        return trajectory
    *turns, last = trajectory.turns
    return replace(trajectory, turns=[*turns, replace(last, reward=last.reward + extra)])
