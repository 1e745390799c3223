"""IGPO: information gains and the outcome as the rewards of the turns (arXiv 2510.14967)."""

from __future__ import annotations

import torch
from torch import Tensor

from ..types import TurnBatch
from .a2tgpo import process_turn_mask
from .grouping import combine_keys, grouped_normalize
from .returns import discounted_returns, episode_returns, last_turn_mask


NORMALIZATIONS = ("joint", "separate")


def igpo_advantages(
    batch: TurnBatch,
    gamma: float = 1.0,
    normalization: str = "joint",
    eps: float = 1e-6,
) -> Tensor:
    """One advantage per turn: the discounted sum of the normalised rewards from this turn on (arXiv 2510.14967).

    x: ig[i, t] of every process turn and R[i], the outcome, of every rollout
    z = (x - mean) / (std + eps) over the prompt group
    A[i, t] = sum over k >= t of gamma^(k - t) * z[i, k]

    R = `outcomes`, or the undiscounted sum of the rewards; population standard deviations. The outcome is
    credited to the last turn: to the answer turn, or, in a rollout that was cut before it answered, in addition to the
    last turn's gain.

    Args:
        batch ([`~types.TurnBatch`]): with `information_gain`, NaN where a turn has none; whole prompt groups.
        gamma (`float`, *optional*, defaults to 1.0): discount per turn, in [0, 1].
        normalization (`str`, *optional*, defaults to `"joint"`): `"joint"` takes mean and std over gains and outcomes
            together, `"separate"` over the gains and over the outcomes separately.
        eps (`float`, *optional*, defaults to 1e-6): added to standard deviations.

    Returns:
        `Tensor` of shape (B, K), dtype of the rewards, without unit: 0 where `turn_mask` is `False`.

    Raises:
        ValueError: an option has a value outside its range, or `batch.information_gain` is `None`.
    """
    if normalization not in NORMALIZATIONS:
        raise ValueError(f"normalization must be one of {NORMALIZATIONS}, got {normalization!r}.")
    process = process_turn_mask(batch)
    assert batch.information_gain is not None
    mask = batch.turn_mask
    # One more column for the outcomes, so that one call normalises both kinds.
    values = torch.cat([batch.information_gain.double(), episode_returns(batch).double().unsqueeze(1)], dim=1)
    members = torch.cat([process, mask.any(dim=1, keepdim=True)], dim=1)
    keys = batch.group_ids.unsqueeze(1).expand_as(values)
    if normalization == "separate":
        is_outcome = torch.arange(values.shape[1], device=values.device) == mask.shape[1]
        keys = combine_keys(keys, is_outcome.long())
    normalized = grouped_normalize(values, keys, members, eps=eps)
    gains, outcomes = normalized[:, :-1], normalized[:, -1:]
    rewards = torch.where(last_turn_mask(mask), gains + outcomes, gains)
    return discounted_returns(rewards, mask, gamma).to(batch.rewards.dtype)
