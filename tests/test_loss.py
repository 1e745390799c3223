from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from trl_agentic.loss import (
    aggregate,
    clipped_surrogate,
    count_turns,
    importance_correction,
    importance_ratio,
    turn_lengths,
)


few = settings(max_examples=50, deadline=None)
levels = st.sampled_from(["token", "turn", "sequence"])


@st.composite
def token_batches(draw: st.DrawFn) -> tuple[Tensor, Tensor, Tensor]:
    """(log_ratio, mask, turn_ids): turns may be scattered and have any ids; values outside the mask are arbitrary."""
    b, t = draw(st.integers(1, 4)), draw(st.integers(1, 8))
    cells = st.tuples(st.floats(-1, 1), st.booleans(), st.sampled_from([-(2**40), -1, 0, 1, 7]))
    rows = draw(st.lists(st.lists(cells, min_size=t, max_size=t), min_size=b, max_size=b))
    log_ratio = torch.tensor([[x for x, _, _ in row] for row in rows], dtype=torch.float64)
    mask = torch.tensor([[m for _, m, _ in row] for row in rows])
    return log_ratio, mask, torch.tensor([[i for _, _, i in row] for row in rows])


def turns_of(mask: Tensor, turn_ids: Tensor) -> dict[tuple[int, int], list[int]]:
    """(row, turn) -> its token positions."""
    turns: dict[tuple[int, int], list[int]] = {}
    for i, t in mask.nonzero().tolist():
        turns.setdefault((i, int(turn_ids[i, t])), []).append(t)
    return turns


# importance_ratio


def test_ratio_by_hand():
    log_ratio = torch.tensor([[0.2, 0.4, 9.0, -0.3, 0.0]])
    mask = torch.tensor([[1, 1, 0, 1, 1]])
    turn_ids = torch.tensor([[3, 3, -1, 4, 4]])
    token = importance_ratio(log_ratio, mask, level="token")
    torch.testing.assert_close(token, torch.tensor([[0.2, 0.4, 0.0, -0.3, 0.0]]).exp())
    # Turn 3: (0.2 + 0.4) / 2 = 0.3; turn 4: (-0.3 + 0) / 2 = -0.15. Row: 0.3 / 4 = 0.075.
    turn = importance_ratio(log_ratio, mask, turn_ids, level="turn")
    torch.testing.assert_close(turn, torch.tensor([[0.3, 0.3, 0.0, -0.15, -0.15]]).exp())
    sequence = importance_ratio(log_ratio, mask, level="sequence")
    torch.testing.assert_close(sequence, torch.tensor([[0.075, 0.075, 0.0, 0.075, 0.075]]).exp())


@few
@given(token_batches())
def test_ratio_equals_the_loop(batch: tuple[Tensor, Tensor, Tensor]):
    log_ratio, mask, turn_ids = batch
    expected = {level: torch.ones_like(log_ratio) for level in ("token", "turn", "sequence")}
    for (i, _), tokens in turns_of(mask, turn_ids).items():
        row = mask[i].nonzero().flatten().tolist()
        for t in tokens:
            expected["token"][i, t] = math.exp(log_ratio[i, t])
            expected["turn"][i, t] = math.exp(math.fsum(log_ratio[i, tokens]) / len(tokens))
            expected["sequence"][i, t] = math.exp(math.fsum(log_ratio[i, row]) / len(row))
    for level, values in expected.items():
        torch.testing.assert_close(importance_ratio(log_ratio, mask, turn_ids, level), values)


@few
@given(token_batches())
def test_sequence_level_is_the_formula_of_trl(batch: tuple[Tensor, Tensor, Tensor]):
    log_ratio, mask, _ = batch
    mask = mask.long()
    expected = ((log_ratio * mask).sum(-1) / mask.sum(-1).clamp(min=1.0)).unsqueeze(-1).exp().expand_as(mask)
    actual = importance_ratio(log_ratio, mask, level="sequence")
    torch.testing.assert_close(actual[mask.bool()], expected[mask.bool()])


@few
@given(token_batches(), levels)
def test_equal_policies_have_ratio_exactly_one(batch: tuple[Tensor, Tensor, Tensor], level: str):
    log_ratio, mask, turn_ids = batch
    assert (importance_ratio(torch.zeros_like(log_ratio), mask, turn_ids, level) == 1).all()


@settings(max_examples=15, deadline=None)
@given(token_batches(), levels)
def test_gradient_of_the_ratio(batch: tuple[Tensor, Tensor, Tensor], level: str):
    log_ratio, mask, turn_ids = batch
    log_ratio.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: importance_ratio(x, mask, turn_ids, level), (log_ratio,))


def test_gradient_flows_through_the_mean():
    # d s / d l[t] = s / n for each of the n tokens of the turn, so that the turn's sum of s has gradient s per token.
    log_ratio = torch.tensor([[0.2, 0.4, 0.6]], dtype=torch.float64, requires_grad=True)
    mask, turn_ids = torch.tensor([[True, True, True]]), torch.tensor([[0, 0, 1]])
    ratio = importance_ratio(log_ratio, mask, turn_ids, level="turn")
    (gradient,) = torch.autograd.grad(ratio[0, 0], log_ratio, retain_graph=True)
    torch.testing.assert_close(gradient, torch.tensor([[math.exp(0.3) / 2] * 2 + [0.0]], dtype=torch.float64))
    (gradient,) = torch.autograd.grad(ratio.sum(), log_ratio)
    expected = torch.tensor([[math.exp(0.3)] * 2 + [math.exp(0.6)]], dtype=torch.float64)
    torch.testing.assert_close(gradient, expected)


@pytest.mark.parametrize("level", ["token", "turn", "sequence"])
def test_nan_outside_the_mask_reaches_neither_ratio_nor_gradient(level: str):
    log_ratio = torch.tensor([[0.1, math.nan, 0.2], [math.inf, -math.inf, math.nan]], requires_grad=True)
    mask = torch.tensor([[True, False, True], [False, False, False]])
    ratio = importance_ratio(log_ratio, mask, torch.zeros(2, 3, dtype=torch.int64), level)
    assert (ratio[~mask] == 1).all() and ratio.isfinite().all()
    ratio.sum().backward()
    assert log_ratio.grad is not None and log_ratio.grad.isfinite().all()
    assert not log_ratio.grad[~mask].any()


@few
@given(token_batches(), levels)
def test_rows_are_independent(batch: tuple[Tensor, Tensor, Tensor], level: str):
    log_ratio, mask, turn_ids = batch
    together = importance_ratio(log_ratio, mask, turn_ids, level)
    alone = [importance_ratio(*(x[i : i + 1] for x in batch), level) for i in range(len(mask))]
    torch.testing.assert_close(torch.cat(alone), together)


@pytest.mark.parametrize("level", ["token", "turn", "sequence"])
def test_ratio_keeps_dtype_and_writes_to_no_input(level: str):
    for dtype in (torch.bfloat16, torch.float32, torch.float64):
        inputs = torch.full((2, 3), 0.25, dtype=dtype), torch.tensor([[1, 1, 0]] * 2), torch.tensor([[0, 0, -1]] * 2)
        copies = [x.clone() for x in inputs]
        assert importance_ratio(*inputs, level).dtype == dtype
        assert all(torch.equal(x, copy) for x, copy in zip(inputs, copies, strict=True))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_counts_long_turns(dtype: torch.dtype):
    # 1,000 ones cannot be summed one after the other in bfloat16: the sum stops at 256.
    log_ratio = torch.full((1, 1000), 0.25, dtype=dtype)
    mask, turn_ids = torch.ones(1, 1000, dtype=torch.bool), torch.zeros(1, 1000, dtype=torch.int64)
    expected = torch.tensor(0.25, dtype=dtype).exp()
    for level in ("turn", "sequence"):
        assert (importance_ratio(log_ratio, mask, turn_ids, level) == expected).all()
    for level in ("token", "turn", "rollout"):
        assert aggregate(log_ratio, mask, level, turn_ids) == 0.25


def test_half_precision_is_rounded_once():
    # In bfloat16, 257 is 256: rounded before the division, the mean of 257 ones would be 256 / 257, which is 0.996.
    ones = torch.ones(1, 257, dtype=torch.bfloat16)
    assert aggregate(ones, ones.bool()).item() == 1.0


def test_ratio_of_empty_tensors():
    for shape in ((0, 3), (2, 0)):
        for level in ("token", "turn", "sequence"):
            empty = torch.zeros(shape)
            assert importance_ratio(empty, empty.bool(), empty.long(), level).shape == shape


def test_ratio_errors_name_the_argument():
    x, mask, ids = torch.zeros(2, 3), torch.ones(2, 3, dtype=torch.bool), torch.zeros(2, 3, dtype=torch.int64)
    with pytest.raises(ValueError, match="level must be one of .*'turn'.*got 'step'"):
        importance_ratio(x, mask, ids, "step")
    with pytest.raises(ValueError, match="turn_ids must be given"):
        importance_ratio(x, mask, level="turn")
    with pytest.raises(ValueError, match="turn_ids must have shape"):
        importance_ratio(x, mask, ids[:1], "turn")
    with pytest.raises(ValueError, match="mask must have shape"):
        importance_ratio(x, mask[:, :1], ids)


# clipped_surrogate


def test_surrogate_by_hand():
    ratio = torch.tensor([[0.5, 0.5, 1.0, 1.5, 1.5]])
    advantages = torch.tensor([[2.0, -2.0, 3.0, 2.0, -2.0]])
    loss, is_clipped = clipped_surrogate(ratio, advantages, 0.2, 0.3)
    # -min(0.5 * 2, 0.8 * 2) = -1; -min(-1, -1.6) = 1.6 (clipped); -3; -min(3, 1.3 * 2) = -2.6 (clipped);
    # -min(-3, -2.6) = 3.
    torch.testing.assert_close(loss, torch.tensor([[-1.0, 1.6, -3.0, -2.6, 3.0]]))
    assert is_clipped.tolist() == [[False, True, False, True, False]]
    # With an advantage of 0 there is nothing to clip.
    loss, is_clipped = clipped_surrogate(ratio, torch.zeros_like(ratio), 0.2, 0.3)
    assert not loss.any() and not is_clipped.any()


ratios = st.lists(st.floats(0.1, 3), min_size=6, max_size=6)
weights = st.lists(st.sampled_from([-2.0, -0.5, 0.0, 1.0]), min_size=6, max_size=6)
bounds = st.sampled_from([0.0, 3e-3, 0.2, 0.9])


@few
@given(ratios, weights, bounds, bounds)
def test_surrogate_is_the_formula_of_trl(r: list[float], a: list[float], low: float, high: float):
    ratio, advantages = torch.tensor(r).view(2, 3), torch.tensor(a).view(2, 3)
    clipped = torch.clamp(ratio, 1 - low, 1 + high)
    expected = -torch.min(ratio * advantages, clipped * advantages)
    is_low = (ratio < 1 - low) & (advantages < 0)
    is_high = (ratio > 1 + high) & (advantages > 0)
    loss, is_clipped = clipped_surrogate(ratio, advantages, low, high)
    assert torch.equal(loss, expected) and torch.equal(is_clipped, is_low | is_high)
    # The sign of the advantage distinguishes the low bound from the high one.
    assert torch.equal(is_clipped & (advantages < 0), is_low)


@few
@given(ratios, weights, bounds, bounds)
def test_bounds_as_tensors_are_the_bounds_as_numbers(r: list[float], a: list[float], low: float, high: float):
    ratio, advantages = (torch.tensor(x, dtype=torch.float64).view(2, 3) for x in (r, a))
    expected = clipped_surrogate(ratio, advantages, low, high)
    for shape in ((), (2, 1), (2, 3)):
        lows, highs = (torch.full(shape, x, dtype=torch.float64) for x in (low, high))
        for pair in ((lows, highs), (lows, high), (low, highs)):
            for actual, value in zip(clipped_surrogate(ratio, advantages, *pair), expected, strict=True):
                torch.testing.assert_close(actual, value, rtol=0, atol=1e-12)


def test_each_token_has_its_own_range():
    ratio, advantages = torch.full((1, 3), 1.25), torch.ones(1, 3)
    # Upper bounds 1.1, 1.2, 1.3.
    loss, is_clipped = clipped_surrogate(ratio, advantages, 0.2, torch.tensor([[0.1, 0.2, 0.3]]))
    torch.testing.assert_close(loss, torch.tensor([[-1.1, -1.2, -1.25]]))
    assert is_clipped.tolist() == [[True, True, False]]


def test_one_advantage_per_row_broadcasts():
    ratio = torch.tensor([[0.9, 1.1], [0.9, 1.1]])
    per_row = clipped_surrogate(ratio, torch.tensor([[1.0], [-1.0]]), 0.2, 0.2)[0]
    torch.testing.assert_close(per_row, torch.tensor([[-0.9, -1.1], [0.9, 1.1]]))


@few
@given(ratios, weights)
def test_clipped_tokens_have_no_gradient_and_others_minus_the_advantage(r: list[float], a: list[float]):
    ratio = torch.tensor(r, dtype=torch.float64).view(2, 3).requires_grad_()
    advantages = torch.tensor(a, dtype=torch.float64).view(2, 3)
    high = torch.full((2, 3), 0.3, dtype=torch.float64, requires_grad=True)
    for bound in (0.3, high):
        loss, is_clipped = clipped_surrogate(ratio, advantages, 0.2, bound)
        (gradient,) = torch.autograd.grad(loss.sum(), ratio)
        torch.testing.assert_close(gradient, torch.where(is_clipped, 0.0, -advantages))


def test_no_gradient_flows_through_the_bounds():
    # Both tokens are clipped, so that the value of the loss is -(1 + high) and 1 - low and depends on the bounds.
    ratio = torch.tensor([[1.5, 0.5]], requires_grad=True)
    low, high = (torch.tensor([[0.1, 0.2]], requires_grad=True) for _ in range(2))
    loss, is_clipped = clipped_surrogate(ratio, torch.tensor([[1.0, -1.0]]), low, high)
    torch.testing.assert_close(loss.detach(), torch.tensor([[-1.1, 0.8]]))
    assert is_clipped.all()
    gradients = torch.autograd.grad(loss.sum(), (ratio, low, high), allow_unused=True)
    assert gradients[0] is not None and not gradients[0].any()
    assert gradients[1] is None and gradients[2] is None


def test_a_ratio_on_the_bound_is_not_clipped():
    ratio = torch.tensor([[0.75, 1.25]])
    for bound in (0.25, torch.tensor(0.25)):
        _, is_clipped = clipped_surrogate(ratio, torch.tensor([[-1.0, 1.0]]), bound, bound)
        assert is_clipped.tolist() == [[False, False]]


def test_surrogate_errors_name_the_argument():
    ratio = torch.ones(3, 3)
    with pytest.raises(ValueError, match="advantages must have one of the shapes"):
        clipped_surrogate(ratio, torch.ones(3), 0.2, 0.2)  # would run along the wrong axis
    with pytest.raises(ValueError, match="clip_low must have one of the shapes"):
        clipped_surrogate(ratio, ratio, torch.ones(3), 0.2)
    with pytest.raises(ValueError, match="clip_high must not be negative"):
        clipped_surrogate(ratio, ratio, 0.2, -0.2)


# aggregate


def test_aggregate_by_hand():
    loss = torch.tensor([[1.0, 2.0, 3.0, 99.0], [4.0, math.nan, 6.0, 8.0]])
    mask = torch.tensor([[1, 1, 1, 0], [1, 0, 1, 1]])
    turn_ids = torch.tensor([[0, 0, 1, -1], [0, -1, 0, 0]])
    # Tokens: 24 / 6. Turns: 1.5, 3, 6 over 3. Rollouts: 2, 6 over 2.
    assert aggregate(loss, mask).item() == pytest.approx(4.0)
    assert aggregate(loss, mask, "turn", turn_ids).item() == pytest.approx(3.5)
    assert aggregate(loss, mask, "rollout").item() == pytest.approx(4.0)
    # Over the numbers of a larger batch: 12 tokens, 7 turns, 4 rollouts.
    assert aggregate(loss, mask, normalizer=12).item() == pytest.approx(2.0)
    assert aggregate(loss, mask, "turn", turn_ids, normalizer=torch.tensor(7)).item() == pytest.approx(1.5)
    # Two training sequences of one rollout with 6 tokens: 24 / 6.
    assert aggregate(loss, mask, "rollout", rollout_lengths=torch.tensor([6, 6]), normalizer=1).item() == 4.0
    assert count_turns(mask, turn_ids).item() == 3
    assert turn_lengths(mask, turn_ids).tolist() == [[2, 2, 1, 0], [3, 0, 3, 3]]


@few
@given(token_batches(), st.data())
def test_the_mean_over_rollouts_does_not_depend_on_their_training_sequences(
    batch: tuple[Tensor, Tensor, Tensor], data: st.DataObject
):
    """GRPO's aggregation of rollouts that have several training sequences equals the loop over rollouts."""
    loss, mask, _ = batch
    rollouts = data.draw(st.lists(st.sampled_from([-1, 0, 5]), min_size=len(mask), max_size=len(mask)))
    values: dict[int, list[float]] = {}
    for i, t in mask.nonzero().tolist():
        values.setdefault(rollouts[i], []).append(loss[i, t].item())
    means = [math.fsum(numbers) / len(numbers) for numbers in values.values()]
    lengths = torch.tensor([len(values.get(rollout, [])) for rollout in rollouts])
    actual = aggregate(loss, mask, "rollout", rollout_lengths=lengths, normalizer=len(means))
    assert actual.item() == pytest.approx(math.fsum(means) / max(len(means), 1), abs=1e-9)


@few
@given(token_batches())
def test_aggregate_equals_the_loop(batch: tuple[Tensor, Tensor, Tensor]):
    loss, mask, turn_ids = batch
    turns = turns_of(mask, turn_ids)
    of_turns = [math.fsum(loss[i, tokens]) / len(tokens) for (i, _), tokens in turns.items()]
    of_rows = [loss[i][mask[i]].mean().item() for i in range(len(mask)) if mask[i].any()]
    of_tokens = loss[mask].tolist()
    for level, values in (("token", of_tokens), ("turn", of_turns), ("rollout", of_rows)):
        expected = math.fsum(values) / max(len(values), 1)
        assert aggregate(loss, mask, level, turn_ids).item() == pytest.approx(expected, abs=1e-9)
    assert count_turns(mask, turn_ids).item() == len(turns)


@few
@given(token_batches(), st.data())
def test_gradients_do_not_depend_on_micro_batches(batch: tuple[Tensor, Tensor, Tensor], data: st.DataObject):
    log_ratio, mask, turn_ids = batch
    cut = data.draw(st.integers(0, len(mask)))
    numbers = {
        "token": mask.sum(),
        "turn": count_turns(mask, turn_ids),
        "rollout": mask.any(1).sum(),
    }
    lengths = mask.sum(1)
    for level, number in numbers.items():
        gradients = []
        for parts in ([slice(None)], [slice(0, cut), slice(cut, None)]):
            x = log_ratio.clone().requires_grad_()
            for part in parts:
                loss = importance_ratio(x[part], mask[part], turn_ids[part], "turn")
                aggregate(loss, mask[part], level, turn_ids[part], lengths[part], number).backward()
            gradients.append(x.grad)
        torch.testing.assert_close(gradients[0], gradients[1], rtol=0, atol=1e-12)


def test_a_rollout_may_have_several_training_sequences():
    # One sequence of five tokens in two turns, or one sequence per turn: same loss at every level.
    loss, mask = torch.tensor([[1.0, 2.0, 0.0, 5.0, 7.0, 9.0]]), torch.tensor([[1, 1, 0, 1, 1, 1]])
    turn_ids = torch.tensor([[0, 0, -1, 1, 1, 1]])
    rows = [(x[:, :3], x[:, 3:]) for x in (loss, mask, turn_ids)]
    lengths = torch.tensor([5])
    for level, number in (("token", 5), ("turn", 2), ("rollout", 1)):
        whole = aggregate(loss, mask, level, turn_ids, lengths, number)
        parts = sum(aggregate(x, m, level, ids, lengths, number) for x, m, ids in zip(*rows, strict=True))
        torch.testing.assert_close(parts, whole)


@pytest.mark.parametrize("level", ["token", "turn", "rollout"])
def test_padded_rows_add_nothing(level: str):
    loss = torch.full((2, 3), math.nan, requires_grad=True)
    mask, turn_ids = torch.zeros(2, 3, dtype=torch.int64), torch.full((2, 3), -1)
    value = aggregate(loss, mask, level, turn_ids)
    value.backward()
    assert value.item() == 0 and loss.grad is not None and not loss.grad.any()
    empty = torch.zeros(2, 0)
    assert aggregate(empty, empty.long(), level, empty.long()).item() == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"level": "step"}, "level must be one of .*'rollout'"),
        ({"level": "turn"}, "turn_ids must be given"),
        ({"mask": torch.ones(2, 1)}, "mask must have shape"),
        ({"level": "rollout", "rollout_lengths": torch.ones(3)}, "rollout_lengths must have shape"),
    ],
)
def test_aggregate_errors_name_the_argument(changes: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        aggregate(**{"per_token_loss": torch.ones(2, 3), "mask": torch.ones(2, 3), **changes})


# importance_correction

TWO, QUARTER, EIGHT = math.log(2), -math.log(4), math.log(8)


@pytest.mark.parametrize(
    ("level", "form", "expected"),
    [
        # Weights 2, 1/4, (not sampled), unknown and 2 in row 0, whose turns are the first two tokens and the last two;
        # 8 in row 1. Bounds 0.4 and 3.
        ("token", "truncate", [[2.0, 0.4, 1.0, 1.0, 2.0], [3.0, 1.0, 1.0, 1.0, 1.0]]),
        ("token", "mask", [[2.0, 0.0, 1.0, 1.0, 2.0], [0.0, 1.0, 1.0, 1.0, 1.0]]),
        ("turn", "truncate", [[0.5, 0.5, 1.0, 2.0, 2.0], [3.0, 3.0, 1.0, 1.0, 1.0]]),
        ("turn", "mask", [[0.5, 0.5, 1.0, 2.0, 2.0], [0.0, 0.0, 1.0, 1.0, 1.0]]),
        ("sequence", "truncate", [[1.0], [3.0]]),
        ("sequence", "mask", [[1.0], [0.0]]),
    ],
)
def test_importance_correction_by_hand(level: str, form: str, expected: list[list[float]]):
    gap = torch.tensor([[TWO, QUARTER, 9.0, math.nan, TWO], [EIGHT, 0.0, 9.0, 9.0, 9.0]])
    mask = torch.tensor([[1, 1, 0, 1, 1], [1, 1, 0, 0, 0]])
    turn_ids = torch.tensor([[0, 0, -1, 1, 1], [3, 3, -1, -1, -1]])
    weight = importance_correction(gap, mask, turn_ids, level, form, low=0.4, high=3.0)
    torch.testing.assert_close(weight, torch.tensor(expected))


def test_importance_correction_without_bounds_or_with_bad_arguments():
    gap, mask = torch.tensor([[TWO, EIGHT]]), torch.ones(1, 2)
    for form in ("truncate", "mask"):
        torch.testing.assert_close(importance_correction(gap, mask, form=form), torch.tensor([[2.0, 8.0]]))
        # No lower bound, an upper bound of 3: 1/4 stays.
        low_gap = torch.tensor([[QUARTER, TWO]])
        weight = importance_correction(low_gap, mask, form=form, high=3.0)
        torch.testing.assert_close(weight, torch.tensor([[0.25, 2.0]]))
        # A weight on both bounds stays: exp(0) is exactly 1.
        assert importance_correction(torch.zeros(1, 2), mask, form=form, low=1.0, high=1.0).tolist() == [[1.0, 1.0]]
    with pytest.raises(ValueError, match="level must be one of"):
        importance_correction(gap, mask, level="word")
    with pytest.raises(ValueError, match="form must be one of"):
        importance_correction(gap, mask, form="clip")
    with pytest.raises(ValueError, match="turn_ids must be given"):
        importance_correction(gap, mask, level="turn")
    with pytest.raises(ValueError, match="mask must have shape"):
        importance_correction(gap, mask[:, :1])


def test_new_tensors_are_on_the_device_of_the_inputs():
    """The default device is another one: a tensor that was created there could not be combined with the inputs."""
    x, mask, turn_ids = torch.full((2, 3), 0.5), torch.ones(2, 3), torch.tensor([[0, 0, 1], [2, 2, 2]])
    with torch.device("meta"):
        results = [
            *(importance_ratio(x, mask, turn_ids, level) for level in ("token", "turn", "sequence")),
            *clipped_surrogate(x, x, 0.2, x),
            *clipped_surrogate(x, x, x, 0.2),
            *(importance_correction(x, mask, turn_ids, level) for level in ("token", "turn", "sequence")),
            *(aggregate(x, mask, level, turn_ids, normalizer=2) for level in ("token", "turn", "rollout")),
            *(aggregate(x, mask, level, turn_ids) for level in ("token", "turn", "rollout")),
            turn_lengths(mask, turn_ids),
            count_turns(mask, turn_ids),
        ]
    assert {result.device.type for result in results} == {"cpu"}
