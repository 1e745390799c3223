"""Rollouts of the next batch, played beside the training on this one."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from threading import Thread
from typing import Any, Protocol

from trl_agentic.rollout.engines import Engine
from trl_agentic.rollout.loop import RolloutClock
from trl_agentic.types import Trajectory


class ServerEngine(Engine, Protocol):
    """An engine whose work is done elsewhere."""

    def close(self) -> None:
        """Fails the requests that come from now on."""
        ...


class RolloutsAhead:
    """A batch of rollouts in a thread of its own. Nothing in that thread is a collective operation.

    Args:
        rows: the dataset rows, the very list that the data loader gives later.
        engine: samples for these rollouts alone; closed at their end.
        play: plays them with it, and adds to the clock.
    """

    def __init__(
        self,
        rows: list[dict[str, Any]],
        engine: ServerEngine,
        play: Callable[[ServerEngine, RolloutClock], list[Trajectory]],
    ):
        self.rows = rows
        self.clock = RolloutClock()
        self._engine = engine
        self._play = play
        self._result: Future[list[Trajectory]] = Future()
        Thread(target=self._work, name="rollouts ahead", daemon=True).start()

    def wait(self) -> None:
        """Waits for their end, whatever it is: from then on nobody samples."""
        wait([self._result])

    def take(self) -> list[Trajectory]:
        """The trajectories, as soon as they are there. Raises what playing them raised."""
        asked = time.perf_counter()
        trajectories = self._result.result()
        self.clock.ahead_seconds = max(0.0, self.clock.seconds - (time.perf_counter() - asked))
        return trajectories

    def give_up(self) -> None:
        """Ends them at the next turn that one of them asks for."""
        self._engine.close()
        self.wait()

    def _work(self) -> None:
        started = time.perf_counter()
        try:
            trajectories = self._play(self._engine, self.clock)
        except BaseException as error:  # whatever it is, `take` raises it
            self._result.set_exception(error)
        else:
            self.clock.seconds = time.perf_counter() - started
            self._result.set_result(trajectories)
        finally:
            self._engine.close()
