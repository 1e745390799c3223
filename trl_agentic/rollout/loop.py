"""The loop between the policy and the environments of a batch of rollouts.

Rollouts advance independently of one another: each waits either for the engine or for its environment, and every
answer is handled as soon as it arrives. Environments work in threads; everything else, the engine's own work included,
happens in the caller's thread. Environments that answer within a millisecond are called one after the other instead:
many threads that compute at the same time slow one another down.
"""

from __future__ import annotations

import math
import time
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from typing import Any

import numpy as np

from trl_agentic.environments.base import BeginsSteps, Environment, EpisodeRestarted
from trl_agentic.rollout.chat import ChatRenderer
from trl_agentic.rollout.engines import Engine, Request, Sample
from trl_agentic.rollout.prompts import FULL, PromptPolicy, first_prompt, next_prompt, observation_ids
from trl_agentic.types import Prompt, StepResult, StopReason, Trajectory, Turn


QUICK_ANSWER = 0.001
"""Seconds. The loop waits this long for the answer of an environment whose previous answer took no longer."""


@dataclass(frozen=True, slots=True)
class Budgets:
    """Limits of a rollout. A turn is started only if all of its `max_turn_tokens` fit.

    Attributes:
        max_turns: turns of a rollout.
        max_turn_tokens: tokens that the policy may sample in one turn.
        max_rollout_tokens: tokens after the first prompt, sampled and observed, each counted once however often a
            prompt shows it.
        max_context: tokens of the model's context.
        stop_at_overlong_turn: end the rollout at a turn without an end-of-turn token, instead of passing the
            incomplete action to the environment.
    """

    max_turns: int
    max_turn_tokens: int
    max_rollout_tokens: int
    max_context: int
    stop_at_overlong_turn: bool = False


@dataclass(slots=True)
class Episode:
    """One rollout to play.

    Attributes:
        environment: an instance of its own.
        task: the dataset row, passed to `reset`.
        seed: seed of the policy's sampling in this rollout.
        tools: tools that the chat template lists in the prompt.
        observation_role: role of the messages that carry observations.
        raw_action: pass the action to the environment with its special tokens.
    """

    environment: Environment
    task: dict[str, Any]
    seed: int
    tools: list[Any] | None = None
    observation_role: str = "user"
    raw_action: bool = False


@dataclass(slots=True)
class RolloutClock:
    """Times and token counts of a batch of rollouts.

    Attributes:
        seconds: duration of the whole.
        ahead_seconds: the part of it that had passed before the trainer waited for the rollouts.
        engine_seconds, env_seconds: time in which at least one rollout waited for the engine, or for its environment.
            The two overlap where the engine and environments work at the same time.
        engine_waits: sum over all rollouts of the time from each request to its sample, the engine's queue included.
        env_waits: sum over all rollouts of the time from each call of an environment until the loop takes its answer.
        env_saved: seconds of resets that had passed before the loop called `reset`.
        prompt_tokens: tokens of all prompts.
        cached_tokens: those of them that the engine had in its cache.
    """

    seconds: float = 0.0
    ahead_seconds: float = 0.0
    engine_seconds: float = 0.0
    env_seconds: float = 0.0
    engine_waits: float = 0.0
    env_waits: float = 0.0
    env_saved: float = 0.0
    prompt_tokens: int = 0
    cached_tokens: int = 0


@dataclass(slots=True)
class _Rollout:
    index: int
    episode: Episode
    trajectory: Trajectory
    context: list[int] = field(default_factory=list)  # all ids of the consecutive turns that the next one may extend
    prompt: Prompt = field(default_factory=lambda: Prompt([], extends=False))  # of the next action
    spent: int = 0  # tokens sampled and observed
    observation: str = ""
    anchor: str = ""
    waits_since: float = 0.0
    env_seconds: float = 0.0  # duration of the environment's last step
    done: bool = False

    def stop(self, reason: StopReason) -> None:
        self.trajectory.stop_reason = reason
        self.done = True

    def fail(self, error: Exception) -> None:
        self.trajectory.error = "".join(traceback.format_exception(error))
        self.stop(StopReason.ERROR)


def play(
    episodes: list[Episode],
    engine: Engine,
    chat: ChatRenderer,
    budgets: Budgets,
    on_done: Callable[[int], object] | None = None,
    clock: RolloutClock | None = None,
    context: PromptPolicy = FULL,
) -> list[Trajectory]:
    """Plays all episodes to their end.

    An environment that raises ends its own rollout with `StopReason.ERROR`; the others continue. The trajectories do
    not depend on the order in which environments answer, and do not change once their rollouts have ended.

    Args:
        episodes: rollouts to play. Each environment is called by one thread at a time, not always the same one.
        engine: samples for the policy.
        chat: renders prompts and observations.
        budgets: limits of each rollout.
        on_done: called with the number of rollouts that just ended.
        clock: times and counts are added to it.
        context: how much of a rollout its prompts show.

    Returns:
        One trajectory for each episode, in order.

    Raises:
        Exception: the error that the engine raised or reported.
    """
    return _Play(episodes, engine, chat, budgets, on_done, clock or RolloutClock(), context).run()


class _Play:
    def __init__(
        self,
        episodes: list[Episode],
        engine: Engine,
        chat: ChatRenderer,
        budgets: Budgets,
        on_done: Callable[[int], object] | None,
        clock: RolloutClock,
        context: PromptPolicy,
    ):
        self._engine, self._chat, self._budgets, self._on_done, self._clock = engine, chat, budgets, on_done, clock
        self._context = context
        self._rollouts = [_Rollout(i, episode, Trajectory(task=episode.task)) for i, episode in enumerate(episodes)]
        self._active = len(episodes)
        self._busy = 0  # rollouts that wait for their environment; the other active ones wait for the engine
        self._quick_seconds = 0.0  # spent on quick answers since the engine's last step
        self._answers: SimpleQueue[Callable[[], None]] = SimpleQueue()  # each handles one answer, in this thread
        self._threads = ThreadPoolExecutor(max(len(episodes), 1), thread_name_prefix="environment")

    def run(self) -> list[Trajectory]:
        try:
            for rollout in self._rollouts:
                self._call(rollout, time.perf_counter(), rollout.episode.environment.reset, **rollout.episode.task)
            pause: float | None = 0.0
            while pause is not None:
                started = time.perf_counter()
                sampling, acting = self._active > self._busy, self._busy > 0
                pause = self._engine.step(self._active, self._busy)
                if pause is not None and self._active:
                    self._handle_answers(pause)
                seconds = time.perf_counter() - started
                self._clock.engine_seconds += seconds * sampling
                self._clock.env_seconds += seconds if acting else self._quick_seconds
                self._quick_seconds = 0.0
        finally:
            self._threads.shutdown(wait=False, cancel_futures=True)
        return [rollout.trajectory for rollout in self._rollouts]

    def _handle_answers(self, pause: float) -> None:
        """Waits for an answer, `pause` seconds at most, and handles all that have arrived."""
        try:
            answer = self._answers.get(timeout=pause if math.isfinite(pause) else None)
            while True:
                answer()
                answer = self._answers.get_nowait()
        except Empty:
            return

    def _sampled(self, rollout: _Rollout, sample: Sample | Exception) -> None:
        if isinstance(sample, Exception):
            raise sample
        self._clock.engine_waits += time.perf_counter() - rollout.waits_since
        self._clock.prompt_tokens += len(rollout.context) + len(rollout.prompt.ids)
        self._clock.cached_tokens += sample.cached_tokens
        _add_turn(rollout, sample, self._chat, self._budgets)
        if rollout.done:
            self._end()
        else:
            self._act(rollout)

    def _act(self, rollout: _Rollout) -> None:
        """Calls the environment's `step`: in a thread, unless the answer comes at once."""
        environment, action = rollout.episode.environment, rollout.trajectory.turns[-1].action
        started = time.perf_counter()
        if (
            rollout.env_seconds <= QUICK_ANSWER
            and isinstance(environment, BeginsSteps)
            and environment.begin_step(action, QUICK_ANSWER)
        ):
            result = environment.step(action)
            seconds = time.perf_counter() - started
            self._clock.env_waits += seconds
            self._quick_seconds += seconds
            self._observed(rollout, result)
        else:
            self._call(rollout, started, environment.step, action)

    def _call(self, rollout: _Rollout, started: float, method: Callable[..., Any], /, *args: Any, **row: Any) -> None:
        """Calls a method of the environment in a thread."""

        def call() -> None:
            try:
                result = method(*args, **row)
            except Exception as error:
                result = error
            seconds = time.perf_counter() - started
            self._answers.put(lambda: self._answered(rollout, result, seconds))

        self._busy += 1
        rollout.waits_since = started
        self._threads.submit(call)

    def _answered(self, rollout: _Rollout, result: Any, seconds: float) -> None:
        """Takes an answer that a thread brought, and the time from the call to it."""
        self._busy -= 1
        self._clock.env_waits += time.perf_counter() - rollout.waits_since
        if rollout.trajectory.turns:  # a reset may take longer than the steps
            rollout.env_seconds = seconds
        self._observed(rollout, result)

    def _observed(self, rollout: _Rollout, result: Any) -> None:
        if isinstance(result, EpisodeRestarted):
            rollout.trajectory, rollout.context, rollout.spent = Trajectory(task=rollout.episode.task), [], 0
            result = result.observation
        try:
            if isinstance(result, Exception):
                raise result
            read = _read_result if rollout.trajectory.turns else _read_first
            read(rollout, result, self._chat, self._budgets, self._context)
        except Exception as error:
            rollout.fail(error)
        if rollout.done:
            self._end()
        else:
            self._request(rollout)

    def _end(self) -> None:
        self._active -= 1
        if self._on_done is not None:
            self._on_done(1)

    def _request(self, rollout: _Rollout) -> None:
        """Requests the next turn from the engine."""
        request = Request(
            rollout.index,
            rollout.context + rollout.prompt.ids,
            self._budgets.max_turn_tokens,
            turn_seed(rollout.episode.seed, rollout.trajectory),
        )
        rollout.waits_since = time.perf_counter()
        self._engine.submit(request, lambda sample: self._answers.put(lambda: self._sampled(rollout, sample)))


def turn_seed(rollout_seed: int, trajectory: Trajectory) -> int:
    """Seed of the next turn's sampling, which depends only on the rollout's seed and the turn's number."""
    return derived_seed(rollout_seed, len(trajectory.turns))


def derived_seed(*parts: int) -> int:
    """A 63-bit seed mixed from non-negative integers."""
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0] >> 1)


def _read_first(
    rollout: _Rollout, observation: Any, chat: ChatRenderer, budgets: Budgets, context: PromptPolicy
) -> None:
    """Reads the answer of `reset`."""
    if observation is not None and not isinstance(observation, str):
        raise TypeError(f"`reset` must return the first observation as `str`, got {type(observation).__name__}.")
    episode = rollout.episode
    rollout.prompt = first_prompt(chat, context, episode.task, observation or "", episode.tools)
    rollout.observation = rollout.anchor = observation or ""
    _check_budgets(rollout, budgets)


def _add_turn(rollout: _Rollout, sample: Sample, chat: ChatRenderer, budgets: Budgets) -> None:
    """Adds the turn that the policy sampled."""
    trajectory = rollout.trajectory
    turn = Turn(
        prompt_ids=rollout.prompt.ids,
        action_ids=sample.ids,
        logprobs=sample.logprobs,
        action=chat.decode(sample.ids, skip_special_tokens=not rollout.episode.raw_action),
        observation=rollout.observation,
        anchor_state=rollout.anchor,
        extends=rollout.prompt.extends,
        cut=not sample.ended,
        policy_step=sample.policy_step,
    )
    rollout.context = rollout.context + rollout.prompt.ids + sample.ids
    trajectory.turns.append(turn)
    trajectory.final_prompt = None
    if turn.cut and budgets.stop_at_overlong_turn:
        trajectory.final_anchor_state = rollout.anchor
        rollout.stop(StopReason.TURN_LENGTH)


def _read_result(rollout: _Rollout, result: Any, chat: ChatRenderer, budgets: Budgets, context: PromptPolicy) -> None:
    """Reads the answer of `step`."""
    trajectory = rollout.trajectory
    _check_step_result(result)
    turn = trajectory.turns[-1]
    turn.reward = float(result.reward)
    turn.info = result.info
    trajectory.final_observation = result.observation
    if "success" in result.info:
        trajectory.success = bool(result.info["success"])
    if result.terminated:
        rollout.stop(StopReason.TERMINATED)
        return
    _observe(rollout, result.observation, chat, context)
    rollout.anchor = trajectory.final_anchor_state = result.info.get("anchor_state", result.observation)
    if result.truncated:
        rollout.stop(StopReason.TRUNCATED)
        return
    _check_budgets(rollout, budgets)


def _observe(rollout: _Rollout, observation: str, chat: ChatRenderer, context: PromptPolicy) -> None:
    """Builds the prompt of the next turn."""
    trajectory, episode = rollout.trajectory, rollout.episode
    turn, role = trajectory.turns[-1], episode.observation_role
    rollout.spent += len(turn.action_ids) + len(observation_ids(chat, turn, observation, role))
    prompt = next_prompt(chat, context, trajectory, observation, rollout.context, episode.tools, role)
    rollout.prompt = trajectory.final_prompt = prompt
    if not prompt.extends:
        rollout.context = []
    rollout.observation = observation


def _check_step_result(result: StepResult) -> None:
    if not isinstance(result, StepResult):
        raise TypeError(f"`step` must return a `StepResult`, got {type(result).__name__}.")
    if not isinstance(result.observation, str):
        raise TypeError(f"`StepResult.observation` must be `str`, got {type(result.observation).__name__}.")
    if not math.isfinite(result.reward):
        raise ValueError(f"`StepResult.reward` is {result.reward}: rewards must be finite numbers.")
    if not isinstance(result.info, dict):
        raise TypeError(f"`StepResult.info` must be a dict, got {type(result.info).__name__}.")
    if not isinstance(result.info.get("anchor_state", ""), str):
        raise TypeError(f"`info['anchor_state']` must be `str`, got {type(result.info['anchor_state']).__name__}.")


def _check_budgets(rollout: _Rollout, budgets: Budgets) -> None:
    """Ends the rollout if another whole turn does not fit."""
    length = len(rollout.context) + len(rollout.prompt.ids)
    if len(rollout.trajectory.turns) >= budgets.max_turns:
        rollout.stop(StopReason.MAX_TURNS)
    elif length + budgets.max_turn_tokens > budgets.max_context:
        rollout.stop(StopReason.CONTEXT_LENGTH)
    elif rollout.spent + budgets.max_turn_tokens > budgets.max_rollout_tokens:
        rollout.stop(StopReason.ROLLOUT_LENGTH)
