"""What the loop asks of whoever samples, and engines that sample one batch after the other."""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol


IDLE_PAUSE = 0.002  # seconds from one exchange with processes that must stay in step to the next, while nobody samples


@dataclass(frozen=True, slots=True)
class Request:
    """One rollout that waits for the policy.

    Attributes:
        rollout: number of the rollout, the same in all its turns.
        prompt_ids: the whole context.
        max_new_tokens: the most tokens to sample.
        seed: seed of this turn's sampling.
    """

    rollout: int
    prompt_ids: list[int]
    max_new_tokens: int
    seed: int


@dataclass(frozen=True, slots=True)
class Sample:
    """What was sampled.

    Attributes:
        ids: sampled ids, the end-of-turn token included if there is one.
        logprobs: sampling log-probability of each id, `None` if the engine gives none; NaN where it is unknown.
        ended: whether the last id is an end-of-turn token.
        cached_tokens: tokens of the prompt that the engine had in its cache.
        policy_step: optimizer step whose weights sampled, `None` if the engine was not told.
    """

    ids: list[int]
    logprobs: list[float] | None
    ended: bool
    cached_tokens: int = 0
    policy_step: int | None = None


@dataclass(frozen=True, slots=True)
class Sampling:
    """Sampling parameters, with transformers' meaning. `temperature=0` is greedy."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float | None = None
    repetition_penalty: float = 1.0


Done = Callable[[Sample | Exception], None]
"""Takes what a request came to, from any thread."""


class Engine(Protocol):
    """What the loop asks of whoever samples. A sample depends on its request alone, not on those beside it."""

    def submit(self, request: Request, done: Done) -> None:
        """Takes a request. `done` is called once, later."""
        ...

    def step(self, active: int, busy: int) -> float | None:
        """Works on the requests, if that is to be done in the caller's thread.

        Args:
            active: rollouts of this process that have not ended.
            busy: rollouts among them whose environment is working.

        Returns:
            Seconds after which to call again if nothing happens before, `math.inf` if there is no need; `None` if
            neither this process nor one that must stay in step with it has an active rollout.
        """
        ...


class LockstepEngine(ABC):
    """Samples for all rollouts that wait, as one batch.

    From its first request on, a batch waits for environments that are still working, but no longer than the batch
    before it took: an environment that is slower costs the others half of their time at most, and itself the batch
    that it missed.

    Args:
        any_active (`Callable[[bool], bool]`, *optional*):
            Tells whether any process has an active rollout, given whether this one has. Where sampling is a collective
            operation every process must take part in every batch; an idle one does so without requests.
    """

    least_patience = 0.1  # seconds
    first_patience = 1.0  # of the first batch: resets take longer than steps

    def __init__(self, any_active: Callable[[bool], bool] | None = None):
        self._any_active = any_active
        self._waiting: list[tuple[Request, Done]] = []
        self._patience = self.first_patience
        self._since = time.perf_counter()

    @abstractmethod
    def generate(self, requests: list[Request]) -> list[Sample]:
        """Samples one continuation for each request, in order."""

    def submit(self, request: Request, done: Done) -> None:
        """See [`Engine`]."""
        if not self._waiting:
            self._since = time.perf_counter()
        self._waiting.append((request, done))

    def step(self, active: int, busy: int) -> float | None:
        """See [`Engine`]."""
        if self._any_active is None and active and not self._waiting:
            return math.inf
        started = time.perf_counter()
        left = self._since + self._patience - started
        if busy and left > 0:
            return left
        if not (active > 0 if self._any_active is None else self._any_active(active > 0)):
            self._patience = self.first_patience
            return None
        batch, self._waiting = sorted(self._waiting, key=lambda pair: pair[0].rollout), []
        samples = self.generate([request for request, _ in batch])
        self._since = time.perf_counter()
        self._patience = max(self.least_patience, self._since - started)
        for (_, done), sample in zip(batch, samples, strict=True):
            done(sample)
        return 0.0
