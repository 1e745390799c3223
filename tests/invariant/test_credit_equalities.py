"""Cases in which two algorithms are equal: the limit of an option, or batches with outcomes only.

GRPO divides by the standard deviation of the sample, as TRL does, and the other algorithms by that of the population:
among n rollouts with eps = 0, a factor of sqrt(n / (n - 1)).
"""

from __future__ import annotations

import math

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.credit.batches import NAN, Rollout, make_batch, rollout_lists
from trl_agentic.credit import (
    a2tgpo_advantages,
    a2tgpo_clip_scale,
    discounted_returns,
    gagpo_advantages,
    gigpo_advantages,
    grouped_mean,
    grpo_advantages,
    igpo_advantages,
)


few = settings(max_examples=60, deadline=None)


def population_grpo(rollouts: list[Rollout]) -> Tensor:
    """GRPO with the standard deviation of the population."""
    counts = [sum(o.group == r.group and bool(o.rewards) for o in rollouts) for r in rollouts]
    factors = torch.tensor([math.sqrt(n / (n - 1)) if n > 1 else 1.0 for n in counts], dtype=torch.float64)
    return grpo_advantages(make_batch(rollouts), eps=0.0) * factors.unsqueeze(1)


@few
@given(rollout_lists(), st.sampled_from([0.0, 0.95]))
def test_gigpo_without_its_step_part_is_grpo(rollouts: list[Rollout], gamma: float):
    batch = make_batch(rollouts)
    plain = gigpo_advantages(batch, gamma, step_advantage_weight=0.0, scale_by_std=False)
    torch.testing.assert_close(plain, grpo_advantages(batch, scale_by_std=False), rtol=0, atol=1e-12)
    scaled = gigpo_advantages(batch, gamma, step_advantage_weight=0.0, eps=0.0)
    torch.testing.assert_close(scaled, population_grpo(rollouts), rtol=1e-9, atol=1e-9)


@few
@given(rollout_lists())
def test_gagpo_where_only_first_states_are_shared_credits_the_first_turn_with_the_return(rollouts: list[Rollout]):
    """lambda = gamma = 1: R - V of the state; V of a state that is met once is the return itself."""
    numbers = iter(range(1, 100))
    rollouts = [
        r._replace(states=[0, *(next(numbers) for _ in r.states[1:])][: len(r.states)], penalties=None)
        for r in rollouts
    ]
    batch = make_batch(rollouts)
    returns = discounted_returns(batch.rewards, batch.turn_mask, 1.0)[:, 0]
    played = batch.turn_mask.any(dim=1)
    centred = torch.where(played, returns - grouped_mean(returns, batch.group_ids, played), 0.0)
    expected = torch.zeros_like(batch.rewards)
    expected[:, 0] = centred
    actual = gagpo_advantages(batch, gamma=1.0, lam=1.0, advantage_norm="none")
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-9)


@few
@given(rollout_lists(), st.sampled_from(["joint", "separate"]))
def test_igpo_without_gains_is_grpo_on_every_turn(rollouts: list[Rollout], normalization: str):
    rollouts = [r._replace(gains=[NAN] * len(r.rewards)) for r in rollouts]
    actual = igpo_advantages(make_batch(rollouts), gamma=1.0, normalization=normalization, eps=0.0)
    torch.testing.assert_close(actual, population_grpo(rollouts), rtol=1e-9, atol=1e-9)


@few
@given(rollout_lists(), st.sampled_from(["turn", "pooled"]))
def test_a2tgpo_without_process_turns_is_grpo_on_every_turn_with_one_clip_range(
    rollouts: list[Rollout], turn_group_norm: str
):
    """With a ratio for each turn, this is GSPO at the level of turns; a run of both is in
    tests/trainers/test_information_gain_trainers.py."""
    rollouts = [r._replace(gains=[NAN] * len(r.rewards)) for r in rollouts]
    batch = make_batch(rollouts)
    actual = a2tgpo_advantages(batch, turn_group_norm=turn_group_norm, eps=0.0)
    torch.testing.assert_close(actual, population_grpo(rollouts), rtol=1e-9, atol=1e-9)
    for clip_beta in (0.0, 0.3):
        assert torch.equal(a2tgpo_clip_scale(batch, clip_beta=clip_beta), torch.ones_like(batch.rewards))
