"""Statistics over groups of turns or rollouts. A group is the set of entries with the same integer key.

All sums are computed in float64 over the differences to the smallest member. A group of equal members therefore has
exactly their value as mean and exactly 0 as deviation, and the order of the entries does not matter.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ..types import TurnBatch


@dataclass(frozen=True, slots=True)
class GroupTable:
    """Sufficient statistics of U groups, and the index of each entry's group.

    Attributes:
        index (`Tensor` of the shape of the keys, int64): number of each entry's group, in [0, U).
        count (`Tensor` of shape (U,), int64): members of each group; 0 for a key that occurs only outside the mask.
        mean (`Tensor` of shape (U,), float64): mean of the members, 0 for an empty group.
        offset (`Tensor` of the shape of the keys, float64): value minus the group's smallest value, 0 outside the
            mask.
        mean_offset (`Tensor` of shape (U,), float64): mean of the members' offsets.
    """

    index: Tensor
    count: Tensor
    mean: Tensor
    offset: Tensor
    mean_offset: Tensor


def combine_keys(first: Tensor, second: Tensor) -> Tensor:
    """One integer key for each pair of keys, without collisions.

    Args:
        first (`Tensor`, int): any values, negative ones included.
        second (`Tensor`, int): broadcastable with `first`.

    Returns:
        `Tensor` of the broadcast shape, int64: equal exactly where both `first` and `second` are equal.
    """
    _, dense_first = torch.unique(first, return_inverse=True)
    second_values, dense_second = torch.unique(second, return_inverse=True)
    pairs: Tensor = dense_first * max(second_values.numel(), 1) + dense_second
    return pairs


def state_keys(batch: TurnBatch) -> Tensor:
    """Key of the anchor state of each turn: two turns share it when group and anchor state are both equal.

    Returns:
        `Tensor` of shape (B, K), int64; values outside `turn_mask` have no meaning.
    """
    return combine_keys(batch.group_ids.unsqueeze(1), batch.anchor_ids)


def group_table(values: Tensor, keys: Tensor, mask: Tensor) -> GroupTable:
    """Count and mean of each group.

    Args:
        values (`Tensor`, float): any shape; values outside the mask are not read and may be NaN.
        keys (`Tensor` of the shape of `values`, int): any values, negative ones included.
        mask (`Tensor` of the shape of `values`, bool): which entries are members of their group.

    Raises:
        ValueError: shapes differ, `values` is not float, `keys` is not int or `mask` is not bool.
    """
    for name, tensor in (("keys", keys), ("mask", mask)):
        if tensor.shape != values.shape:
            raise ValueError(f"{name} must have the shape of values {tuple(values.shape)}, got {tuple(tensor.shape)}.")
    if not values.is_floating_point():
        raise ValueError(f"values must be a tensor of float, got {values.dtype}.")
    if keys.is_floating_point() or keys.dtype == torch.bool:
        raise ValueError(f"keys must be a tensor of int, got {keys.dtype}.")
    if mask.dtype != torch.bool:
        raise ValueError(f"mask must be a tensor of bool, got {mask.dtype}.")
    unique, index = torch.unique(keys, return_inverse=True)
    flat_index, flat_mask = index.flatten(), mask.flatten()
    flat = values.flatten().double()
    empty = torch.full((unique.numel(),), torch.inf, dtype=torch.float64, device=values.device)
    members = torch.where(flat_mask, flat, torch.inf)
    low = empty.scatter_reduce(0, flat_index, members, reduce="amin")
    offset = torch.where(flat_mask, flat - low[flat_index], 0.0)
    count = torch.zeros(unique.numel(), dtype=torch.int64, device=values.device)
    count = count.index_add(0, flat_index, flat_mask.long())
    mean_offset = torch.zeros_like(empty).index_add(0, flat_index, offset) / count.clamp(min=1)
    mean = torch.where(count > 0, low + mean_offset, 0.0)
    return GroupTable(index, count, mean, offset.view(values.shape), mean_offset)


def grouped_mean(values: Tensor, keys: Tensor, mask: Tensor, leave_one_out: bool = False) -> Tensor:
    """Mean of each entry's group.

    mean[x] = sum of values[y] over the members y of x's group / their number

    Args:
        values (`Tensor`, float): any shape; values outside the mask are not read.
        keys (`Tensor` of the shape of `values`, int): entries of one group have the same key; any int64 values.
        mask (`Tensor` of the shape of `values`, bool): which entries are members.
        leave_one_out (`bool`, *optional*, defaults to `False`): leave x itself out of its own mean. The only member
            of a group keeps its own value.

    Returns:
        `Tensor` of the shape and dtype of `values`, in their unit: 0 where `mask` is `False`.

    Raises:
        ValueError: a shape or type is wrong; the message names the argument.
    """
    table = group_table(values, keys, mask)
    mean = table.mean[table.index]
    if leave_one_out:
        count = table.count[table.index]
        total = table.mean_offset[table.index] * count
        # low + (sum of the others' offsets) / (n - 1), with low = value - offset; the value itself for n = 1
        mean = values.double() - table.offset + (total - table.offset) / (count - 1).clamp(min=1)
    return torch.where(mask, mean, 0.0).to(values.dtype)


def grouped_std(values: Tensor, keys: Tensor, mask: Tensor, correction: int = 0) -> Tensor:
    """Standard deviation of each entry's group.

    std[x] = sqrt( sum over the n members y of (values[y] - mean)^2 / (n - correction) )

    Args:
        values, keys, mask: as in [`grouped_mean`].
        correction (`int`, *optional*, defaults to 0): 0 = population, 1 = Bessel's correction.

    Returns:
        `Tensor` of the shape and dtype of `values`, in their unit: 0 where `mask` is `False`, where all members are
        equal, and in a group of at most `correction` members.
    """
    return _center_and_std(values, keys, mask, correction)[1].to(values.dtype)


def grouped_normalize(
    values: Tensor,
    keys: Tensor,
    mask: Tensor,
    scale_by_std: bool = True,
    eps: float = 1e-6,
    correction: int = 0,
) -> Tensor:
    """Standardise each entry inside its group.

    z[x] = (values[x] - mean) / (std + eps)

    Args:
        values, keys, mask: as in [`grouped_mean`].
        scale_by_std (`bool`, *optional*, defaults to `True`): `False` only subtracts the mean.
        eps (`float`, *optional*, defaults to 1e-6): added to the standard deviation, in the unit of `values`.
        correction (`int`, *optional*, defaults to 0): 0 = population standard deviation, 1 = Bessel's correction.

    Returns:
        `Tensor` of the shape and dtype of `values`, without unit (that of `values` if `scale_by_std=False`): 0 where
        `mask` is `False`; exactly 0, never NaN, in a group of one member or of equal members.

    Raises:
        ValueError: a shape or type is wrong or `eps` is negative; the message names the argument.
    """
    if not eps >= 0.0:
        raise ValueError(f"eps must not be negative, got {eps}.")
    centered, std = _center_and_std(values, keys, mask, correction)
    if scale_by_std:
        centered = torch.where(std > 0, centered / (std + eps), 0.0)
    return centered.to(values.dtype)


def _center_and_std(values: Tensor, keys: Tensor, mask: Tensor, correction: int) -> tuple[Tensor, Tensor]:
    table = group_table(values, keys, mask)
    centered = torch.where(mask, table.offset - table.mean_offset[table.index], 0.0)
    squares = torch.zeros_like(table.mean).index_add(0, table.index.flatten(), centered.flatten().square())
    degrees = (table.count - correction).clamp(min=1)
    std = (squares / degrees).sqrt()
    return centered, torch.where(mask, std[table.index], 0.0)


class AnchorStatistics(NamedTuple):
    """How well the turns of a batch can be compared with each other.

    Attributes:
        singleton_frac (`float`): share of the turns, in [0, 1], whose anchor state was visited once in their prompt
            group.
        group_size (`float`): turns per distinct anchor state, at least 1 (0 for a batch without turns).
    """

    singleton_frac: float
    group_size: float


def anchor_statistics(batch: TurnBatch) -> AnchorStatistics:
    """Share of singleton turns and mean size of an anchor group."""
    table = group_table(batch.rewards, state_keys(batch), batch.turn_mask)
    sizes = table.count[table.count > 0]
    if sizes.numel() == 0:
        return AnchorStatistics(0.0, 0.0)
    turns = int(sizes.sum())
    return AnchorStatistics(int((sizes == 1).sum()) / turns, turns / sizes.numel())
