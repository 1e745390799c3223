"""The plan of the micro-batches: small cases by hand, and properties of all plans."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trl_agentic.batching.micro_batches import (
    balanced,
    computed_tokens,
    cut_by_rows,
    cut_by_tokens,
    split_to,
)


LENGTHS = [3, 20, 4, 19, 5]
few = settings(max_examples=50, deadline=None)


def test_sequences_are_cut_in_order():
    assert cut_by_rows([4, 1, 3, 0, 2], 2) == [[4, 1], [3, 0], [2]]


def test_tokens_are_cut_long_sequences_first():
    parts = cut_by_tokens(range(5), LENGTHS, 40)
    assert parts == [[1, 3], [4, 2, 0]]  # 2 x 20, then 3 x 5; a third sequence of 20 columns would be 60
    assert computed_tokens(parts, LENGTHS) == 55
    assert computed_tokens([[0, 1, 2, 3, 4]], LENGTHS) == 100
    assert cut_by_tokens([2, 0], LENGTHS, 4) == [[2], [0]]
    assert cut_by_tokens([], LENGTHS, 4) == []


def test_short_packed_sequences_fill_the_space_that_long_ones_leave():
    parts = cut_by_tokens(range(5), LENGTHS, 25, packed=True)
    assert parts == [[1, 4], [3, 2], [0]]  # 20 + 5, 19 + 4, 3
    assert [computed_tokens([part], LENGTHS, packed=True) for part in parts] == [25, 23, 3]
    assert split_to(parts, LENGTHS, 4, packed=True) == [[1], [4], [3, 2], [0]]


def test_a_sequence_above_the_budget_is_an_error():
    with pytest.raises(ValueError, match=r"Sequence 1 has 20 tokens: more than max_tokens \(19\)"):
        cut_by_tokens(range(5), LENGTHS, 19)


def test_the_largest_is_halved_first():
    parts = [[1, 3], [4, 2, 0]]
    assert split_to(parts, LENGTHS, 2) == parts
    assert split_to(parts, LENGTHS, 3) == [[1], [3], [4, 2, 0]]
    assert split_to(parts, LENGTHS, 4) == [[1], [3], [4], [2, 0]]
    assert split_to(parts, LENGTHS, 6) == [[1], [3], [4], [2], [0], []]
    assert split_to([], LENGTHS, 2) == [[], []]


def test_the_largest_is_the_one_with_most_computed_tokens():
    # Sequences of 10, 1, 1 and of 7, 7 tokens: 3 x 10 and 2 x 7 positions with padding, 12 and 14 when packed.
    parts, lengths = [[0, 1, 2], [3, 4]], [10, 1, 1, 7, 7]
    assert split_to(parts, lengths, 3) == [[0], [1, 2], [3, 4]]
    assert split_to(parts, lengths, 3, packed=True) == [[0, 1, 2], [3], [4]]


@few
@given(st.lists(st.integers(1, 50), min_size=1, max_size=30), st.integers(50, 200), st.integers(1, 40))
def test_every_sequence_is_in_one_micro_batch_within_the_budget(lengths: list[int], budget: int, count: int):
    parts = cut_by_tokens(range(len(lengths)), lengths, budget)
    split = split_to(parts, lengths, max(count, len(parts)))
    assert len(split) == max(count, len(parts))
    for cut in (parts, split):
        assert sorted(row for part in cut for row in part) == list(range(len(lengths)))
        assert all(computed_tokens([part], lengths) <= budget for part in cut)
    assert computed_tokens(split, lengths) <= computed_tokens(parts, lengths)
    assert sum(lengths) <= computed_tokens(parts, lengths) <= len(lengths) * max(lengths)
    for one, other in zip(parts, parts[1:], strict=False):  # no two neighbours fit together
        assert computed_tokens([one + other], lengths) > budget


@few
@given(st.lists(st.integers(1, 50), min_size=1, max_size=30), st.integers(50, 200))
def test_packed_micro_batches_are_more_than_half_full(lengths: list[int], budget: int):
    parts = cut_by_tokens(range(len(lengths)), lengths, budget, packed=True)
    sizes = [computed_tokens([part], lengths, packed=True) for part in parts]
    assert sorted(row for part in parts for row in part) == list(range(len(lengths)))
    assert sum(sizes) == sum(lengths) and max(sizes) <= budget
    assert all(one + other > budget for i, one in enumerate(sizes) for other in sizes[:i])


def loads(lengths: list[list[int]], places: list[list[int]]) -> list[int]:
    """Tokens that each process has."""
    held = [0] * len(lengths)
    for rows, of_rows in zip(lengths, places, strict=True):
        for tokens, process in zip(rows, of_rows, strict=True):
            held[process] += tokens
    return held


def test_sequences_move_to_the_process_with_the_fewest_tokens():
    assert balanced([[9, 4, 2], [1], [5, 5]]) == [[1, 0, 0], [0], [2, 2]]  # 15, 1, 10: 6, 10, 10: 7, 9, 10
    assert balanced([[7], [7, 1]]) == [[0], [1, 1]]  # moving 1 would only swap the two
    assert balanced([[3, 3], []]) == [[1, 0], []]
    assert balanced([[5, 9]]) == [[0, 0]]
    # 6 and 0 tokens: moving the sequence of 3 makes them equal at once, moving one of 1 would not.
    assert balanced([[1, 1, 1, 3], []]) == [[0, 0, 0, 1], []]
    assert balanced([[5, 0], []]) == [[0, 0], []]  # a sequence without tokens stays


@few
@given(st.lists(st.lists(st.integers(1, 50), max_size=12), min_size=1, max_size=5))
def test_balanced_processes_differ_by_less_than_a_sequence_that_could_move(lengths: list[list[int]]):
    places = balanced(lengths)
    before, after = loads(lengths, [[i] * len(rows) for i, rows in enumerate(lengths)]), loads(lengths, places)
    assert sum(after) == sum(before) and max(after) <= max(before) and min(after) >= min(before)
    fullest = after.index(max(after))
    held = [
        tokens
        for rows, of_rows in zip(lengths, places, strict=True)
        for tokens, process in zip(rows, of_rows, strict=True)
        if process == fullest
    ]
    assert max(after) - min(after) <= min(held, default=0)
