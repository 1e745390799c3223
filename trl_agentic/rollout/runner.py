"""Rollout runner: environment pool, prompts, budgets and an inference engine together produce trajectories."""

from __future__ import annotations

import math
import traceback
from collections.abc import Callable
from typing import Any

from trl_agentic.environments.handle import EnvironmentHandle
from trl_agentic.environments.pool import EnvironmentPool
from trl_agentic.rollout.chat import ChatRenderer
from trl_agentic.rollout.engines import Engine
from trl_agentic.rollout.loop import Budgets, Episode, RolloutClock, play
from trl_agentic.rollout.prompts import PromptPolicy, first_prompt
from trl_agentic.types import StopReason, Trajectory


class RolloutRunner:
    """Runner that plays dataset rows with an inference engine.

    Args:
        pool: environments.
        chat: renders prompts and observations.
        budgets: limits of each rollout.
        policy: how much of a rollout its prompts show.
    """

    def __init__(self, pool: EnvironmentPool, chat: ChatRenderer, budgets: Budgets, policy: PromptPolicy):
        self._pool, self._chat, self._budgets, self._policy = pool, chat, budgets, policy

    def play(
        self,
        rows: list[dict[str, Any]],
        seeds: list[int],
        environments: list[EnvironmentHandle],
        engine: Engine,
        on_done: Callable[[int], object] | None = None,
        clock: RolloutClock | None = None,
    ) -> list[Trajectory]:
        """Plays one rollout for each row.

        Args:
            rows: dataset rows.
            seeds: seed of the sampling of each rollout.
            environments: one for each row, from the pool.
            engine: samples for the policy.
            on_done: called with the number of rollouts that have just ended.
            clock: where to add the seconds spent.

        Returns:
            Finished trajectories in the order of `rows`. Nothing changes them afterwards.
        """
        episodes = self._episodes(rows, seeds, environments)
        trajectories = play(episodes, engine, self._chat, self._budgets, on_done, clock, self._policy)
        for episode, environment, trajectory in zip(episodes, environments, trajectories, strict=True):
            if episode.tools is not None and trajectory.turns and trajectory.error is None:
                _add_final_reward(environment, trajectory)
            trajectory.retries = environment.retries
            if clock is not None:
                clock.env_saved += environment.seconds_saved
        return trajectories

    def first_prompt_length(self, row: dict[str, Any]) -> int:
        """Number of tokens of the first prompt of a row. Resets an environment."""
        task, [environment] = self._pool.reset_arguments(row), self._pool.take([row])
        observation = environment.reset(**task) or ""
        return len(first_prompt(self._chat, self._policy, task, observation, self._pool.tools(row)).ids)

    def _episodes(
        self, rows: list[dict[str, Any]], seeds: list[int], environments: list[EnvironmentHandle]
    ) -> list[Episode]:
        episodes = []
        for environment, row, seed in zip(environments, rows, seeds, strict=True):
            tools = self._pool.tools(row)
            episodes.append(
                Episode(
                    environment=environment,
                    task=self._pool.reset_arguments(row),
                    seed=seed,
                    tools=tools,
                    observation_role="user" if tools is None else "tool",
                    raw_action=tools is not None,
                )
            )
        return episodes


def _add_final_reward(environment: EnvironmentHandle, trajectory: Trajectory) -> None:
    """Adds a tool-style environment's own reward to the last turn. An error there fails this rollout alone."""
    try:
        reward = environment.reward()
        if not math.isfinite(reward):
            raise ValueError(f"`get_reward` returned {reward}: rewards must be finite numbers.")
        trajectory.turns[-1].reward += reward
    except Exception:
        trajectory.error = traceback.format_exc()
        trajectory.stop_reason = StopReason.ERROR
