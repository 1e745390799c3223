"""A scripted player of ALFWorld, and demonstrations made with it.

The expert reads what a policy reads: observations and admissible actions. It looks into receptacles in a fixed order
(the likeliest types of receptacle first, then by number), so what it does next follows from the text so far.
"""

from __future__ import annotations

import random
import re
from collections.abc import Collection, Iterable
from typing import NamedTuple

from .engine import ALFWorldEngine
from .game import ALFWorldGame
from .rooms import in_search_order


_TASKS = (
    ("Look", re.compile(r"(?:look at|examine the) (?P<o>\w+) (?:under|with) the (?P<r>\w+lamp)\.?")),
    ("Clean", re.compile(r"(?:put a clean (?P<o>\w+) in|clean some (?P<o2>\w+) and put it in) (?P<r>\w+)\.?")),
    ("Heat", re.compile(r"(?:put a hot (?P<o>\w+) in|heat some (?P<o2>\w+) and put it in) (?P<r>\w+)\.?")),
    ("Cool", re.compile(r"(?:put a cool (?P<o>\w+) in|cool some (?P<o2>\w+) and put it in) (?P<r>\w+)\.?")),
    ("Pick2", re.compile(r"(?:put two (?P<o>\w+) in|find two (?P<o2>\w+) and put them in) (?P<r>\w+)\.?")),
    ("Pick", re.compile(r"put (?:a|an|some) (?P<o>\w+) (?:in|on) (?P<r>\w+)\.?")),
)
_TOOLS = {"Clean": ("sinkbasin", "bathtubbasin"), "Heat": ("microwave",), "Cool": ("fridge",)}

_COMPLETING = ("take", "clean", "heat", "cool", "use", "move")
_HASTY = (("take", "from"), ("move", "to"))

_SENTENCE = re.compile(r"Your task is to: (.+)")
_ROOM = re.compile(r"Looking quickly around you, you see (.+?)\.")
_ITEM = re.compile(r"\ban? (\w+ \d+)")
_CONTENTS = re.compile(r"(?:On the (\w+ \d+)|The (\w+ \d+) is open\. In it), you see (.+?)\.")
_TAKEN = re.compile(r"You pick up the (\w+ \d+) from")
_PUT = re.compile(r"You (?:move|put) the (\w+ \d+) (?:to|in/on) the (\w+ \d+)\.")
_PREPARED = re.compile(r"You (heat|cool|clean) the (\w+ \d+) using")
_ARRIVED = re.compile(r"You arrive at (\w+ \d+)\.")
_CARRYING = re.compile(r"You are carrying: an? (\w+ \d+)\.")


class Step(NamedTuple):
    """One step of a demonstration.

    Attributes:
        observation: what the engine said before the action.
        action: the command that was played.
        imitate: `False` for a wrong move, which nothing should be trained to repeat.
    """

    observation: str
    action: str
    imitate: bool


class Expert:
    """Plays ALFWorld from its text alone.

    ```python
    expert = Expert()
    state = engine.reset()
    expert.reset(state.observation)
    while not state.won:
        state = engine.step(expert.act(state.observation, state.admissible_actions))
    ```

    Whatever was played since the last call, by the expert or by someone else, is taken from the observation.
    """

    def reset(self, first_observation: str) -> None:
        """Reads the task and the room.

        Args:
            first_observation (`str`): first text of a game, with or without its banner.

        Raises:
            ValueError: the text has no task sentence of ALFWorld's templates, or lists no receptacles.
        """
        sentence = _SENTENCE.search(first_observation)
        self._task, self._object, self._place = _read_task(sentence.group(1).strip() if sentence else "")
        room = _ROOM.search(first_observation)
        self._receptacles = _ITEM.findall(room.group(1)) if room else []
        if not self._receptacles:
            raise ValueError(f"No receptacles in the first observation: {first_observation[:200]!r}.")
        self._contents: dict[str, list[str]] = {}
        self._looked_into: set[str] = set()
        self._refused: set[tuple[str, str]] = set()
        self._prepared: set[str] = set()
        self._held: str | None = None
        self._here = self._receptacles[0]

    def act(self, observation: str, admissible_actions: Collection[str]) -> str:
        """Reads one observation and answers with the next command.

        Args:
            observation (`str`): the engine's latest text; after `reset`, the first observation again.
            admissible_actions (`Collection[str]`): commands that the engine would accept now.

        Returns:
            `str`: one of `admissible_actions`.
        """
        self._read(observation)
        actions = set(admissible_actions)
        if self._held is None:
            command = self._fetch(actions)
        elif _kind(self._held) != self._object:
            command = self._put_away(self._held, actions)
        elif self._task == "Look":
            command = self._light(actions)
        else:
            command = self._prepare_and_place(self._held, actions)
        return command if command in actions else "look"

    def idle_action(self) -> str:
        """A command that changes nothing: looks at what is carried, or around where nothing is."""
        return "look" if self._held is None else "inventory"

    def hasty_actions(self) -> list[str]:
        """Commands of later steps of the task, for the receptacle that was reached last; most are refused now."""
        thing = self._held or f"{self._object} 1"
        tools = [r for kind in _TOOLS.get(self._task, ()) for r in self._of_kind(kind)]
        return [
            *(f"{command} {self._object} {number} {way} {self._here}" for number in (1, 2) for command, way in _HASTY),
            *(f"{self._task.lower()} {thing} with {tool}" for tool in tools),
            *(f"move {thing} to {place}" for place in self._of_kind(self._place)[:3]),
            f"go to {self._here}",
            f"open {self._here}",
        ]

    def _read(self, observation: str) -> None:
        if match := _ARRIVED.match(observation):
            self._here = match.group(1)
        if match := _TAKEN.search(observation):
            self._held = match.group(1)
            self._remove(self._held)
        elif match := _PUT.search(observation):
            thing, place = match.groups()
            self._held = None
            self._remove(thing)
            self._contents.setdefault(place, []).append(thing)
        elif match := _PREPARED.search(observation):
            verb, thing = match.groups()
            if verb == self._task.lower():
                self._prepared.add(thing)
            elif verb in ("heat", "cool") and self._task in ("Heat", "Cool"):
                self._prepared.discard(thing)
        elif match := _CARRYING.search(observation):
            self._held = match.group(1)
        elif match := _CONTENTS.search(observation):
            on, inside, listed = match.groups()
            self._contents[on or inside] = _ITEM.findall(listed)
            self._looked_into.add(on or inside)

    def _remove(self, thing: str) -> None:
        for listed in self._contents.values():
            if thing in listed:
                listed.remove(thing)

    def _fetch(self, actions: set[str]) -> str | None:
        """Takes the first object of the right kind that was seen, or looks for one."""
        done = self._destination() if self._task == "Pick2" else None
        for place, thing in self._seen(self._object):
            if place != done:
                return self._at(place, f"take {thing} from {place}", actions)
        return self._search(self._object, actions)

    def _light(self, actions: set[str]) -> str | None:
        for place, lamp in self._seen(self._place):
            return self._at(place, f"use {lamp}", actions)
        return self._search(self._place, actions)

    def _prepare_and_place(self, held: str, actions: set[str]) -> str | None:
        if self._task in _TOOLS and held not in self._prepared:
            tool = next(r for kind in _TOOLS[self._task] for r in self._of_kind(kind))
            return self._at(tool, f"{self._task.lower()} {held} with {tool}", actions)
        destination = self._destination()
        return self._at(destination, f"move {held} to {destination}", actions)

    def _put_away(self, held: str, actions: set[str]) -> str | None:
        """Gets rid of an object that is none of the task's: right here, or else in the likeliest place for it."""
        here = sorted(a for a in actions if a.startswith(f"move {held} to "))
        if here:
            return here[0]
        for place in in_search_order(self._receptacles, _kind(held)):
            if (held, place) not in self._refused:
                step = self._at(place, f"move {held} to {place}", actions)
                if step is not None:
                    return step
                self._refused.add((held, place))
        return None

    def _search(self, kind: str, actions: set[str]) -> str | None:
        """Goes to, or opens, the first receptacle in the search order whose contents are not known yet."""
        order = in_search_order(self._receptacles, kind)
        unknown = [r for r in order if r not in self._looked_into]
        if self._task in ("Pick", "Pick2"):
            # The goal is open, so what is wanted is hardly where it has to go: look there last.
            unknown.sort(key=lambda r: _kind(r) == self._place)
        if not unknown:
            self._looked_into.clear()
            unknown = order
        return self._at(unknown[0], f"examine {unknown[0]}", actions)

    def _destination(self) -> str:
        """Where the object belongs: the receptacle that already holds most of its kind, the lowest number if none."""
        places = self._of_kind(self._place)
        if not places:
            raise ValueError(f"The room has no {self._place!r} to put {self._object!r} in.")
        return max(places, key=lambda r: sum(_kind(thing) == self._object for thing in self._contents.get(r, ())))

    def _of_kind(self, kind: str) -> list[str]:
        return sorted((r for r in self._receptacles if _kind(r) == kind), key=_number)

    def _seen(self, kind: str) -> Iterable[tuple[str, str]]:
        return ((place, thing) for place, listed in self._contents.items() for thing in listed if _kind(thing) == kind)

    @staticmethod
    def _at(receptacle: str, command: str, actions: set[str]) -> str | None:
        """`command` if it is possible here, else the step towards it: going to the receptacle or opening it."""
        steps = (f"go to {receptacle}", f"open {receptacle}", command)
        if command.startswith("examine "):
            return next((step for step in steps if step in actions), None)
        return next((step for step in (command, *steps) if step in actions), None)


def _read_task(sentence: str) -> tuple[str, str, str]:
    for task, pattern in _TASKS:
        if match := pattern.fullmatch(sentence):
            groups = match.groupdict()
            return task, groups["o"] or groups["o2"], groups["r"]
    raise ValueError(f"Not a task of ALFWorld's templates: {sentence!r}.")


def _kind(name: str) -> str:
    return name.rsplit(" ", 1)[0]


def _number(name: str) -> int:
    return int(name.rsplit(" ", 1)[1])


def demonstration(
    game: ALFWorldGame, rng: random.Random, noise: float = 0.1, idle: float = 0.0, max_steps: int = 50
) -> list[Step]:
    """Plays a game with the expert, with wrong moves in between, as it is or as a player who hesitates.

    Three in four wrong moves are commands that would be right later in the game and are refused now, as a policy gives
    them that takes what it has not found; the others are admissible actions drawn at random. Half of the refused moves
    are given once more. What the expert does next is never the refused command: after `Nothing happens.` there is
    always something else to do.

    Args:
        game ([`ALFWorldGame`]): the game.
        rng (`random.Random`): source of the wrong moves.
        noise (`float`, *optional*, defaults to `0.1`): probability that a wrong move comes before a step of the
        expert.
            0 gives the expert's play.
        idle (`float`, *optional*, defaults to `0.0`): probability that the player only looks
        ([`Expert.idle_action`]) where the expert would act. These moves are part of the play, to be imitated with it.
        max_steps (`int`, *optional*, defaults to `50`): number of steps after which the game is given up.

    Returns:
        `list[Step]`: the steps up to the win, or `max_steps` of them. The engine's text after the last is not in it.

    Raises:
        ValueError: `noise` or `idle` is not a probability below 1, or the game's task is none of ALFWorld's templates.
    """
    for name, value in (("noise", noise), ("idle", idle)):
        if not 0 <= value < 1:
            raise ValueError(f"{name} must be a probability below 1, got {value}.")
    engine, expert = ALFWorldEngine(game), Expert()
    state = engine.reset()
    expert.reset(state.observation)
    steps: list[Step] = []
    refused: str | None = None  # the wrong move that was just refused
    while not state.won and len(steps) < max_steps:
        action, imitate = expert.act(state.observation, state.admissible_actions), True
        if refused is not None and rng.random() < 0.5:
            action, imitate = refused, False
        elif rng.random() < noise:
            action, imitate = _wrong_move(action, expert, state.admissible_actions, rng), False
        elif idle and rng.random() < idle:
            action = expert.idle_action()
        refused = action if not imitate and action not in state.admissible_actions else None
        steps.append(Step(state.observation, action, imitate))
        state = engine.step(action)
    return steps


def completing_commands(game: ALFWorldGame) -> list[str]:
    """What completes a game, without what finds the things for it: those of the expert's commands that take, clean,
    heat, cool, use or move something.

    Args:
        game ([`ALFWorldGame`]): the game.

    Returns:
        `list[str]`: such as `take mug 1 from shelf 2`, `heat mug 1 with microwave 1`, `move mug 1 to desk 1`.

    Raises:
        ValueError: the game's task is none of ALFWorld's templates.
    """
    steps = demonstration(game, random.Random(0), noise=0.0)
    return [step.action for step in steps if step.action.split()[0] in _COMPLETING]


def _wrong_move(expert_action: str, expert: Expert, admissible: Collection[str], rng: random.Random) -> str:
    """An action of a later step, which the engine refuses; one in four is another admissible one."""
    refused = [action for action in expert.hasty_actions() if action not in admissible]
    others = sorted(set(admissible) - {expert_action, "help"})
    return rng.choice(others if rng.random() < 0.25 or not refused else refused)
