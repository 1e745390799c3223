"""One rollout's environment, whatever befalls the worker that it runs in."""

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
class _ResetAhead:
    """A `reset` that began before it was asked for."""

    row: dict[str, Any]
    started: float = field(default_factory=time.perf_counter)
    ended: float | None = None
    answer: Future[Any] = field(default_factory=Future)

    def is_for(self, row: dict[str, Any]) -> bool:
        """Whether these are the very values: equal ones need not know that they are (arrays)."""
        return row.keys() == self.row.keys() and all(value is self.row[key] for key, value in row.items())


class EnvironmentHandle:
    """An [`~trl_agentic.environments.Environment`] that outlives the workers it is played in.

    If `reset` or `step` raises, takes too long or its process dies, the episode is played again on a fresh worker:
    `reset` with the same row, then the same actions. Where the answers are those of before, the rollout goes on and
    nothing of it is lost. Where one differs (the environment is not a function of its row and actions), the rollout
    must begin anew: [`~trl_agentic.environments.base.EpisodeRestarted`] tells it so.

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
        self._played: list[tuple[str, Any]] = []  # actions, and what was seen of their answers
        self._ahead: _ResetAhead | None = None
        self._begun: ThreadCall | None = None  # what the next `step` waits for
        self._playing = Lock()  # a call of an episode that was given up may be under way when the next one begins
        self.retries = 0
        """Fresh workers that the last episode has used up."""
        self.seconds_saved = 0.0
        """Seconds of the last `reset` that were over before it was asked for."""

    @property
    def instance(self) -> Any:
        """The environment itself if it lives in this process and has been made, else `None`."""
        return self._worker.instance if self._worker is not None else None

    def reset(self, /, **row: Any) -> Any:
        """Starts an episode. Errors are those of the environment or its worker, after the last retry."""
        self.seconds_saved = 0.0
        ahead, self._ahead = self._ahead, None
        if ahead is None:
            return self._reset(row)
        if not ahead.is_for(row):
            wait([ahead.answer])
            return self._reset(row)
        asked = time.perf_counter()
        try:
            return ahead.answer.result()
        finally:
            self.seconds_saved = min(asked, ahead.ended or asked) - ahead.started

    def reset_ahead(self, /, **row: Any) -> None:
        """Begins what `reset` with the same row will return or raise, in a thread. There must be no call between."""
        before, self._ahead = self._ahead, _ResetAhead(row)
        Thread(target=self._work_ahead, args=[self._ahead, before], name="environment reset", daemon=True).start()

    @property
    def pending(self) -> Future[Any] | None:
        """The answer of a `reset` that began ahead, if it was not asked for yet."""
        return self._ahead.answer if self._ahead is not None else None

    def begin_step(self, action: str, seconds: float) -> bool:
        """See [`~trl_agentic.environments.base.BeginsSteps`]. Where the environment has a process, `step` does all."""
        if not isinstance(self._worker, ThreadWorker):
            return False
        self._begun = self._worker.begin("step", action)
        return self._begun.is_over(seconds) and self._begun.error is None

    def step(self, action: str) -> Any:
        """Plays one turn.

        Raises:
            EpisodeRestarted: the episode had to begin anew.
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

        Where a `reset` that began ahead is still at work, that is done when it ends.
        """
        ahead, self._ahead = self._ahead, None
        if ahead is None:
            self._end_worker()
        else:
            ahead.answer.add_done_callback(lambda _: self._end_worker())

    def _work_ahead(self, ahead: _ResetAhead, before: _ResetAhead | None) -> None:
        if before is not None:
            wait([before.answer])
        try:
            answer = self._reset(ahead.row)
        except BaseException as error:  # whatever it is, `reset` raises it
            ahead.ended = time.perf_counter()
            ahead.answer.set_exception(error)
        else:
            ahead.ended = time.perf_counter()
            ahead.answer.set_result(answer)

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
                    "An environment failed and its episode is played again on a fresh one (retry %d of %d): %s: %s",
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
        """A call in the course of the episode. A fresh worker is first brought to where the episode stands."""
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
    """What a rollout reads of an answer."""
    if not isinstance(result, StepResult):
        return result
    state = result.info.get("anchor_state") if isinstance(result.info, dict) else None
    return result.observation, result.reward, result.terminated, result.truncated, state
