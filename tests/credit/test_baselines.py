"""GRPO, RLOO, GiGPO and IGPO."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.credit.batches import (
    NAN,
    Rollout,
    assert_independent_of_order_and_of_other_groups,
    make_batch,
    mean,
    padded,
    returns_to_go,
    rollout_lists,
    standardised,
    total,
)
from trl_agentic.credit import gigpo_advantages, grpo_advantages, igpo_advantages, rloo_advantages
from trl_agentic.credit.returns import last_turn_mask
from trl_agentic.types import TurnBatch


few = settings(max_examples=50, deadline=None)
A, B = 0, 1


def close(actual: Tensor, expected: list[list[float]], atol: float = 1e-4) -> None:
    torch.testing.assert_close(actual, actual.new_tensor(expected), rtol=0, atol=atol)


def same_for_every_turn(values: list[float], rollouts: list[Rollout]) -> list[list[float]]:
    return [[value] * len(r.rewards) for value, r in zip(values, rollouts, strict=True)]


def siblings(r: Rollout, rollouts: list[Rollout]) -> list[float]:
    return [total(o) for o in rollouts if o.group == r.group and o.rewards]


# GRPO


def test_grpo_by_hand():
    # Returns 3 and 1: mean 2, std with Bessel's correction sqrt(2): +-1 / (sqrt(2) + 1e-4).
    rollouts = [Rollout(0, [1.0, 2.0], [A, B]), Rollout(0, [1.0], [A])]
    value = 1 / (math.sqrt(2) + 1e-4)
    close(grpo_advantages(make_batch(rollouts)), [[value, value], [-value, 0.0]], atol=1e-9)
    close(grpo_advantages(make_batch(rollouts), scale_by_std=False), [[1.0, 1.0], [-1.0, 0.0]])


@few
@given(st.lists(st.lists(st.floats(-5, 5, width=32), min_size=4, max_size=4), min_size=1, max_size=3))
def test_grpo_is_the_formula_of_trl(groups: list[list[float]]):
    rollouts = [Rollout(g, [reward], [A]) for g, rewards in enumerate(groups) for reward in rewards]
    rewards = torch.tensor(groups, dtype=torch.float64)
    centered = rewards - rewards.mean(1, keepdim=True)
    for scale, expected in (
        (True, centered / (rewards.std(1, keepdim=True) + 1e-4)),
        ("group", centered / (rewards.std(1, keepdim=True) + 1e-4)),
        ("batch", centered / (rewards.std() + 1e-4)),
        (False, centered),
        ("none", centered),
    ):
        actual = grpo_advantages(make_batch(rollouts), scale_by_std=scale)
        torch.testing.assert_close(actual.view_as(expected), expected, rtol=1e-9, atol=1e-9)


@few
@given(rollout_lists(), st.booleans())
def test_grpo_equals_the_loop(rollouts: list[Rollout], scale: bool):
    values = [
        standardised(total(r), siblings(r, rollouts), scale, 1e-4, bessel=len(siblings(r, rollouts)) > 1)
        if r.rewards
        else 0.0
        for r in rollouts
    ]
    batch = make_batch(rollouts)
    expected = padded(same_for_every_turn(values, rollouts), batch.rewards)
    torch.testing.assert_close(grpo_advantages(batch, scale), expected, rtol=1e-6, atol=1e-6)


def test_grpo_batch_scale_of_one_rollout_is_zero():
    for eps in (1e-4, 0.0):
        assert not grpo_advantages(make_batch([Rollout(0, [5.0], [A])]), scale_by_std="batch", eps=eps).any()


# RLOO


def test_rloo_by_hand():
    # Returns 3, 1, 2: 3 - 1.5, 1 - 2.5, 2 - 2; a rollout without siblings has nothing to be compared with.
    rollouts = [
        Rollout(0, [1.0, 2.0], [A, B]),
        Rollout(0, [1.0], [A]),
        Rollout(0, [2.0], [A]),
        Rollout(1, [9.0], [A]),
    ]
    close(rloo_advantages(make_batch(rollouts)), [[1.5, 1.5], [-1.5, 0.0], [0.0, 0.0], [0.0, 0.0]])


@few
@given(rollout_lists())
def test_rloo_equals_the_loop(rollouts: list[Rollout]):
    values = []
    for i, r in enumerate(rollouts):
        others = [total(o) for j, o in enumerate(rollouts) if o.group == r.group and o.rewards and i != j]
        values.append(total(r) - mean(others) if others else 0.0)
    batch = make_batch(rollouts)
    expected = padded(same_for_every_turn(values, rollouts), batch.rewards)
    torch.testing.assert_close(rloo_advantages(batch), expected, rtol=0, atol=1e-9)


# GiGPO


def test_gigpo_by_hand():
    # A -> B, rewards 0, 1; A -> A, rewards 0, 0. Episode returns 1, 0: +1, -1.
    # gamma = 0.5: R1 = (0.5, 1), R2 = (0, 0). Group A {0.5, 0, 0}: mean 1/6, population std sqrt(2) / 6 = 0.23570:
    # (1/3) / 0.23570 = 1.41421, (-1/6) / 0.23570 = -0.70711. Group B {1}: 0.
    rollouts = [Rollout(0, [0.0, 1.0], [A, B]), Rollout(0, [0.0, 0.0], [A, A])]
    actual = gigpo_advantages(make_batch(rollouts), gamma=0.5)
    close(actual, [[1 + math.sqrt(2), 1.0], [-1 - math.sqrt(0.5), -1 - math.sqrt(0.5)]])
    # F = 1: A_E = +-0.5, A_S = 1/3, -1/6, -1/6; omega = 3.
    actual = gigpo_advantages(make_batch(rollouts), gamma=0.5, step_advantage_weight=3.0, scale_by_std=False)
    close(actual, [[1.5, 0.5], [-1.0, -1.0]])


def test_gigpo_takes_a_penalty_off_the_return_of_its_own_turn():
    # gamma = 1: R1 = (1, 1), less 0.5 for its second turn; R2 = (1, 1). A_E = 0. A: {1, 1}; B: {0.5, 1}, mean 0.75.
    first = Rollout(0, [0.0, 1.0], [A, B], penalties=[0.0, 0.5])
    batch = make_batch([first, first._replace(penalties=None)])
    close(gigpo_advantages(batch, gamma=1.0, scale_by_std=False), [[0.0, -0.25], [0.0, 0.25]])


@few
@given(rollout_lists(), st.sampled_from([0.0, 0.95, 1.0]), st.sampled_from([0.0, 0.5, 1.0]), st.booleans())
def test_gigpo_equals_the_loop(rollouts: list[Rollout], gamma: float, weight: float, scale: bool):
    returns = [
        [value - penalty for value, penalty in zip(returns_to_go(r.rewards, gamma), r.penalties or [], strict=True)]
        for r in rollouts
    ]
    rows = []
    for i, r in enumerate(rollouts):
        row = []
        for k, state in enumerate(r.states):
            visits = [
                returns[j][m]
                for j, o in enumerate(rollouts)
                for m, other in enumerate(o.states)
                if o.group == r.group and other == state
            ]
            episode = standardised(total(r), siblings(r, rollouts), scale, 1e-3)
            row.append(episode + weight * standardised(returns[i][k], visits, scale, 1e-3))
        rows.append(row)
    batch = make_batch(rollouts)
    actual = gigpo_advantages(batch, gamma, weight, scale, eps=1e-3)
    torch.testing.assert_close(actual, padded(rows, batch.rewards), rtol=1e-6, atol=1e-6)


# IGPO


def test_igpo_by_hand():
    # Gains 1, 3 and outcome 2; gain 1 and outcome 3. Joint {1, 3, 2, 1, 3}: mean 2, population std sqrt(4 / 5).
    # z1 = (-1, 1, 0) / s, z2 = (-1, 1) / s with s = 0.89443; sums to come: (0, 1, 0) / s and (0, 1) / s.
    rollouts = [
        Rollout(0, [0.0, 0.0, 2.0], [A, A, A], gains=[1.0, 3.0, NAN]),
        Rollout(0, [0.0, 3.0], [A, A], gains=[1.0, NAN]),
    ]
    s = math.sqrt(4 / 5)
    close(igpo_advantages(make_batch(rollouts)), [[0.0, 1 / s, 0.0], [0.0, 1 / s, 0.0]])
    close(igpo_advantages(make_batch(rollouts), gamma=0.5), [[-0.5 / s, 1 / s, 0.0], [-0.5 / s, 1 / s, 0.0]])
    # Separate: gains {1, 3, 1}: mean 5/3, std sqrt(8) / 3: -0.70711, 1.41421, -0.70711; outcomes {2, 3}: -1, +1.
    # Sums to come: (-0.70711 + 1.41421 - 1, 1.41421 - 1, -1) and (-0.70711 + 1, 1).
    actual = igpo_advantages(make_batch(rollouts), normalization="separate")
    close(actual, [[-0.29289, 0.41421, -1.0], [0.29289, 1.0, 0.0]])


def test_igpo_pays_the_outcome_of_an_unanswered_rollout_at_its_last_turn():
    # Every turn has a gain; the outcomes are not lost. Joint {1, 1, 3, 3}: -1, -1, 1, 1.
    rollouts = [Rollout(0, [0.0], [A], gains=[1.0], outcome=1.0), Rollout(0, [0.0], [A], gains=[3.0], outcome=3.0)]
    close(igpo_advantages(make_batch(rollouts)), [[-2.0], [2.0]])


@few
@given(rollout_lists(), st.sampled_from([0.0, 0.5, 1.0]), st.booleans())
def test_igpo_equals_the_loop(rollouts: list[Rollout], gamma: float, joint: bool):
    rows = []
    for r in rollouts:
        group = [o for o in rollouts if o.group == r.group and o.rewards]
        gains = [g for o in group for g in o.gains or [] if not math.isnan(g)]
        outcomes = [total(o) for o in group]
        if joint:
            gains = outcomes = gains + outcomes
        rewards = [0.0 if math.isnan(g) else standardised(g, gains, True, 1e-3) for g in r.gains or []]
        if rewards:
            rewards[-1] += standardised(total(r), outcomes, True, 1e-3)
        rows.append(returns_to_go(rewards, gamma))
    batch = make_batch(rollouts)
    actual = igpo_advantages(batch, gamma, "joint" if joint else "separate", eps=1e-3)
    torch.testing.assert_close(actual, padded(rows, batch.rewards), rtol=1e-6, atol=1e-6)


@few
@given(rollout_lists(), st.sampled_from([0.0, 1.0]), st.sampled_from(["joint", "separate"]))
def test_igpo_without_process_turns_is_grpo(rollouts: list[Rollout], gamma: float, normalization: str):
    """The outcome reaches every turn undiscounted. IGPO takes the population's deviation, GRPO the sample's."""
    rollouts = [r._replace(gains=[NAN] * len(r.rewards)) for r in rollouts]
    batch = make_batch(rollouts)
    siblings_of = [sum(o.group == r.group and bool(o.rewards) for o in rollouts) for r in rollouts]
    factor = torch.tensor([math.sqrt(n / (n - 1)) if n > 1 else 1.0 for n in siblings_of], dtype=torch.float64)
    expected = grpo_advantages(batch, eps=0.0) * factor.unsqueeze(1)
    if gamma == 0.0:  # it stays at the last turn
        expected = torch.where(last_turn_mask(batch.turn_mask), expected, 0.0)
    actual = igpo_advantages(batch, gamma=gamma, normalization=normalization, eps=0.0)
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9)


# All of them

ALGORITHMS: dict[str, Callable[[TurnBatch], Tensor]] = {
    "grpo": grpo_advantages,
    "rloo": rloo_advantages,
    "gigpo": gigpo_advantages,
    "igpo_joint": igpo_advantages,
    "igpo_separate": partial(igpo_advantages, normalization="separate"),
}
every_algorithm = pytest.mark.parametrize("algorithm", ALGORITHMS.values(), ids=ALGORITHMS.keys())


@every_algorithm
@settings(max_examples=25, deadline=None)
@given(rollouts=rollout_lists())
def test_order_and_other_groups_do_not_matter(algorithm: Callable[[TurnBatch], Tensor], rollouts: list[Rollout]):
    assert_independent_of_order_and_of_other_groups(algorithm, rollouts)


@every_algorithm
@settings(max_examples=25, deadline=None)
@given(value=st.floats(-10, 10), copies=st.integers(1, 7))
def test_groups_of_equal_rollouts_are_exactly_zero(
    algorithm: Callable[[TurnBatch], Tensor], value: float, copies: int
):
    # One turn with gain = outcome, so that the joint pool of IGPO is all equal as well.
    rollouts = [Rollout(0, [value], [A], gains=[value])] * copies
    assert not algorithm(make_batch(rollouts)).any()


@every_algorithm
def test_padding_outcomes_dtype_and_purity(algorithm: Callable[[TurnBatch], Tensor]):
    rollouts = [
        Rollout(0, [0.0, 1.0], [A, B], gains=[0.5, NAN], outcome=2.0),
        Rollout(0, [0.0], [A], gains=[NAN], outcome=-1.0),
        Rollout(0, [], [], gains=[], outcome=NAN),
    ]
    batch, copy = make_batch(rollouts, torch.float32), make_batch(rollouts, torch.float32)
    actual = algorithm(batch)
    assert actual.dtype == torch.float32 and actual.isfinite().all()
    assert not actual[~batch.turn_mask].any()
    # The outcomes decide, and a rollout without a turn is no sibling.
    assert actual[0, 1] > 0 > actual[1, 0]
    torch.testing.assert_close(algorithm(make_batch(rollouts[:2], torch.float32)), actual[:2])
    assert torch.equal(batch.rewards, copy.rewards) and torch.equal(batch.turn_mask, copy.turn_mask)


@pytest.mark.parametrize(
    ("algorithm", "options", "message"),
    [
        (grpo_advantages, {"scale_by_std": "turn"}, "scale_by_std must be one of .*'batch'"),
        (grpo_advantages, {"eps": -1.0}, "eps must not be negative"),
        (gigpo_advantages, {"gamma": 2.0}, "gamma must be in"),
        (igpo_advantages, {"normalization": "both"}, "normalization must be one of .*'separate'"),
        (igpo_advantages, {"gamma": -1.0}, "gamma must be in"),
    ],
)
def test_errors_name_the_option(algorithm: Callable[..., Tensor], options: dict[str, Any], message: str):
    batch = make_batch([Rollout(0, [0.0], [A], gains=[0.0])])
    with pytest.raises(ValueError, match=message):
        algorithm(batch, **options)


def test_igpo_without_gains_is_an_error():
    with pytest.raises(ValueError, match="information_gain"):
        igpo_advantages(replace(make_batch([Rollout(0, [0.0], [A])]), information_gain=None))
