"""How rows are cut and laid out: small cases by hand, and what must hold for all."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trl_agentic.batching.micro_batches import (
    balanced,
    computed_tokens,
    cut_by_rows,
    cut_by_tokens,
    pack_rows,
    split_to,
    take_rows,
)


LENGTHS = [3, 20, 4, 19, 5]
few = settings(max_examples=50, deadline=None)


def test_rows_are_cut_in_order():
    assert cut_by_rows([4, 1, 3, 0, 2], 2) == [[4, 1], [3, 0], [2]]


def test_tokens_are_cut_long_rows_first():
    parts = cut_by_tokens(range(5), LENGTHS, 40)
    assert parts == [[1, 3], [4, 2, 0]]  # 2 x 20, then 3 x 5; a third row of 20 columns would be 60
    assert computed_tokens(parts, LENGTHS) == 55
    assert computed_tokens([[0, 1, 2, 3, 4]], LENGTHS) == 100
    assert cut_by_tokens([2, 0], LENGTHS, 4) == [[2], [0]]
    assert cut_by_tokens([], LENGTHS, 4) == []


def test_packed_rows_fill_what_long_ones_leave():
    parts = cut_by_tokens(range(5), LENGTHS, 25, packed=True)
    assert parts == [[1, 4], [3, 2], [0]]  # 20 + 5, 19 + 4, 3
    assert [computed_tokens([part], LENGTHS, packed=True) for part in parts] == [25, 23, 3]
    assert split_to(parts, LENGTHS, 4, packed=True) == [[1], [4], [3, 2], [0]]


def test_a_row_above_the_budget_is_an_error():
    with pytest.raises(ValueError, match=r"Row 1 has 20 tokens: more than max_tokens \(19\)"):
        cut_by_tokens(range(5), LENGTHS, 19)


def test_the_largest_is_halved_first():
    parts = [[1, 3], [4, 2, 0]]
    assert split_to(parts, LENGTHS, 2) == parts
    assert split_to(parts, LENGTHS, 3) == [[1], [3], [4, 2, 0]]
    assert split_to(parts, LENGTHS, 4) == [[1], [3], [4], [2, 0]]
    assert split_to(parts, LENGTHS, 6) == [[1], [3], [4], [2], [0], []]
    assert split_to([], LENGTHS, 2) == [[], []]


@few
@given(st.lists(st.integers(1, 50), min_size=1, max_size=30), st.integers(50, 200), st.integers(1, 40))
def test_every_row_is_in_one_micro_batch_within_the_budget(lengths: list[int], budget: int, count: int):
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


def test_rows_go_where_tokens_are_few():
    assert balanced([[9, 4, 2], [1], [5, 5]]) == [[1, 0, 0], [0], [2, 2]]  # 15, 1, 10: 6, 10, 10: 7, 9, 10
    assert balanced([[7], [7, 1]]) == [[0], [1, 1]]  # moving 1 would only turn it round
    assert balanced([[3, 3], []]) == [[1, 0], []]
    assert balanced([[5, 9]]) == [[0, 0]]


@few
@given(st.lists(st.lists(st.integers(1, 50), max_size=12), min_size=1, max_size=5))
def test_balanced_processes_differ_by_less_than_a_row_that_could_move(lengths: list[list[int]]):
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


def test_rows_end_to_end():
    ids = torch.tensor([[11, 12, 13, 0], [21, 0, 0, 0], [31, 32, 33, 34]])
    packed = pack_rows(ids, (ids > 0).long(), keep=2, multiple=5)
    assert packed.input_ids.tolist() == [[11, 12, 13, 21, 31, 32, 33, 34, 0, 0]]
    assert packed.position_ids.tolist() == [[0, 1, 2, 0, 0, 1, 2, 3, 0, 1]]
    assert packed.labels.tolist() == [[-100, 13, -100, -100, -100, 33, 34, -100, -100, -100]]
    values = packed.labels.clamp(min=0) / 2  # of the token behind each
    assert packed.unpack(values).tolist() == [[0, 0, 6.5, 0], [0, 0, 0, 0], [0, 0, 16.5, 17.0]]


def padded(prompts: list[list[int]], completions: list[list[int]]) -> dict[str, torch.Tensor]:
    """Rows as the trainer pads them: prompts on the left, completions on the right. Turn k of a row is its id k."""
    p, c = max(map(len, prompts)), max(map(len, completions))
    return {
        "prompt_ids": torch.tensor([[0] * (p - len(ids)) + ids for ids in prompts]),
        "prompt_mask": torch.tensor([[0] * (p - len(ids)) + [1] * len(ids) for ids in prompts]),
        "completion_ids": torch.tensor([ids + [0] * (c - len(ids)) for ids in completions]),
        "completion_mask": torch.tensor([[1] * len(ids) + [0] * (c - len(ids)) for ids in completions]),
        "tool_mask": torch.tensor([[1] * len(ids) + [0] * (c - len(ids)) for ids in completions]),
        "turn_ids": torch.tensor([[*range(len(ids))] + [-1] * (c - len(ids)) for ids in completions]),
        "advantages": torch.tensor([[i / 2 for i in ids] + [0.0] * (c - len(ids)) for ids in completions]),
        "rollout": torch.arange(len(prompts)),
        "total": torch.tensor(7),
    }


def test_rows_begin_in_the_first_column():
    rows = padded([[11, 12, 13], [21], [31, 32]], [[14, 15], [22, 23, 24, 25], [33]])
    taken = take_rows(rows, [2, 1])
    assert taken["prompt_ids"].tolist() == [[31], [21]] and taken["prompt_mask"].tolist() == [[1], [1]]
    assert taken["completion_ids"].tolist() == [[32, 33, 0, 0], [22, 23, 24, 25]]
    assert taken["completion_mask"].tolist() == [[1, 1, 0, 0], [1, 1, 1, 1]]
    assert taken["tool_mask"].tolist() == [[0, 1, 0, 0], [1, 1, 1, 1]]
    assert taken["turn_ids"].tolist() == [[-1, 0, -1, -1], [0, 1, 2, 3]]
    assert taken["advantages"].tolist() == [[0.0, 16.5, 0.0, 0.0], [11.0, 11.5, 12.0, 12.5]]
    assert taken["rollout"].tolist() == [2, 1] and taken["total"] == 7


def test_the_width_is_a_multiple():
    rows = padded([[11, 12, 13], [21]], [[14, 15], [22, 23, 24, 25]])
    taken = take_rows(rows, [0, 1], multiple=4)
    assert taken["prompt_ids"].tolist() == [[11], [21]]
    assert taken["completion_ids"].tolist() == [[12, 13, 14, 15, 0, 0, 0], [22, 23, 24, 25, 0, 0, 0]]
    assert taken["completion_mask"].sum(1).tolist() == [4, 4]


def test_an_empty_micro_batch_is_a_row_that_does_not_count():
    rows = padded([[11, 12], [21]], [[14, 15], [22]])
    filler = take_rows(rows, [])
    assert filler["prompt_ids"].tolist() == [[21]] and filler["completion_ids"].tolist() == [[22]]
    assert filler["completion_mask"].tolist() == [[1]] and filler["tool_mask"].tolist() == [[0]]
    assert rows["tool_mask"].sum() == 3  # as it was


@st.composite
def ragged(draw: st.DrawFn) -> tuple[list[list[int]], list[list[int]]]:
    ids = st.lists(st.integers(1, 9), min_size=1, max_size=6)
    count = draw(st.integers(1, 5))
    return [draw(ids) for _ in range(count)], [draw(ids) for _ in range(count)]


@few
@given(ragged(), st.randoms(use_true_random=False), st.integers(1, 8))
def test_no_token_is_lost_or_moved(rows: tuple[list[list[int]], list[list[int]]], random: object, multiple: int):
    prompts, completions = rows
    part = list(range(len(prompts)))
    random.shuffle(part)
    once = take_rows(padded(prompts, completions), part, multiple)
    again = take_rows(once, list(range(len(part))), multiple)  # what was taken is rows, too
    for name, value in once.items():
        assert torch.equal(value, again[name]), name
    ids = torch.cat([once["prompt_ids"], once["completion_ids"]], 1)
    mask = torch.cat([once["prompt_mask"], once["completion_mask"]], 1).bool()
    assert ids.size(1) % multiple == 0
    for i, row in enumerate(part):
        assert ids[i][mask[i]].tolist() == prompts[row] + completions[row]
        assert mask[i, : len(prompts[row] + completions[row])].all()
        sampled = once["tool_mask"][i].bool()
        assert once["completion_ids"][i][sampled].tolist() == completions[row]
        assert once["advantages"][i][sampled].tolist() == [i / 2 for i in completions[row]]
