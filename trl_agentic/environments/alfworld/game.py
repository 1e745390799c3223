"""ALFWorld games: what a `game.tw-pddl` file says, parsed once and shared by all who play it."""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .goal import Goal
from .pddl import Problem, parse_problem, words_of
from .rules import Wording, read_domain, read_grammar


TASK_TYPES = (
    "pick_and_place_simple",
    "look_at_obj_in_light",
    "pick_clean_then_place_in_recep",
    "pick_heat_then_place_in_recep",
    "pick_cool_then_place_in_recep",
    "pick_two_obj_and_place",
)
"""The six task types, as the folders of game files are named."""

FLUENTS = (
    "atlocation",
    "inreceptacle",
    "objectatlocation",
    "opened",
    "holds",
    "holdsany",
    "isclean",
    "ishot",
    "iscool",
    "ison",
    "istoggled",
    "issliced",
    "checked",
)
"""The predicates that actions change. All others are as in the game file for the whole episode."""

_KEYS = {"pddl_domain": str, "grammar": str, "pddl_problem": str}
_KNIFE_TYPES = ("knifetype", "butterknifetype")


@dataclass(frozen=True, slots=True)
class World:
    """What never changes in a game, arranged for the engine. Entities are named by their PDDL ids, lower-cased.

    Attributes:
        agent (`str`): the agent.
        names (`dict[str, str]`): id to the name that the player reads, such as `mug 1`.
        receptacles_at (`dict[str, list[str]]`): location to its receptacles, by id.
        goto (`dict[str, tuple[str, str]]`): command to receptacle and location, in the order of the commands.
        openable, pickupable, toggleable, sliceable, receptacle_objects, knives (`frozenset[str]`): ids.
        treatable (`dict[str, frozenset[str]]`): `clean`, `heat` and `cool` to the objects that can be.
        appliances (`dict[str, frozenset[str]]`): `clean`, `heat` and `cool` to the receptacles that do it.
        accepts (`dict[str, frozenset[str]]`): receptacle to the object types it takes.
        object_types (`dict[str, frozenset[str]]`): object to its types.
        contents (`dict[str, list[str]]`): object to the objects inside of it.
        initial (`dict[str, frozenset[tuple[str, ...]]]`): the atoms of `FLUENTS` that are true at the start.
        goal ([`Goal`]): when the game is won.
        wording ([`Wording`]): how the game words commands and answers.
    """

    agent: str
    names: dict[str, str]
    receptacles_at: dict[str, list[str]]
    goto: dict[str, tuple[str, str]]
    openable: frozenset[str]
    pickupable: frozenset[str]
    toggleable: frozenset[str]
    sliceable: frozenset[str]
    receptacle_objects: frozenset[str]
    knives: frozenset[str]
    treatable: dict[str, frozenset[str]]
    appliances: dict[str, frozenset[str]]
    accepts: dict[str, frozenset[str]]
    object_types: dict[str, frozenset[str]]
    contents: dict[str, list[str]]
    initial: dict[str, frozenset[tuple[str, ...]]]
    goal: Goal
    wording: Wording


@dataclass(frozen=True, slots=True, eq=False)
class ALFWorldGame:
    """A parsed game. Immutable: any number of engines may play it at the same time.

    Attributes:
        name (`str`): `<task folder>/<trial folder>`, or what the caller named it.
        task (`str`): the task sentence, such as `put some mug on desk.`
        task_type (`str`): one of `TASK_TYPES`.
        walkthrough (`tuple[str, ...]`): a planner's commands that win the game; empty if the file has none.
        solvable (`bool`): what the file says; `True` if it says nothing.
        path (`str`, *optional*): where the game was read from.
        world ([`World`]): the parsed problem.
    """

    name: str
    task: str
    task_type: str
    walkthrough: tuple[str, ...]
    solvable: bool
    path: str | None
    world: World = field(repr=False)
    _source: bytes = field(repr=False)

    @classmethod
    def from_file(cls, path: str | os.PathLike[str]) -> ALFWorldGame:
        """Reads a `game.tw-pddl` file.

        Args:
            path (`str` or `os.PathLike`): the file. The name of its grandparent folder says the task type.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the file is broken, or of a kind that the engine does not play. The message names the file.
        """
        path = Path(path)
        parents = path.absolute().parent.parts[-2:]
        return cls.from_bytes(path.read_bytes(), name="/".join(parents), path=str(path))

    @classmethod
    def from_bytes(cls, data: bytes, name: str, path: str | None = None) -> ALFWorldGame:
        """Reads the bytes of a `game.tw-pddl` file. Raises as [`ALFWorldGame.from_file`]."""
        try:
            content = json.loads(data)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path or name} is not an ALFWorld game: it is not JSON: {error}") from error
        return cls._build(content, data, name, path)

    @classmethod
    def from_dict(cls, content: Mapping[str, Any], name: str, path: str | None = None) -> ALFWorldGame:
        """Takes a game that is not in a file.

        Args:
            content (`Mapping`): the keys of a game file: `pddl_domain`, `grammar`, `pddl_problem` and, *optional*,
                `solvable` and `walkthrough`.
            name (`str`): name of the game. If it starts with `<task type>-`, that is the task type.
            path (`str`, *optional*): where the game came from, for messages.

        Raises:
            ValueError: the game is broken, or of a kind that the engine does not play.
        """
        return cls._build(content, json.dumps(dict(content)).encode(), name, path)

    @classmethod
    def _build(cls, content: Any, data: bytes, name: str, path: str | None) -> ALFWorldGame:
        try:
            _check_content(content)
            domain = read_domain(content["pddl_domain"])
            task, wording = read_grammar(content["grammar"])
            if domain.has_help and wording.help is None:
                raise ValueError("the PDDL domain has a 'help' action, the grammar has none")
            if not domain.has_help:
                wording = Wording(wording.put_command, wording.put_feedback, wording.arrive_at_location, None)
            problem = parse_problem(content["pddl_problem"])
            _check_init(problem, domain.predicates, domain.types)
            world = _build_world(problem, domain.predicates, domain.sink_types, wording)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path or name} is not an ALFWorld game: {error}.") from error
        return cls(
            name=name,
            task=task,
            task_type=_task_type(name, problem.goal),
            walkthrough=tuple(content.get("walkthrough") or ()),
            solvable=bool(content.get("solvable", True)),
            path=path,
            world=world,
            _source=zlib.compress(data, 1),
        )

    def to_dict(self) -> dict[str, Any]:
        """The content of a game file, as it was read."""
        return json.loads(zlib.decompress(self._source))

    def to_file(self, path: str | os.PathLike[str]) -> None:
        """Writes a `game.tw-pddl` file. Its folder must exist."""
        Path(path).write_bytes(zlib.decompress(self._source))


def _check_content(content: Any) -> None:
    if not isinstance(content, Mapping):
        raise ValueError(f"expected a JSON object, got {type(content).__name__}")
    for key, kind in _KEYS.items():
        if not isinstance(content.get(key), kind):
            raise ValueError(f"'{key}' is missing or not a {kind.__name__}")
    walkthrough = content.get("walkthrough")
    if walkthrough is not None and not (
        isinstance(walkthrough, list | tuple) and all(isinstance(command, str) for command in walkthrough)
    ):
        raise ValueError("'walkthrough' is not a list of strings")


def _check_init(problem: Problem, predicates: Mapping[str, int], types: Collection[str]) -> None:
    for predicate, rows in problem.init.items():
        if predicate not in predicates:
            raise ValueError(f":init uses the predicate {predicate!r:.80}, which the domain does not declare")
        for row in rows:
            if len(row) != predicates[predicate]:
                raise ValueError(f":init gives '{predicate}' {len(row)} arguments instead of {predicates[predicate]}")
    for name, kind in problem.objects.items():
        if kind not in types:
            raise ValueError(f"{name!r:.80} has the type {kind!r:.80}, which the domain does not declare")


def _build_world(
    problem: Problem, predicates: Mapping[str, int], sink_types: Collection[str], wording: Wording
) -> World:
    init = problem.init

    def rows(predicate: str) -> Collection[tuple[str, ...]]:
        return init.get(predicate, ())

    def those(predicate: str) -> frozenset[str]:
        return frozenset(row[0] for row in rows(predicate))

    def of_type(predicate: str, kinds: Collection[str]) -> frozenset[str]:
        return frozenset(row[0] for row in rows(predicate) if row[1] in kinds)

    agent = _only_agent(problem)
    names = _names({argument for atoms in init.values() for atom in atoms for argument in atom})
    receptacles_at: dict[str, list[str]] = {}
    goto = {}
    for receptacle, location in sorted(rows("receptacleatlocation")):
        receptacles_at.setdefault(location, []).append(receptacle)
        goto[f"go to {names[receptacle]}"] = (receptacle, location)
    if len(goto) != len(rows("receptacleatlocation")):
        raise ValueError("a receptacle is in more than one location")

    accepts = _grouped(rows("cancontain"))
    contents: dict[str, list[str]] = {}
    for inner, outer in sorted(rows("inreceptacleobject")):
        contents.setdefault(outer, []).append(inner)
    static = {predicate: init.get(predicate, set()) for predicate in predicates if predicate not in FLUENTS}
    return World(
        agent=agent,
        names=names,
        receptacles_at=receptacles_at,
        goto=dict(sorted(goto.items())),
        openable=those("openable"),
        pickupable=those("pickupable"),
        toggleable=those("toggleable"),
        sliceable=those("sliceable"),
        receptacle_objects=those("isreceptacleobject"),
        knives=of_type("objecttype", _KNIFE_TYPES),
        treatable={"clean": those("cleanable"), "heat": those("heatable"), "cool": those("coolable")},
        appliances={
            "clean": of_type("receptacletype", sink_types),
            "heat": of_type("receptacletype", ("microwavetype",)),
            "cool": of_type("receptacletype", ("fridgetype",)),
        },
        accepts={
            receptacle: frozenset().union(*(accepts.get(kind, ()) for kind in kinds))
            for receptacle, kinds in _grouped(rows("receptacletype")).items()
        },
        object_types=_grouped(rows("objecttype")),
        contents=contents,
        initial={predicate: frozenset(rows(predicate)) for predicate in FLUENTS},
        goal=Goal(problem.goal, problem.objects, predicates, static),
        wording=wording,
    )


def _only_agent(problem: Problem) -> str:
    """Name of the agent.

    Raises:
        ValueError: there is not exactly one, in one location.
    """
    agents = [name for name, kind in problem.objects.items() if kind == "agent"]
    if len(agents) != 1:
        raise ValueError(f"expected one agent, got {len(agents)}")
    locations = problem.init.get("atlocation", ())
    if len(locations) != 1:
        raise ValueError(f"the agent must be in one location at the start, it is in {len(locations)}")
    return agents[0]


def _grouped(rows: Collection[tuple[str, ...]]) -> dict[str, frozenset[str]]:
    groups: dict[str, set[str]] = {}
    for key, value in rows:
        groups.setdefault(key, set()).add(value)
    return {key: frozenset(values) for key, values in groups.items()}


def _names(ids: Collection[str]) -> dict[str, str]:
    """What ids are called: the word before `_bar_`, with `basin` behind it where the id speaks of one, and a number.

    Numbers are handed out in the order of the ids, from the number of ids with that word down to 1.
    """
    words = {}
    for identifier in ids:
        word, bar, _ = identifier.partition("_bar_")
        if bar:
            words[identifier] = word + "basin" if "basin" in identifier else word
    remaining: dict[str, int] = {}
    for word in words.values():
        remaining[word] = remaining.get(word, 0) + 1
    names = {}
    for identifier in sorted(ids):
        if identifier in words:
            word = words[identifier]
            names[identifier] = f"{word} {remaining[word]}"
            remaining[word] -= 1
        else:
            names[identifier] = f"{identifier} "  # as upstream names types and the like; no command can reach it
    return names


def _task_type(name: str, goal: list[Any]) -> str:
    """The task type: from the folder's name or, if that does not tell, from the words of the goal."""
    prefix = name.split("-", 1)[0]
    if prefix in TASK_TYPES:
        return prefix
    words = list(words_of(goal))
    for predicate, task_type in (
        ("istoggled", "look_at_obj_in_light"),
        ("isclean", "pick_clean_then_place_in_recep"),
        ("ishot", "pick_heat_then_place_in_recep"),
        ("iscool", "pick_cool_then_place_in_recep"),
    ):
        if predicate in words:
            return task_type
    return "pick_two_obj_and_place" if words.count("inreceptacle") > 1 else "pick_and_place_simple"
