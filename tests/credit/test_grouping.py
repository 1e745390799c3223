from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.credit.batches import Rollout, make_batch, mean, rollout_lists, standardised
from trl_agentic.credit import anchor_statistics, combine_keys, grouped_mean, grouped_normalize, grouped_std


few = settings(max_examples=60, deadline=None)
entries = st.lists(
    st.tuples(
        st.floats(-100, 100, width=32),
        st.sampled_from([-(2**63), -1, 0, 5, 2**63 - 1]),
        st.booleans(),
    ),
    max_size=12,
)


def columns(rows: list[tuple[float, int, bool]]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return (
        torch.tensor([v for v, _, _ in rows], dtype=torch.float64),
        torch.tensor([k for _, k, _ in rows], dtype=torch.int64),
        torch.tensor([m for _, _, m in rows], dtype=torch.bool),
    )


def test_mean_and_normalisation_by_hand():
    values = torch.tensor([[1.0, 3.0], [5.0, 100.0]])
    keys = torch.tensor([[-9, -9], [4, 4]])
    mask = torch.tensor([[True, True], [True, False]])
    assert grouped_mean(values, keys, mask).tolist() == [[2.0, 2.0], [5.0, 0.0]]
    # The others of {1, 3} are 3 and 1; 5 has no others and keeps its own value.
    assert grouped_mean(values, keys, mask, leave_one_out=True).tolist() == [[3.0, 1.0], [5.0, 0.0]]
    # {1, 3}: population std 1, sample std sqrt(2).
    assert grouped_std(values, keys, mask).tolist() == [[1.0, 1.0], [0.0, 0.0]]
    torch.testing.assert_close(grouped_std(values, keys, mask, correction=1)[0], torch.full((2,), math.sqrt(2)))
    assert grouped_normalize(values, keys, mask, eps=0.0).tolist() == [[-1.0, 1.0], [0.0, 0.0]]
    assert grouped_normalize(values, keys, mask, eps=1.0).tolist() == [[-0.5, 0.5], [0.0, 0.0]]
    # The default eps is 1e-6: 1 / (1 + 1e-6) = 0.999999.
    by_default = grouped_normalize(values.double(), keys, mask)[0]
    torch.testing.assert_close(by_default, torch.tensor([-0.999999, 0.999999]).double(), rtol=0, atol=1e-7)
    assert grouped_normalize(values + 1, keys, mask, scale_by_std=False).tolist() == [[-1.0, 1.0], [0.0, 0.0]]


@few
@given(entries, st.booleans(), st.sampled_from([0.0, 1e-6, 0.1]))
def test_statistics_equal_the_loop(rows: list[tuple[float, int, bool]], scale: bool, eps: float):
    values, keys, mask = columns(rows)
    means, others_means, normalised = [], [], []
    for i, (value, key, member) in enumerate(rows):
        members = [v for v, k, m in rows if m and k == key]
        others = [v for j, (v, k, m) in enumerate(rows) if m and k == key and j != i]
        means.append(mean(members) if member else 0.0)
        others_means.append((mean(others) if others else value) if member else 0.0)
        normalised.append(standardised(value, members, scale, eps) if member else 0.0)
    close = {"rtol": 1e-9, "atol": 1e-9}
    torch.testing.assert_close(grouped_mean(values, keys, mask), values.new_tensor(means), **close)
    torch.testing.assert_close(grouped_mean(values, keys, mask, True), values.new_tensor(others_means), **close)
    actual = grouped_normalize(values, keys, mask, scale, eps)
    torch.testing.assert_close(actual, values.new_tensor(normalised), rtol=1e-6, atol=1e-6)


@few
@given(entries, st.randoms(use_true_random=False))
def test_order_does_not_matter(rows: list[tuple[float, int, bool]], random):
    values, keys, mask = columns(rows)
    order = list(range(len(rows)))
    random.shuffle(order)
    shuffled = grouped_normalize(values[order], keys[order], mask[order], eps=1e-3)
    torch.testing.assert_close(shuffled, grouped_normalize(values, keys, mask, eps=1e-3)[order], rtol=0, atol=1e-9)


@few
@given(st.floats(-1e6, 1e6), st.integers(1, 11), st.sampled_from([torch.float32, torch.float64]))
def test_equal_values_have_exactly_their_mean_and_deviation_zero(value: float, n: int, dtype: torch.dtype):
    # 0.1 + 0.1 + 0.1 is not 3 * 0.1 in floating point: a plain sum would leave a difference, and eps = 0 would blow
    # it up.
    values = torch.full((n,), value, dtype=dtype)
    keys, mask = torch.zeros(n, dtype=torch.int64), torch.ones(n, dtype=torch.bool)
    assert torch.equal(grouped_mean(values, keys, mask), values)
    assert torch.equal(grouped_mean(values, keys, mask, leave_one_out=True), values)
    assert torch.equal(grouped_normalize(values, keys, mask, eps=0.0), torch.zeros_like(values))
    assert torch.equal(grouped_std(values, keys, mask, correction=1), torch.zeros_like(values))
    for function in (grouped_mean, grouped_std, grouped_normalize):
        assert function(values, keys, mask).dtype == dtype


def test_nan_outside_the_mask_is_not_read():
    values = torch.tensor([1.0, float("nan"), 3.0])
    keys, mask = torch.zeros(3, dtype=torch.int64), torch.tensor([True, False, True])
    assert grouped_mean(values, keys, mask).tolist() == [2.0, 0.0, 2.0]
    assert grouped_mean(values, keys, mask, True).tolist() == [3.0, 0.0, 1.0]
    assert grouped_normalize(values, keys, mask, eps=0.0).tolist() == [-1.0, 0.0, 1.0]


@few
@given(st.lists(st.tuples(*[st.sampled_from([-(2**63), -1, 0, 1, 2**32, 2**63 - 1])] * 2), min_size=1, max_size=12))
def test_combined_keys_are_equal_exactly_for_equal_pairs(pairs: list[tuple[int, int]]):
    first, second = torch.tensor(pairs).unbind(1)
    combined = combine_keys(first, second).tolist()
    assert all((a == b) == (p == q) for a, p in zip(combined, pairs) for b, q in zip(combined, pairs))  # noqa: B905


def test_anchor_statistics_by_hand():
    # Group 0 visits A twice in one rollout and B once; A of group 1 is another state. 4 turns in 3 states, 2 alone.
    rollouts = [Rollout(0, [0.0] * 3, [1, 2, 1]), Rollout(1, [0.0], [1]), Rollout(1, [], [])]
    statistics = anchor_statistics(make_batch(rollouts))
    assert statistics.singleton_frac == pytest.approx(2 / 4)
    assert statistics.group_size == pytest.approx(4 / 3)
    assert anchor_statistics(make_batch(rollouts[2:])) == (0.0, 0.0)


@few
@given(rollout_lists(min_turns=1))
def test_anchor_statistics_equal_the_loop(rollouts: list[Rollout]):
    turns = [(r.group, state) for r in rollouts for state in r.states]
    statistics = anchor_statistics(make_batch(rollouts))
    assert statistics.singleton_frac == pytest.approx(sum(turns.count(t) == 1 for t in turns) / len(turns))
    assert statistics.group_size == pytest.approx(len(turns) / len(set(turns)))


def test_errors_name_the_argument():
    values, keys, mask = torch.zeros(3), torch.zeros(3, dtype=torch.int64), torch.ones(3, dtype=torch.bool)
    for wrong, name in (
        ((values, keys[:2], mask), "keys"),
        ((values, keys, mask[:2]), "mask"),
        ((values.long(), keys, mask), "values"),
        ((values, keys.float(), mask), "keys"),
        ((values, keys, mask.long()), "mask"),
    ):
        with pytest.raises(ValueError, match=f"^{name} must "):
            grouped_mean(*wrong)
    with pytest.raises(ValueError, match="eps"):
        grouped_normalize(values, keys, mask, eps=-1e-6)
