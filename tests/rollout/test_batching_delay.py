"""The batching delay: environments that answer in time share a forward pass; slow ones soon cost next to nothing."""

from __future__ import annotations

import time

import pytest

from trl_agentic.rollout.batching_delay import BatchingDelay


class Clock:
    """Stands still until a test moves it."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(time, "perf_counter", clock)
    return clock


def miss(clock: Clock, delay: BatchingDelay) -> None:
    """Lets the wait run out while an environment is working."""
    clock.now += delay.remaining(busy=1)
    assert delay.remaining(busy=1) == 0.0


def test_the_first_wait_is_long_because_environments_are_reset(clock: Clock):
    delay = BatchingDelay()
    assert delay.remaining(busy=3) == 1.0
    clock.now += 0.75
    assert delay.remaining(busy=1) == 0.25
    assert BatchingDelay(first=3.0).remaining(busy=1) == 3.0


def test_the_wait_ends_when_no_environment_is_working(clock: Clock):
    """And does not start again before environments are called again."""
    delay = BatchingDelay()
    assert delay.remaining(busy=0) == 0.0
    assert delay.remaining(busy=2) == 0.0
    delay.record_pass(0.5, any_ended=False)
    assert delay.remaining(busy=2) == 0.0
    delay.record_pass(0.5, any_ended=True)
    assert delay.remaining(busy=2) == 1.0
    clock.now += 0.25
    assert delay.remaining(busy=2) == 0.75
    delay.start()
    assert delay.remaining(busy=2) == 1.0


def test_the_limit_is_reached_and_not_passed(clock: Clock):
    delay = BatchingDelay()
    clock.now += 1.0
    assert delay.remaining(busy=1) == 0.0


@pytest.mark.parametrize(
    ("options", "seconds", "limit"),
    [({}, 0.5, 1.0), ({}, 0.01, 0.02), ({}, 0.0, 0.02), ({"passes": 3.0}, 0.5, 1.5), ({"minimum": 4.0}, 0.5, 4.0)],
)
def test_the_limit_follows_the_last_pass(clock: Clock, options: dict[str, float], seconds: float, limit: float):
    delay = BatchingDelay(**options)
    for before in (8.0, seconds):
        delay.record_pass(before, any_ended=True)
    assert delay.remaining(busy=1) == pytest.approx(limit)


def test_each_miss_shortens_the_limit_and_each_wait_in_time_doubles_it(clock: Clock):
    delay = BatchingDelay()
    limits = []
    for in_time in (False, False, True, True, True, True, True, False):
        delay.record_pass(8.0, any_ended=True)
        limits.append(delay.remaining(busy=1))
        if in_time:
            assert delay.remaining(busy=0) == 0.0
        else:
            miss(clock, delay)
    assert limits == [16.0, 4.0, 1.0, 2.0, 4.0, 8.0, 16.0, 16.0]  # at most two passes


def test_a_miss_is_counted_once(clock: Clock):
    delay = BatchingDelay()
    miss(clock, delay)
    assert delay.remaining(busy=1) == delay.remaining(busy=1) == 0.0
    delay.record_pass(8.0, any_ended=True)
    assert delay.remaining(busy=1) == 4.0


def test_a_pass_in_which_no_turn_ends_is_recorded_too(clock: Clock):
    delay = BatchingDelay()
    delay.record_pass(8.0, any_ended=False)
    assert delay.remaining(busy=1) == 16.0


def test_slow_environments_cost_next_to_nothing(clock: Clock):
    """A thousand forward passes of 50 ms with an environment that never answers in time."""
    delay, started = BatchingDelay(), clock.now
    for _ in range(1000):
        miss(clock, delay)
        delay.record_pass(0.05, any_ended=True)
    assert clock.now - started < 1.0 + 0.1 / 3


def test_without_backoff_the_limit_stays(clock: Clock):
    delay = BatchingDelay(passes=1.0, backoff=1.0)
    for _ in range(3):
        delay.record_pass(2.0, any_ended=True)
        assert delay.remaining(busy=1) == 2.0
        miss(clock, delay)


def test_a_reset_forgets_all_passes(clock: Clock):
    delay = BatchingDelay()
    miss(clock, delay)
    delay.record_pass(8.0, any_ended=True)
    clock.now += 0.5
    delay.reset()
    assert delay.remaining(busy=1) == 1.0
    clock.now += 0.25
    assert delay.remaining(busy=1) == 0.75
