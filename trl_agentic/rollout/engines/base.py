"""The interface between the loop and an inference engine, and a base class of engines that sample batch by batch."""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from trl_agentic.rollout.batching_delay import BatchingDelay


IDLE_PAUSE = 0.002  # seconds between two exchanges with processes that must stay in step, while none of them samples


@dataclass(frozen=True, slots=True)
class Request:
    """Request of one rollout for its next turn.

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
    """Sampled continuation of a request.

    Attributes:
        ids: sampled ids, the end-of-turn token included if there is one.
        logprobs: sampling log-probability of each id, `None` if the engine gives none; NaN where it is unknown.
        ended: whether the last id is an end-of-turn token.
        cached_tokens: tokens of the prompt that the engine had in its cache.
        policy_step: optimizer step of the weights that sampled, `None` if the engine does not know it.
    """

    ids: list[int]
    logprobs: list[float] | None
    ended: bool
    cached_tokens: int = 0
    policy_step: int | None = None


@dataclass(frozen=True, slots=True)
class Sampling:
    """Sampling parameters, with the same meaning as in transformers. `temperature=0` is greedy."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float | None = None
    repetition_penalty: float = 1.0


Done = Callable[[Sample | Exception], None]
"""Receives the sample of a request, or its error, from any thread."""


class Engine(Protocol):
    """Inference engine that the loop drives. A sample depends on its own request only, not on other requests."""

    def submit(self, request: Request, done: Done) -> None:
        """Accepts a request. `done` is called once, later."""
        ...

    def step(self, active: int, busy: int) -> float | None:
        """Works on the requests, if the engine works in the caller's thread.

        Args:
            active: rollouts of this process that have not ended.
            busy: rollouts among them whose environment is working.

        Returns:
            Seconds after which to call again if nothing happens before, `math.inf` if there is no need; `None` if
            neither this process nor one that must stay in step with it has an active rollout.
        """
        ...


class LockstepEngine(ABC):
    """Base class of engines that sample for all waiting rollouts as one batch.

    A batch waits for environments that are still working, from its first request on, but by default no longer than
    the previous batch took. A slower environment therefore delays the others by half of their time at most, and itself
    by the batch that it missed.

    Args:
        any_active (`Callable[[bool], bool]`, *optional*):
            Returns whether any process has an active rollout, given whether this one has. Where sampling is a
            collective operation every process must take part in every batch; an idle process does so without requests.
        delay ([`~trl_agentic.rollout.batching_delay.BatchingDelay`], *optional*):
            Limits the wait for environments.
    """

    def __init__(self, any_active: Callable[[bool], bool] | None = None, delay: BatchingDelay | None = None):
        self._any_active = any_active
        self._delay = delay or BatchingDelay(passes=1.0, minimum=0.1, backoff=1.0)
        self._waiting: list[tuple[Request, Done]] = []

    @abstractmethod
    def generate(self, requests: list[Request]) -> list[Sample]:
        """Samples one continuation for each request, in order."""

    def submit(self, request: Request, done: Done) -> None:
        """See [`Engine`]."""
        if not self._waiting:
            self._delay.start()
        self._waiting.append((request, done))

    def step(self, active: int, busy: int) -> float | None:
        """See [`Engine`]."""
        if self._any_active is None and active and not self._waiting:
            return math.inf
        if left := self._delay.remaining(busy):
            return left
        started = time.perf_counter()
        if not (active > 0 if self._any_active is None else self._any_active(active > 0)):
            self._delay.reset()
            return None
        batch, self._waiting = sorted(self._waiting, key=lambda pair: pair[0].rollout), []
        samples = self.generate([request for request, _ in batch])
        self._delay.record_pass(time.perf_counter() - started, any_ended=True)
        for (_, done), sample in zip(batch, samples, strict=True):
            done(sample)
        return 0.0
