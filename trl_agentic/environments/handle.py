"""One rollout's environment, whatever befalls the worker that it runs in."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from trl_agentic.environments.base import Environment, EpisodeRestarted
from trl_agentic.environments.workers import ProcessWorker, ThreadWorker
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
        self.retries = 0
        """Fresh workers that the last episode has used up."""

    @property
    def instance(self) -> Any:
        """The environment itself if it lives in this process and has been made, else `None`."""
        return self._worker.instance if self._worker is not None else None

    def reset(self, **row: Any) -> Any:
        """Starts an episode. Errors are those of the environment or its worker, after the last retry."""
        self._row, self._first, self._played, self.retries = row, None, [], 0
        if self._options.max_episodes is not None and self._episodes >= self._options.max_episodes:
            self.close()
        self._first = self._retried(self._begin)
        return self._first

    def step(self, action: str) -> Any:
        """Plays one turn.

        Raises:
            EpisodeRestarted: the episode had to begin anew.
        """
        result = self._retried(partial(self._continued, "step", action))
        if self._options.retries:
            self._played.append((action, _seen(result)))
        return result

    def reward(self) -> float:
        """The final reward of a tool-style environment."""
        return self._retried(partial(self._continued, "reward"))

    def close(self) -> None:
        """Closes the environment and ends its worker; the next `reset` starts another."""
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
                self.close()
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
