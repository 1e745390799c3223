"""Handle of one environment: it survives failures of the worker that the environment runs in."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from dataclasses import dataclass, field
from functools import partial
from threading import Lock, Thread
from typing import Any, TypeVar

from trl_agentic.environments.base import Environment, EpisodeRestarted
from trl_agentic.environments.workers import ProcessWorker, ThreadCall, ThreadWorker
from trl_agentic.types import StepResult


logger = logging.getLogger(__name__)

T = TypeVar("T")

WORKERS: dict[str, type[ThreadWorker] | type[ProcessWorker]] = {"thread": ThreadWorker, "process": ProcessWorker}


@dataclass(frozen=True, slots=True)
class WorkerOptions:
    """How environments run.

    Attributes:
        kind: `"thread"` or `"process"`.
        timeout: seconds that `reset` or `step` may take; `None` for no limit.
        retries: fresh workers that one rollout may use up after its first.
        max_episodes: episodes that one environment plays before another replaces it; `None` for no limit.
    """

    kind: str = "thread"
    timeout: float | None = None
    retries: int = 0
    max_episodes: int | None = None


@dataclass(slots=True)
class _PrefetchedReset:
    """A `reset` that was started before the rollout needs it."""

    row: dict[str, Any]
    started: float = field(default_factory=time.perf_counter)
    ended: float | None = None
    answer: Future[Any] = field(default_factory=Future)
    discarded: bool = False


class EnvironmentHandle:
    """Handle of an [`~trl_agentic.environments.Environment`] that survives failures of its workers.

    If `reset` or `step` raises, takes too long or its process dies, the episode is replayed on a fresh worker: `reset`
    with the same row, then the same actions. If all results are equal to the earlier ones, the rollout continues and
    nothing is lost. If one differs (the environment is not a function of its row and actions), the rollout must start
    again, which [`~trl_agentic.environments.base.EpisodeRestarted`] signals.

    Args:
        factory: makes an environment.
        options: how it runs.
    """

    def __init__(self, factory: Callable[[], Environment], options: WorkerOptions):
        self._factory = factory
        self._options = options
        self._worker: ThreadWorker | ProcessWorker | None = None
        self._episodes = 0  # of this worker
        self._row: dict[str, Any] = {}
        self._first: Any = None
        self._played: list[tuple[str, Any]] = []  # actions, and the visible part of their results
        self._prefetched: _PrefetchedReset | None = None
        self._begun: ThreadCall | None = None  # the call that the next `step` waits for
        self._playing = Lock()  # a call of an abandoned episode may still run when the next one starts
        self.retries = 0
        """Fresh workers that the last episode has used."""
        self.seconds_saved = 0.0
        """Seconds of the last `reset` that had passed before the rollout needed it."""

    @property
    def instance(self) -> Any:
        """The environment itself if it lives in this process and has been made, else `None`."""
        return self._worker.instance if self._worker is not None else None

    def reset(self, /, **row: Any) -> Any:
        """Starts an episode, or returns the result of [`prefetch_reset`].

        Raises:
            Exception: the error of the environment or its worker, after the last retry.
        """
        self.seconds_saved = 0.0
        prefetched, self._prefetched = self._prefetched, None
        if prefetched is None:
            return self._reset(row)
        if prefetched.discarded:
            wait([prefetched.answer])
            return self._reset(row)
        asked = time.perf_counter()
        try:
            return prefetched.answer.result()
        finally:
            self.seconds_saved = min(asked, prefetched.ended or asked) - prefetched.started

    def prefetch_reset(self, /, **row: Any) -> None:
        """Starts, in a thread, the `reset` that the next call of `reset` returns. The next call must be for `row`."""
        before, self._prefetched = self._prefetched, _PrefetchedReset(row)
        arguments = [self._prefetched, before]
        Thread(target=self._run_prefetched, args=arguments, name="environment reset", daemon=True).start()

    def discard_prefetched(self) -> None:
        """Discards a prefetched `reset`: the next `reset` may be for any row. It waits until this one has ended."""
        if self._prefetched is not None:
            self._prefetched.discarded = True

    @property
    def pending(self) -> Future[Any] | None:
        """Result of a prefetched `reset` that has not been used yet."""
        return self._prefetched.answer if self._prefetched is not None else None

    def begin_step(self, action: str, seconds: float) -> bool:
        """See [`~trl_agentic.environments.base.BeginsSteps`]. For an environment in a process, `step` does it."""
        if not isinstance(self._worker, ThreadWorker):
            return False
        self._begun = self._worker.begin("step", action)
        return self._begun.is_over(seconds) and self._begun.error is None

    def step(self, action: str) -> Any:
        """Plays one turn.

        Raises:
            EpisodeRestarted: the episode had to start again.
        """
        with self._playing:
            result = self._retried(partial(self._continued, "step", action))
            if self._options.retries:
                self._played.append((action, _seen(result)))
        return result

    def reward(self) -> float:
        """The final reward of a tool-style environment."""
        with self._playing:
            return self._retried(partial(self._continued, "reward"))

    def close(self) -> None:
        """Closes the environment and ends its worker; the next `reset` starts another.

        If a prefetched `reset` is still running, this happens when it ends.
        """
        prefetched, self._prefetched = self._prefetched, None
        if prefetched is None:
            self._end_worker()
        else:
            prefetched.answer.add_done_callback(lambda _: self._end_worker())

    def _run_prefetched(self, prefetched: _PrefetchedReset, before: _PrefetchedReset | None) -> None:
        if before is not None:
            wait([before.answer])
        try:
            answer = self._reset(prefetched.row)
        except BaseException as error:  # `reset` raises it
            prefetched.ended = time.perf_counter()
            prefetched.answer.set_exception(error)
        else:
            prefetched.ended = time.perf_counter()
            prefetched.answer.set_result(answer)

    def _reset(self, row: dict[str, Any]) -> Any:
        with self._playing:
            self._row, self._first, self._played, self._begun, self.retries = row, None, [], None, 0
            if self._options.max_episodes is not None and self._episodes >= self._options.max_episodes:
                self._end_worker()
            self._first = self._retried(self._begin)
            return self._first

    def _end_worker(self) -> None:
        worker, self._worker = self._worker, None
        if worker is not None:
            worker.close()

    def _retried(self, attempt: Callable[[], T]) -> T:
        while True:
            try:
                return attempt()
            except EpisodeRestarted:
                raise
            except Exception as error:
                self._end_worker()
                if self.retries >= self._options.retries:
                    raise
                self.retries += 1
                logger.warning(
                    "An environment failed. Its episode is replayed on a fresh one (retry %d of %d): %s: %s",
                    self.retries,
                    self._options.retries,
                    type(error).__name__,
                    error,
                )

    def _begin(self) -> Any:
        if self._worker is None:
            self._worker = WORKERS[self._options.kind](self._factory, self._options.timeout)
            self._episodes = 0
        self._episodes += 1
        return self._worker.call("reset", **self._row)

    def _continued(self, method: str, *args: Any) -> Any:
        """A call during the episode. A fresh worker first replays the episode so far."""
        begun, self._begun = self._begun, None
        if begun is not None and isinstance(self._worker, ThreadWorker):
            return self._worker.end(begun)
        if self._worker is None and (self._begin() != self._first or not self._replayed()):
            self._first, self._played = self._begin(), []
            raise EpisodeRestarted(self._first)
        assert self._worker is not None
        return self._worker.call(method, *args)

    def _replayed(self) -> bool:
        assert self._worker is not None
        return all(_seen(self._worker.call("step", action)) == seen for action, seen in self._played)


def _seen(result: Any) -> Any:
    """The part of a result that a rollout reads."""
    if not isinstance(result, StepResult):
        return result
    state = result.info.get("anchor_state") if isinstance(result.info, dict) else None
    return result.observation, result.reward, result.terminated, result.truncated, state
