from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.credit.batches import (
    NAN,
    Rollout,
    assert_independent_of_order_and_of_other_groups,
    make_batch,
    padded,
    rollout_lists,
    standardised,
    total,
)
from trl_agentic.credit import a2tgpo_advantages, a2tgpo_clip_scale


few = settings(max_examples=60, deadline=None)
# One prompt: rollout 1 gains 0.2 and 0.4, answers, R = 1; rollout 2 gains 0.0, answers, R = 0.
EXAMPLE = [
    Rollout(0, [0.0, 0.0, 1.0], [0, 1, 2], gains=[0.2, 0.4, NAN]),
    Rollout(0, [0.0, 0.0], [0, 3], gains=[0.0, NAN]),
]


def close(actual: torch.Tensor, expected: list[list[float]]) -> None:
    torch.testing.assert_close(actual, actual.new_tensor(expected), rtol=0, atol=1e-4)


def normalised_gains(rollouts: list[Rollout], norm: str, smallest: int, eps: float) -> list[list[float]]:
    """igh of every turn, NaN where there is no gain."""
    out = []
    for r in rollouts:
        row = []
        for t, gain in enumerate(r.gains or []):
            members = [
                other
                for o in rollouts
                if o.group == r.group
                for u, other in enumerate(o.gains or [])
                if not math.isnan(other) and (norm == "pooled" or u == t)
            ]
            enough = len(members) >= smallest
            row.append(NAN if math.isnan(gain) else standardised(gain, members, True, eps) if enough else 0.0)
        out.append(row)
    return out


def reference(
    rollouts: list[Rollout],
    gamma: float,
    alpha: float,
    turn_group_norm: str,
    rescale_accumulation: bool,
    min_turn_group: int,
    eps: float,
) -> list[list[float]]:
    gains = normalised_gains(rollouts, turn_group_norm, min_turn_group, eps)
    out = []
    for r, row in zip(rollouts, gains, strict=True):
        outcome = standardised(
            total(r), [total(o) for o in rollouts if o.group == r.group and o.rewards] or [0], True, eps
        )
        advantages = []
        for t in range(len(row)):
            terms = [gamma ** (k - t) * row[k] for k in range(t, len(row)) if not math.isnan(row[k])]
            divisor = math.sqrt(len(terms)) if rescale_accumulation and terms else 1.0
            advantages.append(alpha * math.fsum(terms) / divisor + outcome)
        out.append(advantages)
    return out


options = st.fixed_dictionaries(
    {
        "turn_group_norm": st.sampled_from(["turn", "pooled"]),
        "min_turn_group": st.sampled_from([1, 2, 3]),
    }
)


def test_worked_example():
    # Turn 1 group {0.2, 0}: igh = +1, -1. Turn 2 group {0.4}: one member, 0.
    # D1 = (1, 0), n1 = (2, 1); D2 = -1, n2 = 1; Rh = (+1, -1). A1 = (1 / sqrt(2) + 1, 0 + 1, 1), A2 = (-1 - 1, -1).
    batch = make_batch(EXAMPLE)
    close(a2tgpo_advantages(batch), [[1.7071, 1.0, 1.0], [-2.0, -1.0, 0.0]])
    # c1 = (1 + 0.3 * (2 * sigmoid(1) - 1), 1, 1), c2 = (1 + 0.3 * (2 * sigmoid(-1) - 1), 1); sigmoid(1) = 0.73106.
    close(a2tgpo_clip_scale(batch), [[1.1386, 1.0, 1.0], [0.8614, 1.0, 1.0]])


def test_options_by_hand():
    batch = make_batch(EXAMPLE)
    # Without rescaling the first turn keeps D = 1.
    close(a2tgpo_advantages(batch, rescale_accumulation=False), [[2.0, 1.0, 1.0], [-2.0, -1.0, 0.0]])
    close(a2tgpo_advantages(batch, alpha=0.3), [[0.3 / math.sqrt(2) + 1, 1.0, 1.0], [-1.3, -1.0, 0.0]])
    # Pooled {0.2, 0.4, 0}: mean 0.2, population std sqrt(0.08 / 3) = 0.16330: igh = 0, 1.2247, -1.2247.
    # gamma = 0.5: D1 = (0.61237, 1.22474), n1 = (2, 1).
    actual = a2tgpo_advantages(batch, gamma=0.5, turn_group_norm="pooled")
    close(actual, [[0.61237 / math.sqrt(2) + 1, 2.22474, 1.0], [-2.22474, -1.0, 0.0]])
    # A group of one is normalised when it is large enough: still 0. A group of two is not when three are asked for.
    close(a2tgpo_advantages(batch, min_turn_group=1), [[1.7071, 1.0, 1.0], [-2.0, -1.0, 0.0]])
    close(a2tgpo_advantages(batch, min_turn_group=3), [[1.0, 1.0, 1.0], [-1.0, -1.0, 0.0]])


def test_a_gain_of_zero_is_a_gain():
    # Turn 1 group {0, 0.2, 0}: mean 1/15, so the zeros get -0.7071 and the other one 1.4142.
    rollouts = [Rollout(0, [0.0], [0], gains=[g]) for g in (0.0, 0.2, 0.0)]
    close(a2tgpo_advantages(make_batch(rollouts)), [[-math.sqrt(0.5)], [math.sqrt(2)], [-math.sqrt(0.5)]])
    assert (a2tgpo_clip_scale(make_batch(rollouts)) != 1).all()
    rollouts[0] = rollouts[0]._replace(gains=[NAN])
    close(a2tgpo_advantages(make_batch(rollouts)), [[0.0], [1.0], [-1.0]])


def test_the_answer_turn_has_no_gain_even_if_a_number_is_given():
    batch = make_batch([r._replace(gains=[0.0 if math.isnan(g) else g for g in r.gains or []]) for r in EXAMPLE])
    answered = replace(batch, answered=torch.tensor([True, True]))
    close(a2tgpo_advantages(answered), [[1.7071, 1.0, 1.0], [-2.0, -1.0, 0.0]])
    # Cut before its answer, every turn of a rollout is a process turn: turn 2 group {0.4, 0}: +1, -1, turn 3 alone.
    # D1 = (2, 1, 0), n1 = (3, 2, 1); D2 = (-2, -1), n2 = (2, 1).
    cut = replace(batch, answered=torch.tensor([False, False]))
    expected = [[2 / math.sqrt(3) + 1, 1 / math.sqrt(2) + 1, 1.0], [-2 / math.sqrt(2) - 1, -2.0, 0.0]]
    close(a2tgpo_advantages(cut), expected)
    close(a2tgpo_advantages(batch), expected)


@few
@given(rollout_lists(), options, st.sampled_from([0.0, 0.5, 1.0]), st.sampled_from([0.3, 1.0]), st.booleans())
def test_equals_the_loop(
    rollouts: list[Rollout], chosen: dict[str, Any], gamma: float, alpha: float, rescale_accumulation: bool
):
    batch = make_batch(rollouts)
    chosen = {**chosen, "gamma": gamma, "alpha": alpha, "rescale_accumulation": rescale_accumulation, "eps": 1e-3}
    actual = a2tgpo_advantages(batch, **chosen)
    torch.testing.assert_close(actual, padded(reference(rollouts, **chosen), batch.rewards), rtol=1e-6, atol=1e-6)


@few
@given(rollout_lists(), options, st.sampled_from([0.0, 0.3, 1.0]))
def test_clip_scale_equals_the_loop(rollouts: list[Rollout], chosen: dict[str, Any], clip_beta: float):
    batch = make_batch(rollouts)
    actual = a2tgpo_clip_scale(batch, clip_beta, eps=1e-3, **chosen)
    gains = normalised_gains(rollouts, chosen["turn_group_norm"], chosen["min_turn_group"], 1e-3)
    rows = [[0.0 if math.isnan(g) else clip_beta * (2 / (1 + math.exp(-g)) - 1) for g in row] for row in gains]
    torch.testing.assert_close(actual, 1 + padded(rows, batch.rewards), rtol=0, atol=1e-6)
    without_gain = ~batch.turn_mask | torch.isnan(batch.information_gain)
    assert (actual[without_gain] == 1).all()
    assert ((actual >= 1 - clip_beta) & (actual <= 1 + clip_beta)).all()


@few
@given(rollout_lists(), options)
def test_order_and_other_groups_do_not_matter(rollouts: list[Rollout], chosen: dict[str, Any]):
    for algorithm in (a2tgpo_advantages, a2tgpo_clip_scale):
        assert_independent_of_order_and_of_other_groups(
            lambda batch, algorithm=algorithm: algorithm(batch, eps=1e-3, **chosen), rollouts
        )


@few
@given(rollout_lists(), st.integers(1, 5), options)
def test_equal_rollouts_have_exactly_no_advantage_under_turn_norm(
    rollouts: list[Rollout], copies: int, chosen: dict[str, Any]
):
    batch = make_batch([rollouts[0]] * copies)
    assert not a2tgpo_advantages(batch, **{**chosen, "turn_group_norm": "turn", "eps": 0.0}).any()
    assert (a2tgpo_clip_scale(batch, **{**chosen, "turn_group_norm": "turn", "eps": 0.0}) == 1).all()


def test_a_rollout_without_siblings_has_no_advantage_and_the_plain_clip_range():
    batch = make_batch([EXAMPLE[0], EXAMPLE[1]._replace(group=1)])
    assert not a2tgpo_advantages(batch).any()
    assert (a2tgpo_clip_scale(batch) == 1).all()


def test_dtype_is_kept_and_the_batch_is_not_written():
    batch, copy = make_batch(EXAMPLE, torch.float32), make_batch(EXAMPLE, torch.float32)
    assert a2tgpo_advantages(batch).dtype == a2tgpo_clip_scale(batch).dtype == torch.float32
    assert torch.equal(batch.rewards, copy.rewards)
    assert torch.equal(batch.information_gain.nan_to_num(9.0), copy.information_gain.nan_to_num(9.0))


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("gamma", 1.5, "gamma must be in"),
        ("turn_group_norm", "prompt", "turn_group_norm must be one of .*'pooled'"),
        ("min_turn_group", 0, "min_turn_group must be at least 1"),
        ("eps", -1.0, "eps must not be negative"),
    ],
)
def test_errors_name_the_option(option: str, value: Any, message: str):
    with pytest.raises(ValueError, match=message):
        a2tgpo_advantages(make_batch(EXAMPLE), **{option: value})


def test_more_errors():
    for clip_beta in (-0.1, 1.5, NAN):
        with pytest.raises(ValueError, match="clip_beta must be in"):
            a2tgpo_clip_scale(make_batch(EXAMPLE), clip_beta=clip_beta)
    with pytest.raises(ValueError, match="information_gain"):
        a2tgpo_advantages(replace(make_batch(EXAMPLE), information_gain=None))
