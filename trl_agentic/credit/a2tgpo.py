"""A2TGPO: information gains compared per turn index, rescaled accumulation, adaptive clip range (arXiv 2605.06200)."""

from __future__ import annotations

import torch
from torch import Tensor

from ..types import TurnBatch
from .grouping import combine_keys, group_table, grouped_normalize
from .returns import discounted_returns, episode_returns, last_turn_mask


TURN_GROUP_NORMS = ("turn", "pooled")


def process_turn_mask(batch: TurnBatch) -> Tensor:
    """Mask of the process turns: those that have an information gain.

    A turn has no gain if its `information_gain` is NaN or if it is the answer turn (the last turn of an `answered`
    rollout). A gain of 0 is a gain.

    Returns:
        `Tensor` of shape (B, K), bool.

    Raises:
        ValueError: `batch.information_gain` is `None`.
    """
    if batch.information_gain is None:
        raise ValueError("TurnBatch.information_gain must be given, got None.")
    process = batch.turn_mask & ~torch.isnan(batch.information_gain)
    if batch.answered is not None:
        process = process & ~(last_turn_mask(batch.turn_mask) & batch.answered.unsqueeze(1))
    return process


def a2tgpo_advantages(
    batch: TurnBatch,
    gamma: float = 1.0,
    alpha: float = 1.0,
    turn_group_norm: str = "turn",
    rescale_accumulation: bool = True,
    min_turn_group: int = 2,
    eps: float = 1e-6,
) -> Tensor:
    """One advantage per turn, from normalised information gains and outcomes (arXiv 2605.06200, eq. 6-9).

    igh[i, t] = (ig[i, t] - mean) / (std + eps) over the rollouts of the prompt that have a gain at turn t (eq. 6-7)
    D[i, t] = sum over k >= t of gamma^(k - t) * igh[i, k], n[i, t] = number of the terms (eq. 8)
    A[i, t] = alpha * D[i, t] / sqrt(n[i, t]) + Rh[i] (eq. 9); Rh[i] alone where n[i, t] = 0
    Rh[i] = (R[i] - mean) / (std + eps) over the rollouts of the prompt, R = `outcomes` or the sum of the rewards

    with population standard deviations. Rollouts without a turn do not count.

    Args:
        batch ([`~types.TurnBatch`]): with `information_gain`, NaN where a turn has none; whole prompt groups.
        gamma (`float`, *optional*, defaults to 1.0): discount per turn, in [0, 1].
        alpha (`float`, *optional*, defaults to 1.0): weight of the gains (the released scripts use 0.3).
        turn_group_norm (`str`, *optional*, defaults to `"turn"`): `"turn"` compares gains of one turn index;
            `"pooled"` compares all gains of the prompt, as IGPO does.
        rescale_accumulation (`bool`, *optional*, defaults to `True`): divide D by sqrt(n).
        min_turn_group (`int`, *optional*, defaults to 2): gains in groups with fewer members become 0.
        eps (`float`, *optional*, defaults to 1e-6): added to standard deviations.

    Returns:
        `Tensor` of shape (B, K), dtype of the rewards, without unit: 0 where `turn_mask` is `False`.

    Raises:
        ValueError: an option has a value outside its range, or `batch.information_gain` is `None`.
    """
    mask = batch.turn_mask
    gains = _normalized_gains(batch, turn_group_norm, min_turn_group, eps)
    accumulated = discounted_returns(gains, mask, gamma)
    if rescale_accumulation:
        terms = discounted_returns(process_turn_mask(batch).double(), mask, 1.0)
        accumulated = accumulated / terms.clamp(min=1.0).sqrt()
    outcomes = grouped_normalize(episode_returns(batch).double(), batch.group_ids, mask.any(dim=1), True, eps)
    advantages = alpha * accumulated + outcomes.unsqueeze(1)
    return torch.where(mask, advantages, 0.0).to(batch.rewards.dtype)


def a2tgpo_clip_scale(
    batch: TurnBatch,
    clip_beta: float = 0.3,
    turn_group_norm: str = "turn",
    min_turn_group: int = 2,
    eps: float = 1e-6,
) -> Tensor:
    """Factor on the clip range of each turn: larger where the gain is high (arXiv 2605.06200, eq. 11).

    c[i, t] = 1 + clip_beta * (2 * sigmoid(igh[i, t]) - 1), which lies in (1 - clip_beta, 1 + clip_beta)

    The clip range is then [1 - c * epsilon, 1 + c * epsilon_high] (eq. 12).

    Args:
        batch, turn_group_norm, min_turn_group, eps: as in [`a2tgpo_advantages`].
        clip_beta (`float`, *optional*, defaults to 0.3): strength, in [0, 1]; 0 leaves the clip range as it is.

    Returns:
        `Tensor` of shape (B, K), dtype of the rewards, without unit: exactly 1 where a turn has no gain, where its
        group is smaller than `min_turn_group` and where `turn_mask` is `False`.

    Raises:
        ValueError: an option has a value outside its range, or `batch.information_gain` is `None`.
    """
    if not 0.0 <= clip_beta <= 1.0:
        raise ValueError(f"clip_beta must be in [0, 1], got {clip_beta}.")
    gains = _normalized_gains(batch, turn_group_norm, min_turn_group, eps)
    return (1.0 + clip_beta * (2.0 * torch.sigmoid(gains) - 1.0)).to(batch.rewards.dtype)


def _normalized_gains(batch: TurnBatch, turn_group_norm: str, min_turn_group: int, eps: float) -> Tensor:
    """igh of shape (B, K), float64; 0 for a turn without gain."""
    if turn_group_norm not in TURN_GROUP_NORMS:
        raise ValueError(f"turn_group_norm must be one of {TURN_GROUP_NORMS}, got {turn_group_norm!r}.")
    if min_turn_group < 1:
        raise ValueError(f"min_turn_group must be at least 1, got {min_turn_group}.")
    process = process_turn_mask(batch)
    assert batch.information_gain is not None
    gains = batch.information_gain.double()
    keys = batch.group_ids.unsqueeze(1).expand_as(batch.anchor_ids)
    if turn_group_norm == "turn":
        keys = combine_keys(keys, torch.arange(keys.shape[1], device=keys.device))
    table = group_table(gains, keys, process)
    enough = process & (table.count[table.index] >= min_turn_group)
    return grouped_normalize(gains, keys, enough, eps=eps)
