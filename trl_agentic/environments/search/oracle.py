"""A scripted policy that answers every question of a generated world, from what the environment shows it alone."""

from __future__ import annotations

import random
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .world import RELATIONS, chain_of


if TYPE_CHECKING:
    from .env import SearchEnv


@dataclass(frozen=True, slots=True)
class Step:
    """One turn of a demonstration.

    Attributes:
        observation: what the policy reads.
        action: its turn, in the plain format.
        is_oracle: `False` for a turn that was put in to go astray.
    """

    observation: str
    action: str
    is_oracle: bool


class Oracle:
    """Follows the chain of a question: one search a relation, another with the other wording if the passages that come
    back do not tell it, and the answer at the end. It reads its observations and nothing else."""

    def reset(self, question: str) -> None:
        """Starts on a question, the first observation of an episode.

        Raises:
            ValueError: it is no question of a generated world.
        """
        self._entity, self._chain = chain_of(question)
        self._tries = 0

    def act(self, observation: str) -> str:
        """The next turn, `search ...` or `answer ...`, after an observation (the question, or a result)."""
        value = self._read(observation) if self._chain else None
        if value is not None:
            self._entity, self._tries = value, 0
            del self._chain[0]
        if not self._chain:
            return f"answer {self._entity}"
        wordings = self._chain[0].wordings
        query = f"search {self._entity} {wordings[self._tries % len(wordings)].keyword}"
        self._tries += 1
        return query

    def take_back(self) -> None:
        """Forgets the last search, which was not played."""
        self._tries -= 1

    def _read(self, observation: str) -> str | None:
        """The value of the relation that is looked for, if a sentence of the result tells it."""
        for wording in self._chain[0].wordings:
            found = re.search(rf"\. {self._entity} {wording.text.format('([^.]+)')}\.", observation)
            if found:
                return found[1]
        return None


def demonstration(env: SearchEnv, row: dict[str, object], rng: random.Random, noise: float = 0.0) -> list[Step] | None:
    """An episode of the oracle.

    Args:
        env ([`SearchEnv`]): an environment with `action_format="plain"`.
        row (`dict`): a row of its [`tasks`].
        rng (`random.Random`): draws the turns that go astray.
        noise (`float`, *optional*, defaults to `0.0`): probability of a search that goes astray before one of the
            oracle.

    Returns:
        `list[Step]`: its turns; `None` if the searches were used up before the answer.
    """
    oracle, steps = Oracle(), []
    observation = env.reset(**row)  # type: ignore[arg-type]
    oracle.reset(observation)
    while True:
        action = oracle.act(observation)
        astray = action.startswith("search ") and rng.random() < noise
        if astray:  # the right entity, any relation
            oracle.take_back()
            wording = rng.choice(rng.choice(list(RELATIONS.values())).wordings)
            action = f"{action.rpartition(' ')[0]} {wording.keyword}"
        steps.append(Step(observation, action, not astray))
        result = env.step(action)
        observation = result.observation
        if result.terminated or result.truncated:
            return steps if result.terminated else None
