"""GAGPO: temporal-difference credit with a value that is estimated from the group (arXiv 2605.13217).

1. R[i, k] = r[i, k] + gamma * R[i, k + 1]
2. two turns are visits of one state when their `anchor_ids` and `group_ids` are equal
3. V(s) = mean of R over every visit of s, including repeated visits by one rollout
4. delta[i, k] = r[i, k] + gamma * V(s[i, k + 1]) - V(s[i, k]), V = 0 past the last turn
5. A[i, k] = delta[i, k] + gamma * lam * A[i, k + 1]
   and A[i, k] <- A[i, k] - penalty[i, k], so that a penalty affects its own turn only
6. A <- (A - mean) / (std + eps) over all turns of the prompt group, population standard deviation
7. A <- A + episode_advantage_weight * (E - mean) / (std + eps), E = return of the episode, over its prompt group

The paper's equations were not available. docs/gagpo.md has the same steps and states for each whether it is confirmed,
inferred or unknown.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..types import TurnBatch
from .grouping import combine_keys, group_table, grouped_mean, grouped_normalize, state_keys
from .returns import discounted_returns, episode_returns, generalized_advantage_estimate


ADVANTAGE_NORMS = ("group", "anchor", "batch", "none")
SINGLETON_VALUES = ("self", "group_mean")


def gagpo_advantages(
    batch: TurnBatch,
    gamma: float = 0.95,
    lam: float = 0.8,
    advantage_norm: str = "group",
    scale_by_std: bool = True,
    singleton_value: str = "self",
    leave_one_out: bool = False,
    truncation_bootstrap: bool = False,
    episode_advantage_weight: float = 0.0,
    eps: float = 1e-6,
) -> Tensor:
    """One advantage per turn, from returns that are averaged over all visits of a state (arXiv 2605.13217).

    The module's docstring has steps 1 to 7. If every state is a singleton and `singleton_value="self"`, all advantages
    are exactly 0: the group has no turn to compare another with.

    Args:
        batch ([`~types.TurnBatch`]): the turns of B rollouts; whole prompt groups, also across processes.
        gamma (`float`, *optional*, defaults to 0.95): discount per turn, in [0, 1].
        lam (`float`, *optional*, defaults to 0.8): 0 keeps the one-turn error, 1 gives R - V; in [0, 1].
        advantage_norm (`str`, *optional*, defaults to `"group"`): the turns that step 6 compares: `"group"` (those of
            one prompt), `"anchor"` (visits of one state; a singleton gives 0), `"batch"` (all), or `"none"` (no step).
        scale_by_std (`bool`, *optional*, defaults to `True`): divide by the standard deviation in steps 6 and 7.
        singleton_value (`str`, *optional*, defaults to `"self"`): V of a state that was visited once: `"self"` is its
            own return; `"group_mean"` is the mean of R over all turns of the prompt group, its own included.
        leave_one_out (`bool`, *optional*, defaults to `False`): V of the state of turn (i, k) is the mean of R over
            the visits other than (i, k). In delta[i, k], V(s[i, k + 1]) leaves out the visit (i, k + 1) and V(s[i, k])
            the visit (i, k); other visits of the same rollout stay in. Singletons follow `singleton_value`.
        truncation_bootstrap (`bool`, *optional*, defaults to `False`): where a rollout was cut (not `terminated`), V
            past its last turn is V of the state `final_anchor_ids` if the prompt group has a turn in that state, else
            0. The final state is not a visit, so nothing is left out of its mean.
        episode_advantage_weight (`float`, *optional*, defaults to 0.0): weight of step 7; the paper reports that
            adding an episode advantage hurts.
        eps (`float`, *optional*, defaults to 1e-6): added to standard deviations, in units of reward.

    Returns:
        `Tensor` of shape (B, K), dtype of the rewards: 0 where `turn_mask` is `False`. Without unit, or in units of
        reward if `scale_by_std=False` or `advantage_norm="none"`.

    Raises:
        ValueError: an option has a value outside its range, or `truncation_bootstrap=True` and
            `batch.final_anchor_ids` is `None`. The message names the option.
    """
    _check_options(batch, advantage_norm, singleton_value, truncation_bootstrap)
    mask = batch.turn_mask
    returns, values = gagpo_values(batch, gamma, singleton_value, leave_one_out)
    bootstrap = _final_values(batch, returns, singleton_value) if truncation_bootstrap else None
    advantages = generalized_advantage_estimate(batch.rewards.double(), values, mask, gamma, lam, bootstrap)
    if batch.penalties is not None:
        advantages = advantages - torch.where(mask, batch.penalties.double(), 0.0)
    if advantage_norm != "none":
        keys = _norm_keys(batch, advantage_norm)
        advantages = grouped_normalize(advantages, keys, mask, scale_by_std, eps)
    if episode_advantage_weight != 0.0:
        played = mask.any(dim=1)
        episode = grouped_normalize(episode_returns(batch).double(), batch.group_ids, played, scale_by_std, eps)
        advantages = torch.where(mask, advantages + episode_advantage_weight * episode.unsqueeze(1), 0.0)
    return advantages.to(batch.rewards.dtype)


def gagpo_values(
    batch: TurnBatch, gamma: float = 0.95, singleton_value: str = "self", leave_one_out: bool = False
) -> tuple[Tensor, Tensor]:
    """Steps 1 to 3: the return R of each turn and the value V of the state in which it was played.

    Args:
        batch, gamma, singleton_value, leave_one_out: as in [`gagpo_advantages`].

    Returns:
        R and V (`Tensor`s of shape (B, K), float64), in units of reward: 0 where `turn_mask` is `False`.
    """
    mask = batch.turn_mask
    returns = discounted_returns(batch.rewards.double(), mask, gamma)
    values = grouped_mean(returns, state_keys(batch), mask, leave_one_out)
    if singleton_value == "group_mean":
        table = group_table(returns, state_keys(batch), mask)
        singleton = mask & (table.count[table.index] == 1)
        groups = batch.group_ids.unsqueeze(1).expand_as(batch.anchor_ids)
        values = torch.where(singleton, grouped_mean(returns, groups, mask), values)
    return returns, values


def _check_options(batch: TurnBatch, advantage_norm: str, singleton_value: str, truncation_bootstrap: bool) -> None:
    if advantage_norm not in ADVANTAGE_NORMS:
        raise ValueError(f"advantage_norm must be one of {ADVANTAGE_NORMS}, got {advantage_norm!r}.")
    if singleton_value not in SINGLETON_VALUES:
        raise ValueError(f"singleton_value must be one of {SINGLETON_VALUES}, got {singleton_value!r}.")
    if truncation_bootstrap and batch.final_anchor_ids is None:
        raise ValueError("truncation_bootstrap=True needs TurnBatch.final_anchor_ids, which is None.")


def _norm_keys(batch: TurnBatch, advantage_norm: str) -> Tensor:
    """Keys of the turns that step 6 compares with each other, shape (B, K)."""
    if advantage_norm == "anchor":
        return state_keys(batch)
    groups = batch.group_ids.unsqueeze(1).expand_as(batch.anchor_ids)
    return groups if advantage_norm == "group" else torch.zeros_like(groups)


def _final_values(batch: TurnBatch, returns: Tensor, singleton_value: str) -> Tensor:
    """V of the state in which each rollout was cut, shape (B,).

    0 for a rollout that terminated and for a state without a visit.
    """
    assert batch.final_anchor_ids is not None
    final = batch.final_anchor_ids.unsqueeze(1)
    keys = combine_keys(batch.group_ids.unsqueeze(1), torch.cat([batch.anchor_ids, final], dim=1))
    no_visit = torch.zeros_like(final, dtype=torch.bool)
    visits = torch.cat([batch.turn_mask, no_visit], dim=1)
    padded = torch.cat([returns, returns.new_zeros(final.shape)], dim=1)
    table = group_table(padded, keys, visits)
    value, count = table.mean[table.index[:, -1]], table.count[table.index[:, -1]]
    if singleton_value == "group_mean":
        group = group_table(padded, batch.group_ids.unsqueeze(1).expand_as(padded), visits)
        value = torch.where(count == 1, group.mean[group.index[:, -1]], value)
    cut = ~batch.terminated & (batch.final_anchor_ids != -1)  # the mean of a state without a visit is 0
    return torch.where(cut, value, 0.0)
