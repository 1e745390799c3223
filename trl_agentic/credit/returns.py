"""Recursions on the turn axis: returns-to-go, temporal-difference errors and their exponential average."""

from __future__ import annotations

import torch
from torch import Tensor

from ..types import TurnBatch


def _check_fraction(name: str, value: float) -> None:
    if not 0.0 <= value <= 1.0:
        raise ValueError(f"{name} must be in [0, 1], got {value}.")


def _check_shape(name: str, value: Tensor, shape: torch.Size) -> None:
    if value.shape != shape:
        raise ValueError(f"{name} must have shape {tuple(shape)}, got {tuple(value.shape)}.")


def last_turn_mask(turn_mask: Tensor) -> Tensor:
    """Mask of the last turn of each rollout.

    Args:
        turn_mask (`Tensor` of shape (B, K), bool): right-padded.

    Returns:
        `Tensor` of shape (B, K), bool: one `True` per rollout that has a turn.
    """
    return turn_mask & ~torch.cat([turn_mask[:, 1:], torch.zeros_like(turn_mask[:, :1])], dim=1)


def episode_returns(batch: TurnBatch) -> Tensor:
    """Outcome of each rollout: `batch.outcomes` if given, else the undiscounted sum of its rewards.

    Returns:
        `Tensor` of shape (B,), dtype of the rewards, in units of reward.
    """
    if batch.outcomes is not None:
        return batch.outcomes.to(batch.rewards.dtype)
    zero = torch.zeros_like(batch.rewards)
    return torch.where(batch.turn_mask, batch.rewards, zero).double().sum(dim=1).to(batch.rewards.dtype)


def discounted_returns(rewards: Tensor, turn_mask: Tensor, gamma: float) -> Tensor:
    """Discounted return-to-go of every turn.

    R[i, k] = r[i, k] + gamma * R[i, k + 1], zero past the last turn.

    Args:
        rewards (`Tensor` of shape (B, K), float): reward of each turn; values outside the mask are not read.
        turn_mask (`Tensor` of shape (B, K), bool): right-padded.
        gamma (`float`): discount per turn, in [0, 1].

    Returns:
        `Tensor` of shape (B, K), dtype of `rewards`, in units of reward: 0 where `turn_mask` is `False`.

    Raises:
        ValueError: `turn_mask` has another shape than `rewards`, or `gamma` is not in [0, 1].
    """
    _check_shape("turn_mask", turn_mask, rewards.shape)
    _check_fraction("gamma", gamma)
    masked = torch.where(turn_mask, rewards, torch.zeros_like(rewards))
    columns: list[Tensor] = []
    following = masked.new_zeros(masked.shape[0])
    for k in reversed(range(masked.shape[1])):
        following = masked[:, k] + gamma * following
        columns.append(following)
    return torch.stack(columns[::-1], dim=1) if columns else masked


def generalized_advantage_estimate(
    rewards: Tensor,
    values: Tensor,
    turn_mask: Tensor,
    gamma: float,
    lam: float,
    bootstrap_values: Tensor | None = None,
) -> Tensor:
    """Exponentially averaged temporal-difference errors of each rollout (GAE, arXiv 1506.02438, eq. 16).

    delta[i, k] = r[i, k] + gamma * V[i, k + 1] - V[i, k]
    A[i, k] = delta[i, k] + gamma * lam * A[i, k + 1]

    with V[i, K_i] = `bootstrap_values[i]` and A[i, K_i] = 0 past the last turn K_i - 1.

    Args:
        rewards (`Tensor` of shape (B, K), float): reward of each turn.
        values (`Tensor` of shape (B, K), float): value of the state in which each turn was played, in units of
            reward.
        turn_mask (`Tensor` of shape (B, K), bool): right-padded; nothing outside it is read.
        gamma (`float`): discount per turn, in [0, 1].
        lam (`float`): 0 keeps the one-turn error delta, 1 gives the return minus the value; in [0, 1].
        bootstrap_values (`Tensor` of shape (B,), float, *optional*, defaults to zeros): value of the state after the
            last turn. It must be 0 where the episode ended inside the task.

    Returns:
        `Tensor` of shape (B, K), dtype of `rewards`, in units of reward: 0 where `turn_mask` is `False`.

    Raises:
        ValueError: a tensor's shape does not fit `rewards`, or `gamma` or `lam` is not in [0, 1].
    """
    _check_shape("values", values, rewards.shape)
    _check_shape("turn_mask", turn_mask, rewards.shape)
    _check_fraction("gamma", gamma)
    _check_fraction("lam", lam)
    zero = torch.zeros_like(rewards)
    current = torch.where(turn_mask, values.to(rewards.dtype), zero)
    following = torch.cat([current[:, 1:], zero[:, :1]], dim=1)
    if bootstrap_values is not None:
        _check_shape("bootstrap_values", bootstrap_values, rewards.shape[:1])
        last = last_turn_mask(turn_mask)
        following = torch.where(last, bootstrap_values.to(rewards.dtype).unsqueeze(1), following)
    # Same order of operations as in discounted_returns: where V is the turn's own return, delta is exactly 0.
    delta = torch.where(turn_mask, rewards, zero) + gamma * following - current
    return discounted_returns(delta, turn_mask, gamma * lam)
