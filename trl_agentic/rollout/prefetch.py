"""Prefetching: the next generation is prepared, or sampled, while the current one is trained on.

Generations are matched by their number, which every process counts alike.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from threading import Thread
from typing import Any, Protocol

from trl_agentic.rollout.engines import Engine
from trl_agentic.rollout.loop import RolloutClock
from trl_agentic.types import Trajectory


Batch = list[dict[str, Any]]


class BatchReader(Iterator[Batch]):
    """Iterator over the batches of an epoch that can read batches before they are consumed.

    Args:
        source: batches of the data loader. With several processes, every process must read equally far ahead.
    """

    def __init__(self, source: Iterator[Batch]):
        self.source = source
        self._pending: deque[Batch] = (
            deque()
        )  # handed out, not consumed yet; the first is the one that is consumed now
        self._ahead: deque[Batch] = deque()  # read, not handed out yet

    def __next__(self) -> Batch:
        batch = self._ahead.popleft() if self._ahead else next(self.source)
        self._pending.append(batch)
        return batch

    def consume(self) -> None:
        """Marks the oldest batch that was handed out, if there is one, as consumed by its training step."""
        if self._pending:
            self._pending.popleft()

    def peek(self, distance: int) -> Batch | None:
        """Returns the batch `distance` steps after the current one, `None` if the epoch ends before it.

        Args:
            distance: number of training steps from the current one, which is not consumed yet; at least 1.
        """
        while len(self._pending) + len(self._ahead) <= distance:
            try:
                self._ahead.append(next(self.source))
            except StopIteration:
                return None
        return [*self._pending, *self._ahead][distance]


class ServerEngine(Engine, Protocol):
    """Inference engine whose work is done in another process."""

    def close(self) -> None:
        """Makes all later requests fail."""
        ...


class PrefetchedRollouts:
    """Rollouts of one generation that are sampled in a thread. Nothing in that thread is a collective operation.

    Args:
        generation: number of the generation.
        engine: inference engine for these rollouts alone; it is closed at their end.
        play: plays them with the engine and adds to the clock.
    """

    def __init__(
        self,
        generation: int,
        engine: ServerEngine,
        play: Callable[[ServerEngine, RolloutClock], list[Trajectory]],
    ):
        self.generation = generation
        self.clock = RolloutClock()
        self._engine = engine
        self._play = play
        self._result: Future[list[Trajectory]] = Future()
        Thread(target=self._run, name="prefetched rollouts", daemon=True).start()

    def wait(self) -> None:
        """Waits until the rollouts have ended or failed. The engine is idle afterwards."""
        wait([self._result])

    def result(self) -> list[Trajectory]:
        """Waits for the trajectories and returns them, or raises the error that ended them."""
        asked = time.perf_counter()
        trajectories = self._result.result()
        self.clock.ahead_seconds = max(0.0, self.clock.seconds - (time.perf_counter() - asked))
        return trajectories

    def cancel(self) -> None:
        """Ends the rollouts at their next request to the engine."""
        self._engine.close()
        self.wait()

    def _run(self) -> None:
        started = time.perf_counter()
        try:
            trajectories = self._play(self._engine, self.clock)
        except BaseException as error:  # `result` raises it
            self._result.set_exception(error)
        else:
            self.clock.seconds = time.perf_counter() - started
            self._result.set_result(trajectories)
        finally:
            self._engine.close()


class Prefetcher:
    """Owner of everything that is prepared for the next generation: batches read ahead, and prefetched rollouts."""

    def __init__(self) -> None:
        self._reader = BatchReader(iter(()))
        self._rollouts: PrefetchedRollouts | None = None

    def batches(self, epoch_iterator: Iterator[Batch]) -> BatchReader:
        """The batches of an epoch, to be read in place of `epoch_iterator`."""
        if self._reader.source is not epoch_iterator:
            self._reader = BatchReader(epoch_iterator)
        return self._reader

    def peek(self, distance: int) -> Batch | None:
        """See [`BatchReader`]."""
        return self._reader.peek(distance)

    def consume(self) -> None:
        """See [`BatchReader`]."""
        self._reader.consume()

    def start(self, rollouts: PrefetchedRollouts) -> None:
        """Takes rollouts that have just been started."""
        self._rollouts = rollouts

    def take(self, generation: int) -> PrefetchedRollouts | None:
        """Returns the prefetched rollouts of a generation, `None` if there are none."""
        rollouts = self._rollouts
        if rollouts is None or rollouts.generation != generation:
            return None
        self._rollouts = None
        return rollouts

    def wait(self) -> bool:
        """Waits for prefetched rollouts, so that the engine can get other weights. Returns whether there are any."""
        if self._rollouts is None:
            return False
        self._rollouts.wait()
        return True

    def cancel(self) -> None:
        """Ends prefetched rollouts that will not be needed."""
        if self._rollouts is not None:
            self._rollouts.cancel()
            self._rollouts = None
