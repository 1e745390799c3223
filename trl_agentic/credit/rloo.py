"""RLOO over several turns: the outcome of a rollout minus the mean of its siblings (arXiv 2402.14740)."""

from __future__ import annotations

import torch
from torch import Tensor

from ..types import TurnBatch
from .grouping import grouped_mean
from .returns import episode_returns


def rloo_advantages(batch: TurnBatch) -> Tensor:
    """The same advantage for every turn of a rollout, against a leave-one-out baseline (arXiv 2402.14740).

    A[i, k] = R[i] - mean of R over the other rollouts of the prompt

    R = `outcomes`, or the undiscounted sum of the rewards. Rollouts without a turn are not counted.

    Args:
        batch ([`~types.TurnBatch`]): the turns of B rollouts.

    Returns:
        `Tensor` of shape (B, K), dtype and unit of the rewards: 0 where `turn_mask` is `False`, in a group of one
        rollout and in a group of equal outcomes.
    """
    played = batch.turn_mask.any(dim=1)
    outcomes = episode_returns(batch).double()
    advantages = outcomes - grouped_mean(outcomes, batch.group_ids, played, leave_one_out=True)
    return torch.where(batch.turn_mask, advantages.unsqueeze(1), 0.0).to(batch.rewards.dtype)
