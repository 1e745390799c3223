"""The environment protocol."""

from __future__ import annotations

import math
from collections.abc import Callable
from numbers import Real
from typing import Any, Protocol, runtime_checkable

from trl_agentic.types import StepResult


class EpisodeRestarted(Exception):
    """Raised by `step`: the episode was lost and has started again, with this first observation."""

    def __init__(self, observation: Any):
        super().__init__("The episode was lost and has started again.")
        self.observation = observation


@runtime_checkable
class Environment(Protocol):
    """Protocol of environments.

    One instance plays one episode at a time and is reset many times. Instances share nothing: two of them may be
    stepped at the same time from different threads.
    """

    def reset(self, **row: Any) -> str:
        """Starts an episode.

        Args:
            **row: the columns of the dataset row (task id, seed, question ...), `prompt` included if there is one.

        Returns:
            The first observation, as the policy reads it.
        """
        ...

    def step(self, action: str) -> StepResult:
        """Plays one turn. `action` is the whole answer of the policy as text, which the environment parses."""
        ...

    def close(self) -> None:
        """Frees the resources of the instance. Called once."""
        ...


@runtime_checkable
class BeginsSteps(Protocol):
    """Optional protocol of environments that can start a step before its result is needed."""

    def begin_step(self, action: str, seconds: float) -> bool:
        """Starts the step whose result the next call of `step` with this action returns, and waits up to `seconds`.

        There must be no other call in between.

        Returns:
            Whether `step` returns at once.
        """
        ...


def check_environment(
    factory: Callable[[], Environment], row: dict[str, Any], actions: list[str] | None = None
) -> None:
    """Plays a short episode and checks that the environment follows the protocol.

    Args:
        factory: makes an instance; the trainers' `environment_factory`.
        row: a dataset row to reset with.
        actions: actions to play, one a turn, until the episode ends. By default an empty and a nonsensical one, which
            every environment must accept.

    Raises:
        TypeError: a method is missing or returns the wrong type. The message names the class and the method.
        ValueError: a reward is not finite, `info` holds a value of the wrong type, or two resets with the same row
            give different first observations.
    """
    environment = factory()
    try:
        check_methods(environment)
        check_episode(environment, type(environment).__name__, row, actions)
    finally:
        if callable(getattr(environment, "close", None)):
            environment.close()


def check_methods(environment: Any) -> None:
    """Part of [`check_environment`] that needs no episode.

    Raises:
        TypeError: a method is missing. The message names the class and the method.
    """
    for method in ("reset", "step", "close"):
        if not callable(getattr(environment, method, None)):
            name = type(environment).__name__
            raise TypeError(f"{name} has no method `{method}`; an environment needs `reset`, `step` and `close`.")


def check_episode(environment: Environment, name: str, row: dict[str, Any], actions: list[str] | None = None) -> None:
    """Part of [`check_environment`] that plays an episode.

    Args:
        environment: an instance; it is not closed.
        name: name of the environment in messages.
        row, actions: as in [`check_environment`].
    """
    first = environment.reset(**row)
    if not isinstance(first, str):
        raise TypeError(f"{name}.reset must return the first observation as `str`, got {type(first).__name__}.")
    for action in actions if actions is not None else ["", "an action that no environment knows"]:
        result = environment.step(action)
        _check_result(name, result)
        if result.terminated or result.truncated:
            break
    again = environment.reset(**row)
    if again != first:
        raise ValueError(
            f"{name}.reset gave two different first observations for the same row: the rollouts of a group must "
            f"start in the same state. Seed it from the row. First: {first[:80]!r}, then: {again[:80]!r}."
        )


def _check_result(name: str, result: Any) -> None:
    if not isinstance(result, StepResult):
        raise TypeError(f"{name}.step must return a `StepResult`, got {type(result).__name__}.")
    if not isinstance(result.observation, str):
        raise TypeError(f"{name}.step: `observation` must be `str`, got {type(result.observation).__name__}.")
    if not isinstance(result.reward, Real) or not math.isfinite(result.reward):
        raise ValueError(f"{name}.step: `reward` is {result.reward!r}; it must be a finite number.")
    if not isinstance(result.info, dict):
        raise TypeError(f"{name}.step: `info` must be a dict, got {type(result.info).__name__}.")
    for key, kind in (
        ("anchor_state", str),
        ("admissible_actions", list),
        ("is_action_valid", bool),
        ("success", bool),
        ("score", Real),
    ):
        if key in result.info and not isinstance(result.info[key], kind):
            got = type(result.info[key]).__name__
            raise ValueError(f"{name}.step: `info[{key!r}]` must be of type `{kind.__name__}`, got {got}.")
