"""Rollouts as plain lists, the batches made of them, and the plain-Python statistics that the tests compare with."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from hypothesis import strategies as st
from torch import Tensor

from trl_agentic.types import TurnBatch


NAN = math.nan


class Rollout(NamedTuple):
    group: int
    rewards: list[float]
    states: list[int]
    terminated: bool = True
    final: int = -1
    gains: list[float] | None = None
    outcome: float | None = None
    penalties: list[float] | None = None


def make_batch(rollouts: list[Rollout], dtype: torch.dtype = torch.float64, pad: float = 7.0) -> TurnBatch:
    """Stack rollouts. Padding holds `pad`, which no algorithm may read."""
    shape = (len(rollouts), max([1, *(len(r.rewards) for r in rollouts)]))
    rewards, gains = torch.full(shape, pad, dtype=dtype), torch.full(shape, pad, dtype=dtype)
    penalties = torch.full(shape, pad, dtype=dtype)
    turn_mask, anchor_ids = torch.zeros(shape, dtype=torch.bool), torch.zeros(shape, dtype=torch.int64)
    for i, r in enumerate(rollouts):
        n = len(r.rewards)
        rewards[i, :n] = torch.tensor(r.rewards, dtype=dtype)
        gains[i, :n] = torch.tensor(r.gains or [NAN] * n, dtype=dtype)
        penalties[i, :n] = torch.tensor(r.penalties or [0.0] * n, dtype=dtype)
        turn_mask[i, :n] = True
        anchor_ids[i, :n] = torch.tensor(r.states, dtype=torch.int64)
    has_outcomes = all(r.outcome is not None for r in rollouts)
    return TurnBatch(
        rewards=rewards,
        turn_mask=turn_mask,
        group_ids=torch.tensor([r.group for r in rollouts]),
        anchor_ids=anchor_ids,
        terminated=torch.tensor([r.terminated for r in rollouts]),
        information_gain=gains if any(r.gains is not None for r in rollouts) else None,
        outcomes=torch.tensor([r.outcome for r in rollouts], dtype=dtype) if has_outcomes else None,
        final_anchor_ids=torch.tensor([r.final for r in rollouts]),
        penalties=penalties if any(r.penalties is not None for r in rollouts) else None,
    )


REWARDS = st.sampled_from([0.0, 0.0, 1.0, -0.1, 0.3, 10.0])
STATES = st.sampled_from([-5, 0, 1, 2, 2**62])


@st.composite
def rollout_lists(draw: st.DrawFn, max_turns: int = 4, min_turns: int = 0) -> list[Rollout]:
    """1 to 6 ragged rollouts in up to 3 groups, in any order; gains may be absent, the last turn of many has none."""
    rollouts = []
    for _ in range(draw(st.integers(1, 6))):
        n = draw(st.integers(min_turns, max_turns))
        gains = draw(st.lists(st.sampled_from([0.0, 0.25, -0.5, 0.125, NAN]), min_size=n, max_size=n))
        rollouts.append(
            Rollout(
                group=draw(st.sampled_from([-3, 4, 1000])),
                rewards=draw(st.lists(REWARDS, min_size=n, max_size=n)),
                states=draw(st.lists(STATES, min_size=n, max_size=n)),
                terminated=draw(st.booleans()),
                final=draw(st.sampled_from([-1, -5, 1, 9])),
                gains=gains,
                penalties=draw(st.lists(st.sampled_from([0.0, 0.1]), min_size=n, max_size=n)),
            )
        )
    return rollouts


def padded(rows: list[list[float]], like: Tensor) -> Tensor:
    """Ragged rows as a tensor of the shape of `like`, 0 where there is no turn."""
    out = torch.zeros_like(like)
    for i, row in enumerate(rows):
        out[i, : len(row)] = torch.tensor(row, dtype=like.dtype)
    return out


def mean(values: list[float]) -> float:
    return math.fsum(values) / len(values)


def standardised(value: float, members: list[float], scale: bool, eps: float, bessel: bool = False) -> float:
    """(value - mean) / (std + eps), 0 among equal members."""
    if max(members) - min(members) == 0.0:
        return 0.0
    center = mean(members)
    std = math.sqrt(math.fsum((m - center) ** 2 for m in members) / (len(members) - bessel))
    return (value - center) / (std + eps) if scale else value - center


def returns_to_go(rewards: list[float], gamma: float) -> list[float]:
    out: list[float] = []
    for reward in reversed(rewards):
        out.insert(0, reward + gamma * (out[0] if out else 0.0))
    return out


def total(rollout: Rollout) -> float:
    return math.fsum(rollout.rewards) if rollout.outcome is None else rollout.outcome


def assert_independent_of_order_and_of_other_groups(
    algorithm: Callable[[TurnBatch], Tensor], rollouts: list[Rollout], other_groups: bool = True
) -> None:
    """A rollout's advantages must not depend on the order of the rollouts or on other groups."""
    width = max([1, *(len(r.rewards) for r in rollouts)])
    together = algorithm(make_batch(rollouts))
    reversed_rows = algorithm(make_batch(rollouts[::-1])).flip(0)
    torch.testing.assert_close(reversed_rows, together, rtol=0, atol=1e-9)
    for group in {r.group for r in rollouts} if other_groups else ():
        rows = [i for i, r in enumerate(rollouts) if r.group == group]
        alone = algorithm(make_batch([rollouts[i] for i in rows]))
        alone = torch.nn.functional.pad(alone, (0, width - alone.shape[1]))
        compare = make_batch(rollouts).turn_mask[rows]
        torch.testing.assert_close(alone[compare], together[rows][compare], rtol=0, atol=1e-9)
