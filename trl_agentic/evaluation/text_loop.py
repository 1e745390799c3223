"""Rollout loop for a policy that reads messages and writes text. `trl_agentic.rollout` has the loop on token ids."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from typing import Any, NamedTuple

from trl_agentic.rollout.loop import Episode
from trl_agentic.rollout.prompts import first_messages
from trl_agentic.types import StepResult, StopReason, Trajectory, Turn


class Answer(NamedTuple):
    """A policy's answer in one turn.

    Attributes:
        text: the answer.
        tokens: number of sampled tokens, `None` if not known.
        cut: whether it ended at its token budget.
    """

    text: str
    tokens: int | None = None
    cut: bool = False


class ContextFull(Exception):
    """Raised by a policy whose context cannot hold the messages."""


def play_text(
    episode: Episode,
    make_policy: Callable[[Episode], Callable[[list[dict[str, Any]]], Answer]],
    max_turns: int,
) -> Trajectory:
    """Plays one episode to its end.

    Args:
        episode: the environment, its task and a seed.
        make_policy: from the episode, whose environment has been reset, to a function from the messages to an answer.
        max_turns: turns after which the rollout ends with `StopReason.MAX_TURNS`.

    Returns:
        The trajectory, without token ids. An environment that raises ends it with `StopReason.ERROR`, a policy that
        raises [`ContextFull`] with `StopReason.CONTEXT_LENGTH`; another error of the policy is raised.
    """
    trajectory = Trajectory(task=episode.task)
    try:
        observation = episode.environment.reset(**episode.task) or ""
        messages = first_messages(episode.task, observation)
    except Exception:
        trajectory.error = traceback.format_exc()
        return trajectory
    policy = make_policy(episode)
    anchor = observation
    while len(trajectory.turns) < max_turns:
        try:
            answer = policy(messages)
        except ContextFull:
            trajectory.stop_reason = StopReason.CONTEXT_LENGTH
            return trajectory
        turn = Turn([], [], None, answer.text, observation, anchor, extends=bool(trajectory.turns), cut=answer.cut)
        trajectory.turns.append(turn)
        try:
            result = episode.environment.step(answer.text)
        except Exception:
            trajectory.error = traceback.format_exc()
            return trajectory
        _record(result, turn, trajectory, answer)
        if result.terminated or result.truncated:
            trajectory.stop_reason = StopReason.TERMINATED if result.terminated else StopReason.TRUNCATED
            return trajectory
        observation = result.observation
        anchor = result.info.get("anchor_state", observation)
        messages = [
            *messages,
            {"role": "assistant", "content": answer.text},
            {"role": "user", "content": observation},
        ]
    trajectory.stop_reason = StopReason.MAX_TURNS
    return trajectory


def _record(result: StepResult, turn: Turn, trajectory: Trajectory, answer: Answer) -> None:
    turn.reward = float(result.reward)
    turn.info = {**result.info, "action_tokens": answer.tokens}
    trajectory.final_observation = result.observation
    trajectory.final_anchor_state = None if result.terminated else result.info.get("anchor_state", result.observation)
    if "success" in result.info:
        trajectory.success = bool(result.info["success"])
