"""ALFWorld as an environment: games by name or number, the policy's answers parsed, rewards paid."""

from __future__ import annotations

import operator
import os
import random
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, SupportsIndex

from trl_agentic.deprecation import renamed_option
from trl_agentic.environments.prompts import ADMISSIBLE, read_answer
from trl_agentic.options import check_choice
from trl_agentic.types import StepResult

from .engine import ALFWorldEngine
from .expert import Expert, completing_commands
from .files import GameReference, find_games
from .game import ALFWorldGame
from .generator import SPLIT_SIZES, TASK_NAMES, GameDescription, describe_game, generate_game
from .upstream import UpstreamALFWorldEngine


_SHORT_NAMES = {long: short for short, long in TASK_NAMES.items()}
_BANNER = "-= Welcome to TextWorld, ALFRED! =-\n\n"
_CACHED_GAMES = 64

_COMMANDS = (
    "go to (place), open (place), close (place), take (thing) from (place), move (thing) to (place), use (lamp), "
    "heat|cool|clean (thing) with (place), examine (thing or place), inventory, look"
)
INSTRUCTIONS = {
    "plain": "You do a task in a room. Answer with one command and nothing else.",
    "tags": (
        "You are in a room of a house and have a task to do there. Each message says what you see after your last "
        f"action. The commands are: {_COMMANDS}. Things and places are called by name and number, as in `mug 2`.\n"
        "First think inside <think> </think> about where you are with the task and what to do next. Then give one "
        "command inside <action> </action>, for example:\n"
        "<think>A mug may be in a cabinet, so I look there.</think>\n<action>go to cabinet 1</action>"
    ),
}
"""The system prompts of the two action formats."""


class ALFWorldEnv:
    """Household tasks in text: find an object, perhaps clean, heat or cool it or hold it under a lamp, and place it.

    Without `data` the games are generated ([`generate_game`]); with it they are those of the released files. Parsed
    games are shared by all instances of a process, so resetting many of them to one game parses it once.

    Args:
        split (`str`, *optional*, defaults to `"train"`): `"train"`, `"valid_seen"` or `"valid_unseen"`.
        data (`str` or `os.PathLike`, *optional*): folder or tar of released games, as for [`find_games`]. `None` plays
            generated games, whatever `$ALFWORLD_DATA` says. Its listing is read once per process.
        num_games (`int`, *optional*): number of games. Defaults to all games in `data`, or to as many generated ones
            as the released split has (3,553, 140 and 134). A part of `data` is drawn at random with `seed`.
        seed (`int`, *optional*, defaults to `0`): seed of the generated games, or of the draw from `data`.
        backend (`str`, *optional*, defaults to `"engine"`): `"engine"`, or `"alfworld"` for the upstream package,
            which is a hundred times slower, and in which the threads of a process take turns.
        max_steps (`int`, *optional*, defaults to `50`): steps after which an episode is truncated.
        show_admissible (`bool`, *optional*, defaults to `True`): list the admissible actions below each observation.
        action_format (`str`, *optional*, defaults to `"tags"`): how the policy's answer is read. `"tags"`: the command
            is the text of the first `<action>...</action>`, in lower case. Without one, the last 30 characters are the
            command and the answer is invalid, as it is without `<think>...</think>` or with Chinese characters.
            `"plain"`: the whole answer, without surrounding white space, is the command.
        success_reward (`float`, *optional*, defaults to `10.0`): paid by the step that reaches the goal.
        instructions (`str`, *optional*): system prompt in the rows of [`tasks`], instead of the one that
            `INSTRUCTIONS` has for `action_format`. With `""` the rows have no system prompt.
        on_broken_game (`str`, *optional*, defaults to `"raise"`): handling of a game in `data` that cannot be
            parsed. `"raise"`: its `reset` raises. `"skip"`: all games are parsed when they are listed (some
            milliseconds each) and broken ones are left out, with a warning that names them.
        expose_plan (`bool`, *optional*, defaults to `False`): put the commands that complete the game
            ([`completing_commands`]) into `info["ground_truth"]`, for trainers with an information gain. The policy
            does not see them.
        tell_plan (`bool`, *optional*): deprecated name of `expose_plan`.

    Raises:
        ValueError: an option has another value than those above.
        FileNotFoundError: there are no games in `data`.
        ImportError: `backend="alfworld"` and the extra `alfworld` is not installed; raised by `reset`.

    Example:

    ```python
    >>> env = ALFWorldEnv(split="valid_unseen", action_format="plain")
    >>> print(env.reset(game=0))
    >>> env.step("go to desk 1").info["is_action_valid"]
    ```
    """

    def __init__(
        self,
        split: str = "train",
        data: str | os.PathLike[str] | None = None,
        num_games: int | None = None,
        seed: int = 0,
        backend: Literal["engine", "alfworld"] = "engine",
        max_steps: int = 50,
        show_admissible: bool = True,
        action_format: Literal["tags", "plain"] = "tags",
        success_reward: float = 10.0,
        instructions: str | None = None,
        on_broken_game: Literal["raise", "skip"] = "raise",
        expose_plan: bool = False,
        tell_plan: bool | None = None,
    ) -> None:
        for name, value, allowed in (
            ("split", split, tuple(SPLIT_SIZES)),
            ("backend", backend, ("engine", "alfworld")),
            ("action_format", action_format, tuple(INSTRUCTIONS)),
            ("on_broken_game", on_broken_game, ("raise", "skip")),
        ):
            check_choice(name, value, allowed, "ALFWorldEnv")
        for name, number in (("num_games", num_games), ("max_steps", max_steps)):
            if number is not None and number < 1:
                raise ValueError(f"ALFWorldEnv: `{name}` must be at least 1, got {number}.")
        self.split = split
        self.backend = backend
        self.max_steps = max_steps
        self.show_admissible = show_admissible
        self.action_format = action_format
        self.success_reward = success_reward
        self.expose_plan = renamed_option("tell_plan", tell_plan, "expose_plan", expose_plan, default=False)
        self.instructions = INSTRUCTIONS[action_format] if instructions is None else instructions
        self._games = (
            _generated_games(split, num_games or SPLIT_SIZES[split], seed)
            if data is None
            else _released_games(os.fspath(data), split, num_games, seed, on_broken_game)
        )
        self._engine: ALFWorldEngine | UpstreamALFWorldEngine | None = None
        self._task_type = ""
        self._exposed: dict[str, str] = {}
        self._admissible: list[str] = []
        self._steps = 0
        self._over = "`reset` starts one"

    def __len__(self) -> int:
        """Number of games."""
        return len(self._games.entries)

    @property
    def admissible_actions(self) -> list[str]:
        """Actions that are possible now (without `help`); none before the first `reset`."""
        return self._listed()

    def tasks(self) -> list[dict[str, Any]]:
        """The games as dataset rows.

        Returns:
            `list[dict]`: for each game `game` (its name), `task_type` (`"Pick"`, `"Look"`, `"Clean"`, `"Heat"`,
            `"Cool"` or `"Pick2"`), `environment` (`"alfworld"`) and `prompt` (a list with the system message, if there
            is one).
        """
        prompt = [{"role": "system", "content": self.instructions}] if self.instructions else []
        return [
            {
                "game": entry.name,
                "task_type": _short_name(entry.task_type),
                "environment": "alfworld",
                "prompt": [dict(message) for message in prompt],
            }
            for entry in self._games.entries
        ]

    def reset(self, game: str | SupportsIndex, **row: Any) -> str:
        """Starts a game.

        Args:
            game (`str` or `int`): the game's name or its number in [`tasks`].
            **row: other columns of the dataset row; not used.

        Returns:
            `str`: the room and the task, and the admissible actions with `show_admissible`.

        Raises:
            KeyError: there is no game of that name.
            IndexError: there is no game of that number.
            ValueError: the game's file is broken. The message names it.
        """
        self.close()
        entry = self._games.find(game)
        parsed = _load(entry)
        self._engine = UpstreamALFWorldEngine(parsed) if self.backend == "alfworld" else ALFWorldEngine(parsed)
        state = self._engine.reset()
        self._task_type = _short_name(parsed.task_type)
        self._exposed = {"ground_truth": _plan(entry)} if self.expose_plan else {}
        self._steps, self._over = 0, ""
        self._admissible = state.admissible_actions
        return self._render(state.observation.removeprefix(_BANNER))

    def step(self, action: str) -> StepResult:
        """Plays one answer of the policy.

        Args:
            action (`str`): the policy's whole answer.

        Returns:
            [`StepResult`]: `terminated` once the goal is reached, `truncated` when `max_steps` are used up. `info` has
            `anchor_state` (the engine's text), `admissible_actions` (without `help`), `is_action_valid` (well-formed
            and admissible), `success` and `task_type`; with `expose_plan` also `ground_truth`.

        Raises:
            RuntimeError: no episode is running.
        """
        if self._over or self._engine is None:
            raise RuntimeError(f"ALFWorldEnv.step: no episode is running; {self._over}.")
        command, well_formed = read_answer(action, self.action_format)
        is_valid = well_formed and command in self._admissible
        state = self._engine.step(command)
        self._steps += 1
        self._admissible = state.admissible_actions
        truncated = not state.won and self._steps >= self.max_steps
        if state.won or truncated:
            self._over = "the last one has " + (
                "reached its goal" if state.won else f"used up its {self.max_steps} steps"
            )
        return StepResult(
            observation=state.observation if self._over else self._render(state.observation),
            reward=self.success_reward * state.won,
            terminated=state.won,
            truncated=truncated,
            info={
                "anchor_state": state.observation,
                "admissible_actions": self._listed(),
                "is_action_valid": is_valid,
                "success": state.won,
                "task_type": self._task_type,
                **self._exposed,
            },
        )

    def close(self) -> None:
        """Ends the episode and frees the engine."""
        if isinstance(self._engine, UpstreamALFWorldEngine):
            self._engine.close()
        self._engine = None
        self._over = "`reset` starts one"

    def expert_policy(self) -> Callable[[str], str]:
        """The scripted expert for the running game: from each observation to an answer in `action_format`.

        It reads the observation that a policy reads and the admissible actions.
        """
        expert: Expert | None = None

        def answer(observation: str) -> str:
            nonlocal expert
            if expert is None:
                expert = Expert()
                expert.reset(observation)
            return self._written(expert.act(observation, self.admissible_actions))

        return answer

    def random_policy(self, draw: random.Random) -> Callable[[str], str]:
        """Draws one of the admissible actions, in `action_format`."""
        return lambda observation: self._written(draw.choice(self.admissible_actions))

    def _written(self, command: str) -> str:
        return command if self.action_format == "plain" else f"<think></think><action>{command}</action>"

    def _render(self, observation: str) -> str:
        if not self.show_admissible:
            return observation
        return f"{observation}{ADMISSIBLE}{', '.join(self._listed())}"

    def _listed(self) -> list[str]:
        return [action for action in self._admissible if action != "help"]


@dataclass(frozen=True, eq=False)
class _Games:
    """The games of an environment: not parsed, and numbered."""

    entries: tuple[GameDescription | GameReference, ...]
    by_name: dict[str, GameDescription | GameReference]

    @classmethod
    def of(cls, entries: list[GameDescription | GameReference]) -> _Games:
        return cls(tuple(entries), {entry.name: entry for entry in entries})

    def find(self, game: str | SupportsIndex) -> GameDescription | GameReference:
        if isinstance(game, str):
            if game not in self.by_name:
                raise KeyError(f"No game {game!r} among the {len(self.entries)} games of this ALFWorldEnv.")
            return self.by_name[game]
        number = operator.index(game)
        if not 0 <= number < len(self.entries):
            raise IndexError(f"No game {number}: this ALFWorldEnv has {len(self.entries)} games, counted from 0.")
        return self.entries[number]


@lru_cache(maxsize=8)
def _generated_games(split: str, num_games: int, seed: int) -> _Games:
    return _Games.of([describe_game(split, index, seed) for index in range(num_games)])


@lru_cache(maxsize=8)
def _released_games(data: str, split: str, num_games: int | None, seed: int, on_broken_game: str) -> _Games:
    references = find_games(data, split)
    if on_broken_game == "skip":
        references = [reference for reference in references if _is_playable(reference)]
    if num_games is not None and num_games < len(references):
        numbers = sorted(random.Random(seed).sample(range(len(references)), num_games))
        references = [references[number] for number in numbers]
    return _Games.of(list(references))


def _is_playable(reference: GameReference) -> bool:
    try:
        reference.load()
    except ValueError as error:
        warnings.warn(f"Left out a broken ALFWorld game: {error}", stacklevel=2)
        return False
    return True


@lru_cache(maxsize=_CACHED_GAMES)
def _load(entry: GameDescription | GameReference) -> ALFWorldGame:
    if isinstance(entry, GameReference):
        return entry.load()
    return generate_game(entry.split, entry.index, entry.seed)


@lru_cache(maxsize=4096)
def _plan(entry: GameDescription | GameReference) -> str:
    return ", ".join(completing_commands(_load(entry)))


def _short_name(task_type: str) -> str:
    return _SHORT_NAMES.get(task_type, task_type)
