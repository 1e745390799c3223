"""Scripted policy that answers every question of a generated world from the observations alone."""

from __future__ import annotations

import random
from dataclasses import dataclass

from trl_agentic.environments.base import Environment

from .world import RELATIONS, chain_of


@dataclass(frozen=True, slots=True)
class Step:
    """One turn of a demonstration.

    Attributes:
        observation: the text that the policy reads.
        action: its turn, in the plain format.
        imitate: `False` for a turn that was inserted to go astray, which must not be imitated.
    """

    observation: str
    action: str
    imitate: bool


class Oracle:
    """Scripted policy that follows the chain of a question: one search for each relation, another with the second
    wording if the passages do not contain it, and the answer at the end. It reads only its observations."""

    def reset(self, question: str) -> None:
        """Starts on a question, the first observation of an episode.

        Raises:
            ValueError: it is not a question of a generated world.
        """
        self._entity, self._chain = chain_of(question)
        self._tries = self._found = 0

    def act(self, observation: str) -> str:
        """The next turn, `search ...` or `answer ...`, after an observation (the question, or a result)."""
        value = self._read(observation) if self._chain else None
        if value is not None:
            self._entity, self._tries = value, 0
            self._found += 1
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

    def hasty_answer(self) -> str | None:
        """An answer with the last entity found, if one was found before the end of the chain."""
        return f"answer {self._entity}" if self._found and self._chain else None

    def _read(self, observation: str) -> str | None:
        """The value of the next relation of the chain, if a sentence of the result contains it."""
        for wording in self._chain[0].wordings:
            _, found, rest = observation.partition(f". {self._entity} {wording.text.format('')}")
            if found:
                return rest.partition(".")[0]
        return None


def demonstration(
    env: Environment, row: dict[str, object], rng: random.Random, noise: float = 0.0, haste: float = 0.0
) -> list[Step] | None:
    """An episode of the oracle.

    Args:
        env ([`SearchEnv`]): an environment with `action_format="plain"`.
        row (`dict`): a row of its [`tasks`].
        rng (`random.Random`): draws the turns that go astray and the hasty ones.
        noise (`float`, *optional*, defaults to `0.0`): probability of a search that goes astray before one of the
            oracle.
        haste (`float`, *optional*, defaults to `0.0`): probability of a hasty answer ([`Oracle.hasty_answer`])
            where the oracle would search again. It is part of the demonstration, to be imitated with it.

    Returns:
        `list[Step]`: its turns; `None` if the searches were used up before the answer.
    """
    oracle, steps = Oracle(), []
    observation = env.reset(**row)
    oracle.reset(observation)
    while True:
        action, imitate = oracle.act(observation), True
        hasty = oracle.hasty_answer()
        if hasty is not None and rng.random() < haste:
            action = hasty
        elif action.startswith("search ") and rng.random() < noise:  # the right entity, any relation
            oracle.take_back()
            wording = rng.choice(rng.choice(list(RELATIONS.values())).wordings)
            action, imitate = f"{action.rpartition(' ')[0]} {wording.keyword}", False
        steps.append(Step(observation, action, imitate))
        result = env.step(action)
        observation = result.observation
        if result.terminated or result.truncated:
            return steps if result.terminated else None
