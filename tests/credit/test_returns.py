from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.credit.batches import Rollout, make_batch, padded, returns_to_go, rollout_lists
from trl_agentic.credit import discounted_returns, episode_returns, generalized_advantage_estimate
from trl_agentic.credit.returns import last_turn_mask


few = settings(max_examples=40, deadline=None)
fractions = st.sampled_from([0.0, 0.5, 0.95, 1.0])


def test_discounted_returns_by_hand():
    rewards = torch.tensor([[1.0, 2.0, 4.0], [3.0, 9.0, 9.0]])
    mask = torch.tensor([[True, True, True], [True, False, False]])
    # Row 1: R2 = 4; R1 = 2 + 0.5 * 4 = 4; R0 = 1 + 0.5 * 4 = 3. Row 2: one turn, R0 = 3, padding is not read.
    expected = torch.tensor([[3.0, 4.0, 4.0], [3.0, 0.0, 0.0]])
    torch.testing.assert_close(discounted_returns(rewards, mask, 0.5), expected)


def test_batches_without_a_turn_axis():
    empty = torch.zeros(2, 0)
    assert discounted_returns(empty, empty.bool(), 0.5).shape == (2, 0)
    assert generalized_advantage_estimate(empty, empty, empty.bool(), 0.5, 0.5).shape == (2, 0)


@few
@given(rollout_lists(), fractions)
def test_discounted_returns_equal_the_loop(rollouts: list[Rollout], gamma: float):
    batch = make_batch(rollouts, pad=float("nan"))
    actual = discounted_returns(batch.rewards, batch.turn_mask, gamma)
    expected = padded([returns_to_go(r.rewards, gamma) for r in rollouts], batch.rewards)
    torch.testing.assert_close(actual, expected)


def test_gae_by_hand():
    rewards, values = torch.tensor([[0.0, 1.0]]), torch.tensor([[0.5, 0.25]])
    mask = torch.ones(1, 2, dtype=torch.bool)
    # delta = (0 + 0.5 * 0.25 - 0.5, 1 + 0 - 0.25) = (-0.375, 0.75); A0 = -0.375 + 0.5 * 0.8 * 0.75 = -0.075
    actual = generalized_advantage_estimate(rewards, values, mask, gamma=0.5, lam=0.8)
    torch.testing.assert_close(actual, torch.tensor([[-0.075, 0.75]]))
    # A value of 2 after the cut: delta1 = 1 + 0.5 * 2 - 0.25 = 1.75; A0 = -0.375 + 0.4 * 1.75 = 0.325
    actual = generalized_advantage_estimate(rewards, values, mask, 0.5, 0.8, bootstrap_values=torch.tensor([2.0]))
    torch.testing.assert_close(actual, torch.tensor([[0.325, 1.75]]))


@few
@given(rollout_lists(), fractions, fractions, st.integers(0, 2**31))
def test_gae_equals_the_loop(rollouts: list[Rollout], gamma: float, lam: float, seed: int):
    batch = make_batch(rollouts)
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(batch.rewards.shape, dtype=torch.float64, generator=generator)
    bootstrap = torch.randn(len(rollouts), dtype=torch.float64, generator=generator)
    rows = []
    for i, r in enumerate(rollouts):
        v = [*values[i, : len(r.rewards)].tolist(), bootstrap[i].item()]
        row, following = [], 0.0
        for k in reversed(range(len(r.rewards))):
            following = r.rewards[k] + gamma * v[k + 1] - v[k] + gamma * lam * following
            row.insert(0, following)
        rows.append(row)
    actual = generalized_advantage_estimate(batch.rewards, values, batch.turn_mask, gamma, lam, bootstrap)
    torch.testing.assert_close(actual, padded(rows, batch.rewards), rtol=0, atol=1e-12)


@few
@given(rollout_lists(), st.integers(0, 2**31))
def test_gae_limits(rollouts: list[Rollout], seed: int):
    batch = make_batch(rollouts)
    mask = batch.turn_mask
    values = torch.randn(batch.rewards.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    values = torch.where(mask, values, 0.0)
    # gamma = lambda = 1: the values telescope and R - V is left.
    actual = generalized_advantage_estimate(batch.rewards, values, mask, 1.0, 1.0)
    returns = discounted_returns(batch.rewards, mask, 1.0)
    torch.testing.assert_close(actual, returns - values, rtol=0, atol=1e-12)
    # gamma = 0: r - V.
    actual = generalized_advantage_estimate(batch.rewards, values, mask, 0.0, 1.0)
    torch.testing.assert_close(actual, torch.where(mask, batch.rewards - values, 0.0))
    # V = R: every error is exactly 0, not just small.
    returns = discounted_returns(batch.rewards, mask, 0.95)
    assert not generalized_advantage_estimate(batch.rewards, returns, mask, 0.95, 0.8).any()


def test_episode_returns_prefer_outcomes():
    rollouts = [Rollout(0, [1.0, 2.0], [0, 0]), Rollout(0, [], [])]
    assert episode_returns(make_batch(rollouts)).tolist() == [3.0, 0.0]
    rollouts = [r._replace(outcome=-1.0) for r in rollouts]
    assert episode_returns(make_batch(rollouts)).tolist() == [-1.0, -1.0]


def test_episode_returns_have_the_dtype_of_the_rewards():
    batch = make_batch([Rollout(0, [1.0, 2.0], [0, 0])], torch.float32)
    assert episode_returns(batch).dtype == torch.float32
    assert episode_returns(replace(batch, outcomes=torch.ones(1, dtype=torch.float64))).dtype == torch.float32


def test_last_turn_mask():
    mask = torch.tensor([[True, True], [True, False], [False, False]])
    assert last_turn_mask(mask).tolist() == [[False, True], [True, False], [False, False]]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_dtype_is_kept_and_inputs_are_not_written(dtype: torch.dtype):
    rewards, mask = torch.ones(2, 3, dtype=dtype), torch.ones(2, 3, dtype=torch.bool)
    copies = rewards.clone(), mask.clone()
    assert discounted_returns(rewards, mask, 0.5).dtype == dtype
    assert generalized_advantage_estimate(rewards, rewards, mask, 0.5, 0.5).dtype == dtype
    assert torch.equal(rewards, copies[0]) and torch.equal(mask, copies[1])


def test_values_of_another_dtype_do_not_change_the_dtype():
    # delta = (1 + 0.5 * 1 - 1, 1 + 0.5 * 2 - 1) = (0.5, 1); A0 = 0.5 + 0.25 * 1 = 0.75
    rewards, mask = torch.ones(1, 2), torch.ones(1, 2, dtype=torch.bool)
    actual = generalized_advantage_estimate(
        rewards, rewards.double(), mask, 0.5, 0.5, bootstrap_values=torch.tensor([2.0], dtype=torch.float64)
    )
    assert actual.dtype == torch.float32 and actual.tolist() == [[0.75, 1.0]]
    assert generalized_advantage_estimate(rewards, rewards.double(), mask, 0.5, 0.5).dtype == torch.float32


@pytest.mark.parametrize("value", [-0.1, 1.1, float("nan")])
def test_errors_name_the_argument(value: float):
    rewards, mask = torch.ones(2, 3), torch.ones(2, 3, dtype=torch.bool)
    with pytest.raises(ValueError, match="^gamma must be in"):
        discounted_returns(rewards, mask, value)
    with pytest.raises(ValueError, match="^gamma must be in"):
        generalized_advantage_estimate(rewards, rewards, mask, value, 1.0)
    with pytest.raises(ValueError, match="^lam must be in"):
        generalized_advantage_estimate(rewards, rewards, mask, 1.0, value)
    with pytest.raises(ValueError, match="^turn_mask must have shape"):
        discounted_returns(rewards, mask[:1], 1.0)
    with pytest.raises(ValueError, match="^turn_mask must have shape"):
        generalized_advantage_estimate(rewards, rewards, mask[:1], 1.0, 1.0)
    with pytest.raises(ValueError, match="^values must have shape"):
        generalized_advantage_estimate(rewards, rewards[:, :1], mask, 1.0, 1.0)
    with pytest.raises(ValueError, match="^bootstrap_values must have shape"):
        generalized_advantage_estimate(rewards, rewards, mask, 1.0, 1.0, torch.zeros(3))
