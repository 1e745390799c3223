"""Batches come in their order, however far one looked ahead."""

from __future__ import annotations

from typing import Any

from trl_agentic.trainers.lookahead import Lookahead


def numbered(count: int) -> list[list[dict[str, Any]]]:
    return [[{"number": number}] for number in range(count)]


def test_what_was_read_ahead_is_handed_on_later():
    batches = numbered(6)
    lookahead = Lookahead(iter(batches))
    first, second = next(lookahead), next(lookahead)
    assert lookahead.after(first, 1) is second
    assert lookahead.after(first, 3) is batches[3]
    assert lookahead.after(second, 1) is batches[2]
    assert [next(lookahead) for _ in range(3)] == batches[2:5]
    assert lookahead.after(batches[3], 1) is batches[4]
    assert list(lookahead) == batches[5:]


def test_an_epoch_ends():
    batches = numbered(3)
    lookahead = Lookahead(iter(batches))
    first = next(lookahead)
    assert lookahead.after(first, 3) is None
    assert lookahead.after(first, 2) is batches[2]
    assert list(lookahead) == batches[1:]


def test_of_another_list_nothing_is_known():
    batches = numbered(3)
    lookahead = Lookahead(iter(batches))
    first = next(lookahead)
    assert lookahead.after([*first], 1) is None
    assert Lookahead(iter(())).after(first, 1) is None
    assert list(lookahead) == batches[1:]
