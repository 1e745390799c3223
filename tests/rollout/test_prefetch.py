"""Batches keep their order, however far ahead they are read; prefetched rollouts are matched by generation."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from trl_agentic.rollout.prefetch import BatchReader, PrefetchedRollouts, Prefetcher, ServerEngine
from trl_agentic.types import Trajectory


def numbered(count: int) -> list[list[dict[str, Any]]]:
    return [[{"number": number}] for number in range(count)]


# Batches


def test_batches_that_were_read_ahead_are_handed_out_later():
    batches = numbered(6)
    reader = BatchReader(iter(batches))
    assert next(reader) is batches[0] and next(reader) is batches[1]
    assert reader.peek(1) is batches[1] and reader.peek(3) is batches[3]
    reader.consume()
    assert reader.peek(1) is batches[2]
    assert [next(reader) for _ in range(3)] == batches[2:5]
    for _ in range(2):
        reader.consume()
    assert reader.peek(1) is batches[4]
    assert list(reader) == batches[5:]


def test_an_epoch_ends():
    batches = numbered(3)
    reader = BatchReader(iter(batches))
    next(reader)
    assert reader.peek(3) is None
    assert reader.peek(2) is batches[2]
    assert list(reader) == batches[1:]


def test_peeking_reads_no_more_than_needed():
    batches = iter(numbered(6))
    reader = BatchReader(batches)
    next(reader)
    for _ in range(2):
        assert reader.peek(2) == [{"number": 2}]
    assert next(batches) == [{"number": 3}]


def test_nothing_is_known_without_batches():
    reader = BatchReader(iter(()))
    reader.consume()
    assert reader.peek(1) is None and list(reader) == []


def test_consumed_batches_are_not_kept():
    reader = BatchReader(iter(numbered(3)))
    for number in range(3):
        assert next(reader) == [{"number": number}]
        reader.consume()
    assert reader.peek(1) is None


def test_an_epoch_is_read_through_one_reader_and_the_next_through_another():
    prefetcher = Prefetcher()
    first, second = iter(numbered(4)), iter(numbered(4))
    assert prefetcher.peek(1) is None
    reader = prefetcher.batches(first)
    assert next(reader) == [{"number": 0}] and prefetcher.peek(2) == [{"number": 2}]
    assert prefetcher.batches(first) is reader  # for every optimizer step of the epoch
    prefetcher.consume()
    assert next(reader) == [{"number": 1}] and prefetcher.peek(1) == [{"number": 2}]
    other = prefetcher.batches(second)
    assert other is not reader and next(other) == [{"number": 0}]
    assert prefetcher.peek(1) == [{"number": 1}]


# Rollouts


class Closable:
    """Engine that fails after it was closed."""

    def __init__(self) -> None:
        self.closed = threading.Event()

    def close(self) -> None:
        self.closed.set()


def started(generation: int, play: Any) -> tuple[PrefetchedRollouts, Closable]:
    engine = Closable()
    return PrefetchedRollouts(generation, engine, play), engine  # type: ignore[arg-type]


def test_rollouts_are_taken_once_and_only_by_their_generation():
    played = [Trajectory({})]
    rollouts, engine = started(3, lambda engine, clock: played)
    prefetcher = Prefetcher()
    assert prefetcher.take(3) is None and not prefetcher.wait()
    prefetcher.start(rollouts)
    assert prefetcher.take(2) is None and prefetcher.take(4) is None
    assert prefetcher.wait()
    assert prefetcher.take(3) is rollouts and rollouts.result() is played
    assert prefetcher.take(3) is None and not prefetcher.wait()
    assert engine.closed.wait(10)


def test_the_clock_shows_how_long_the_rollouts_ran_before_they_were_needed():
    release = threading.Event()

    def play(engine: ServerEngine, clock: Any) -> list[Trajectory]:
        assert release.wait(60)
        return []

    rollouts, _ = started(0, play)
    threading.Timer(0.2, release.set).start()
    rollouts.result()  # it is waited for from the start
    assert rollouts.clock.seconds > 0.1 and rollouts.clock.ahead_seconds < 0.1
    rollouts, _ = started(0, play)
    rollouts.wait()
    rollouts.result()
    assert rollouts.clock.ahead_seconds == pytest.approx(rollouts.clock.seconds, abs=0.1)


def test_an_error_is_raised_where_the_result_is_needed():
    def play(engine: ServerEngine, clock: Any) -> list[Trajectory]:
        raise ConnectionError("the server is gone")

    rollouts, engine = started(0, play)
    rollouts.wait()
    with pytest.raises(ConnectionError, match="the server is gone"):
        rollouts.result()
    assert engine.closed.wait(10)


def test_cancelled_rollouts_end_at_their_next_request():
    def play(engine: Any, clock: Any) -> list[Trajectory]:
        assert engine.closed.wait(60)
        raise RuntimeError("closed")

    rollouts, engine = started(1, play)
    prefetcher = Prefetcher()
    prefetcher.start(rollouts)
    prefetcher.cancel()
    assert engine.closed.is_set() and prefetcher.take(1) is None and not prefetcher.wait()
    prefetcher.cancel()  # nothing is left to cancel
