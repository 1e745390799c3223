"""GRPO over several turns: the outcome of a rollout compared with its prompt group (arXiv 2402.03300)."""

from __future__ import annotations

import torch
from torch import Tensor

from ..types import TurnBatch
from .grouping import grouped_normalize, grouped_std
from .returns import episode_returns


SCALES = (True, False, "group", "batch", "none")


def grpo_advantages(batch: TurnBatch, scale_by_std: bool | str = True, eps: float = 1e-4) -> Tensor:
    """The same advantage for every turn of a rollout, with TRL's formula (arXiv 2402.03300, outcome supervision).

    A[i, k] = (R[i] - mean) / (std + eps)

    mean and std (with Bessel's correction) over the rollouts of the prompt; R = `outcomes`, or the undiscounted sum of
    the rewards. Rollouts without a turn are not counted.

    Args:
        batch ([`~types.TurnBatch`]): the turns of B rollouts.
        scale_by_std (`bool` or `str`, *optional*, defaults to `True`): the values of TRL's `scale_rewards`: `True` or
            `"group"` divides by the std of the prompt group, `"batch"` by the std of the whole batch; `False` or
            `"none"` does not divide.
        eps (`float`, *optional*, defaults to 1e-4): added to the standard deviation, in units of reward.

    Returns:
        `Tensor` of shape (B, K), dtype of the rewards: 0 where `turn_mask` is `False`, in a group of one rollout and
        in a group of equal outcomes.

    Raises:
        ValueError: `scale_by_std` is none of the values above, or `eps` is negative.
    """
    if scale_by_std not in SCALES:
        raise ValueError(f"scale_by_std must be one of {SCALES}, got {scale_by_std!r}.")
    played = batch.turn_mask.any(dim=1)
    outcomes = episode_returns(batch).double()
    in_group = scale_by_std in (True, "group")
    advantages = grouped_normalize(outcomes, batch.group_ids, played, in_group, eps, correction=1)
    if scale_by_std == "batch":
        std = grouped_std(outcomes, torch.zeros_like(batch.group_ids), played, correction=1)
        advantages = torch.where(std > 0, advantages / (std + eps), 0.0)
    return torch.where(batch.turn_mask, advantages.unsqueeze(1), 0.0).to(batch.rewards.dtype)
