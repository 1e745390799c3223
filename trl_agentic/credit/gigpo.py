"""GiGPO: an episode advantage plus an advantage among the visits of one state (arXiv 2505.10978)."""

from __future__ import annotations

import torch
from torch import Tensor

from ..types import TurnBatch
from .grouping import grouped_normalize, state_keys
from .returns import discounted_returns, episode_returns


def gigpo_advantages(
    batch: TurnBatch,
    gamma: float = 0.95,
    step_advantage_weight: float = 1.0,
    scale_by_std: bool = True,
    eps: float = 1e-6,
) -> Tensor:
    """One advantage per turn: the rollout within its group plus the turn within the visits of its state.

    A_E[i] = (E[i] - mean) / F over the rollouts of the prompt (arXiv 2505.10978, eq. 3)
    R[i, k] = r[i, k] + gamma * R[i, k + 1] (eq. 5), minus the turn's own `penalties`, as in the public code
    A_S[i, k] = (R[i, k] - mean) / F over the turns of the prompt group with the same anchor state (eq. 6-7)
    A[i, k] = A_E[i] + step_advantage_weight * A_S[i, k] (eq. 8)

    E = `outcomes`, or the undiscounted sum of the rewards; F = population standard deviation + eps, or 1. Each rollout
    with a turn counts once in A_E, whatever its number of turns (the public code counts it once per turn and uses
    Bessel's correction). States that are similar but not equal form one group if they have the same anchor id.

    Args:
        batch ([`~types.TurnBatch`]): the turns of B rollouts; whole prompt groups.
        gamma (`float`, *optional*, defaults to 0.95): discount per turn, in [0, 1].
        step_advantage_weight (`float`, *optional*, defaults to 1.0): omega; 0 leaves the episode advantage only.
        scale_by_std (`bool`, *optional*, defaults to `True`): `False` sets F to 1.
        eps (`float`, *optional*, defaults to 1e-6): added to standard deviations, in units of reward.

    Returns:
        `Tensor` of shape (B, K), dtype of the rewards: 0 where `turn_mask` is `False`. A_E is 0 in a group of one
        rollout or of equal outcomes, A_S for a state that was visited once.

    Raises:
        ValueError: `gamma` is not in [0, 1] or `eps` is negative.
    """
    mask = batch.turn_mask
    episode = episode_returns(batch).double()
    episode_part = grouped_normalize(episode, batch.group_ids, mask.any(dim=1), scale_by_std, eps)
    returns = discounted_returns(batch.rewards.double(), mask, gamma)
    if batch.penalties is not None:
        returns = returns - batch.penalties.double()
    step_part = grouped_normalize(returns, state_keys(batch), mask, scale_by_std, eps)
    advantages = episode_part.unsqueeze(1) + step_advantage_weight * step_part
    return torch.where(mask, advantages, 0.0).to(batch.rewards.dtype)
