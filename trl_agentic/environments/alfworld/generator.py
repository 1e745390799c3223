"""Seeded ALFWorld games: rooms and tasks in the format of real game files, without a download.

A *scene* is a numbered room whose receptacles never change; a *game* puts objects and a goal into one. Scenes keep
ALFWorld's numbers (kitchens from 1, living rooms from 201, bedrooms from 301, bathrooms from 401). `valid_seen` holds
new games in the scenes of `train`, `valid_unseen` games in scenes that `train` never shows.

How many receptacles a room has, which of them open, which objects lie where and which goals occur is drawn as it is
in the released games (`rooms.py`). The output is what `alfworld-generate` writes, so upstream's engine plays it too. A
player who looks into the likeliest receptacles first needs at most 50 steps for any game.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from .description import TASK_NAMES, GameDescription, Receptacle, Scene, Thing
from .game import ALFWorldGame
from .problem import player_names, problem_text, walkthrough
from .rooms import goal_statistics, in_search_order, properties, read_data, room_statistics


T = TypeVar("T")

SPLIT_SIZES = {"train": 3553, "valid_seen": 140, "valid_unseen": 134}
"""Number of games of each split of the release; any index is valid in `generate_game`, these are only the default."""

_SCENES_PER_ROOM = 30
_UNSEEN_SCENES_PER_ROOM = 5
_SHARED_LOCATION_RATE = 0.08
_MAX_SEARCH_STEPS = 36
_LAMP = "DeskLamp"
_SENTENCES = {
    "Pick": ("put a {o} in {r}.", "put some {o} on {r}."),
    "Look": ("look at {o} under the {r}.", "examine the {o} with the {r}."),
    "Clean": ("put a clean {o} in {r}.", "clean some {o} and put it in {r}."),
    "Heat": ("put a hot {o} in {r}.", "heat some {o} and put it in {r}."),
    "Cool": ("put a cool {o} in {r}.", "cool some {o} and put it in {r}."),
    "Pick2": ("put two {o} in {r}.", "find two {o} and put them in {r}."),
}


class _Draw:
    """Draws that depend on `key` alone: not on the platform, the Python version or `PYTHONHASHSEED`."""

    def __init__(self, key: str) -> None:
        self.uniform = random.Random(int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big")).random

    def below(self, n: int) -> int:
        return int(self.uniform() * n)

    def choice(self, items: Sequence[T]) -> T:
        return items[self.below(len(items))]

    def weighted(self, weights: Mapping[T, float]) -> T:
        """A key, drawn in proportion to its weight. Needs a positive sum."""
        remaining = self.uniform() * sum(weights.values())
        for key, weight in weights.items():
            remaining -= weight
            if remaining < 0:
                return key
        return key


def scenes(split: str, room: str) -> range:
    """Scene numbers of a kind of room in a split: those of `valid_unseen` are in no other."""
    if split not in SPLIT_SIZES:
        raise ValueError(f"Unknown split {split!r}: expected one of {', '.join(SPLIT_SIZES)}.")
    first = room_statistics()[room]["first_scene"]
    last_seen = first + _SCENES_PER_ROOM - _UNSEEN_SCENES_PER_ROOM
    return range(last_seen, first + _SCENES_PER_ROOM) if split == "valid_unseen" else range(first, last_seen)


def describe_game(split: str, index: int, seed: int = 0, task_type: str | None = None) -> GameDescription:
    """Task, goal and scene of a generated game: what `generate_game` builds with the same arguments.

    Args:
        split (`str`): `"train"`, `"valid_seen"` or `"valid_unseen"`.
        index (`int`): number of the game, 0 or more. There is no last one.
        seed (`int`, *optional*, defaults to `0`): another seed gives other games in the same scenes.
        task_type (`str`, *optional*): a key of `TASK_NAMES`. Drawn as often as in the released games if absent.

    Returns:
        [`GameDescription`].

    Raises:
        ValueError: unknown split or task type, or a negative index.
    """
    if split not in SPLIT_SIZES:
        raise ValueError(f"Unknown split {split!r}: expected one of {', '.join(SPLIT_SIZES)}.")
    if index < 0:
        raise ValueError(f"A game's index must be 0 or more, got {index}.")
    draw = _Draw(f"goal/{split}/{seed}/{index}")
    drawn = draw.weighted(_task_weights())
    if task_type is None:
        task_type = drawn
    elif task_type not in TASK_NAMES:
        raise ValueError(f"Unknown task type {task_type!r}: expected one of {', '.join(TASK_NAMES)}.")
    while True:
        room = draw.weighted(_room_weights(task_type))
        scene_number = draw.choice(scenes(split, room))
        goals = _goals(room, scene_number, task_type)
        if goals:
            obj, receptacle = draw.weighted(goals)
            return GameDescription(split, index, seed, task_type, obj, receptacle, room, scene_number)


def generate_game(split: str, index: int, seed: int = 0, task_type: str | None = None) -> ALFWorldGame:
    """Builds a game. The same arguments give the same bytes everywhere.

    Args:
        split (`str`): `"train"`, `"valid_seen"` or `"valid_unseen"`.
        index (`int`): number of the game, 0 or more.
        seed (`int`, *optional*, defaults to `0`): another seed gives other games in the same scenes.
        task_type (`str`, *optional*): a key of `TASK_NAMES`. Drawn as often as in the released games if absent.

    Returns:
        [`ALFWorldGame`], named as [`GameDescription`] names it.

    Raises:
        ValueError: unknown split or task type, or a negative index.
    """
    description = describe_game(split, index, seed, task_type)
    return ALFWorldGame.from_dict(game_file(description), name=description.name)


def write_game(game: GameDescription, root: str | Path) -> Path:
    """Writes `<root>/json_2.1.1/<split>/<name>/game.tw-pddl` and returns its path.

    A `traj_data.json` with the task type is written next to it, without which upstream's `AlfredTWEnv` skips a folder.
    """
    folder = Path(root) / "json_2.1.1" / game.split / game.name
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "game.tw-pddl"
    path.write_text(json.dumps(game_file(game)), encoding="utf-8")
    parameters = {
        "object_target": game.object,
        "parent_target": "" if game.task_type == "Look" else game.receptacle,
        "toggle_target": game.receptacle if game.task_type == "Look" else "",
        "mrecep_target": "",
        "object_sliced": False,
    }
    trajectory = {
        "task_id": game.trial,
        "task_type": TASK_NAMES[game.task_type],
        "pddl_params": parameters,
        "scene": {"scene_num": game.scene, "floor_plan": f"FloorPlan{game.scene}"},
    }
    (folder / "traj_data.json").write_text(json.dumps(trajectory), encoding="utf-8")
    return path


def game_file(game: GameDescription) -> dict[str, Any]:
    """The content of the game's `game.tw-pddl`: domain, grammar, problem, `solvable` and a walkthrough."""
    scene = _scene(game.room, game.scene)
    draw = _Draw(f"objects/{game.split}/{game.seed}/{game.index}/{game.task_type}")
    things = _place_objects(game, scene, draw)
    while _search_steps(game, scene, things) > _MAX_SEARCH_STEPS:
        things = _place_objects(game, scene, draw)
    sentence = draw.choice(_SENTENCES[game.task_type]).format(o=game.object.lower(), r=game.receptacle.lower())
    return {
        "pddl_domain": read_data("alfred.pddl"),
        "grammar": read_data("alfred.twl2").replace("UNKNOWN GOAL.", sentence),
        "pddl_problem": problem_text(game, scene, things),
        "solvable": True,
        "walkthrough": walkthrough(game, scene, things),
    }


@cache
def _task_weights() -> dict[str, int]:
    return {short: sum(_room_weights(short).values()) for short in TASK_NAMES}


@cache
def _room_weights(task_type: str) -> dict[str, int]:
    rooms = goal_statistics()[TASK_NAMES[task_type]]
    return {room: sum(sum(goals.values()) for goals in objects.values()) for room, objects in rooms.items()}


@cache
def _goals(room: str, number: int, task_type: str) -> dict[tuple[str, str], int]:
    """Weights of the (object, receptacle) goals that a scene allows: its receptacles are there, and so is a source."""
    present = {r.type for r in _scene(room, number).receptacles}
    goals: dict[tuple[str, str], int] = {}
    for obj, receptacles in goal_statistics()[TASK_NAMES[task_type]][room].items():
        for receptacle, weight in receptacles.items():
            sources = _places(room, present, obj, without=receptacle)
            lamp_stands = task_type != "Look" or _places(room, present, _LAMP, without=None)
            if sources and lamp_stands and (task_type == "Look" or receptacle in present):
                goals[obj, receptacle] = weight
    return goals


def _places(room: str, present: set[str], obj: str, without: str | None) -> dict[str, float]:
    """Weights of the receptacle types of a scene that an object may be found in."""
    places = room_statistics()[room]["objects"][obj]["places"]
    return {place: weight for place, weight in places.items() if place in present and place != without}


@cache
def _scene(room: str, number: int) -> Scene:
    table = room_statistics()[room]
    draw = _Draw(f"scene/{number}")
    receptacles: list[Receptacle] = []
    used: set[tuple[int, int, int]] = set()
    location = ""
    for kind, spec in table["receptacles"].items():
        for copy in range(draw.choice(spec["counts"])):
            x, y, z = _free_position(draw, used)
            if copy == 0 or draw.uniform() >= _SHARED_LOCATION_RATE:
                location = _location(draw, {r.location for r in receptacles})
            stem, suffix = kind, ""
            if kind.endswith("Basin"):
                stem, suffix = kind.removesuffix("Basin"), f"_bar_{kind}"
            identifier = _identifier(stem, (x, y, z)) + suffix
            openable = draw.uniform() < spec["openable"]
            receptacles.append(Receptacle(identifier, kind, (x, y, z), location, openable, 0.5 + draw.uniform()))
    start = _location(draw, {r.location for r in receptacles})
    object_types = tuple(kind for kind, spec in table["objects"].items() if draw.uniform() < spec["scenes"])
    return Scene(tuple(receptacles), start, object_types)


def _free_position(draw: _Draw, used: set[tuple[int, int, int]]) -> tuple[int, int, int]:
    """A point in hundredths of a metre that nothing else stands on."""
    while True:
        position = (draw.below(800) - 400, draw.below(200) + 1, draw.below(800) - 400)
        if position not in used:
            used.add(position)
            return position


def _location(draw: _Draw, taken: set[str]) -> str:
    while True:
        x, z, heading, tilt = draw.below(33) - 16, draw.below(33) - 16, draw.below(4), draw.choice((15, 30, 45, 60))
        location = f"loc_bar_{_signed(x)}_bar_{_signed(z)}_bar_{heading}_bar_{tilt}"
        if location not in taken:
            return location


def _signed(value: int) -> str:
    return f"_minus_{-value}" if value < 0 else str(value)


def _identifier(kind: str, position: tuple[int, int, int]) -> str:
    parts = (f"_{'minus' if v < 0 else 'plus'}_{abs(v) // 100:02d}_dot_{abs(v) % 100:02d}" for v in position)
    return "_bar_".join((kind, *parts))


def _place_objects(game: GameDescription, scene: Scene, draw: _Draw) -> list[Thing]:
    """The objects of a game. Those that cannot be picked up belong to the scene, the same in all its games."""
    table = room_statistics()[game.room]["objects"]
    present = {r.type for r in scene.receptacles}
    fixed = _Draw(f"fixtures/{game.scene}")
    kinds = dict.fromkeys((*scene.object_types, game.object))
    if game.task_type == "Look":
        kinds[_LAMP] = None
    used = {r.position for r in scene.receptacles}
    things: list[Thing] = []
    for kind in sorted(kinds):
        source = draw if kind in properties()["pickupable"] or kind == _LAMP else fixed
        copies = 1 + source.weighted(dict(enumerate(table[kind]["copies"])))
        places = {place: w for place, w in table[kind]["places"].items() if place in present or place == "None"}
        if kind == game.object:
            # A goal must be reachable and, where nothing has to be done to the object first, not yet reached.
            keep_out = game.receptacle if game.task_type in ("Pick", "Pick2") else None
            places = _places(game.room, present, kind, without=keep_out)
            copies = max(copies, 2 if game.task_type == "Pick2" else 1)
        elif kind == _LAMP:
            places = _places(game.room, present, kind, without=None)
        for _ in range(copies):
            place = source.weighted(places) if places else "None"
            receptacle = None
            if place != "None":
                weights = {r: r.weight for r in scene.of_type(place)}
                receptacle = source.weighted(weights)
            location = receptacle.location if receptacle else source.choice(scene.receptacles).location
            things.append(Thing(_identifier(kind, _free_position(source, used)), kind, location, receptacle))
    return things


def _search_steps(game: GameDescription, scene: Scene, things: list[Thing]) -> int:
    """Steps that it takes to find what the task needs by looking into the likeliest receptacles first."""
    names = player_names([r.id for r in scene.receptacles])
    openable = {names[r.id]: r.openable for r in scene.receptacles}
    searched: set[str] = set()
    for kind, number in ((game.object, 2 if game.task_type == "Pick2" else 1), (_LAMP, game.task_type == "Look")):
        found = [names[t.receptacle.id] for t in things if t.kind == kind and t.receptacle]
        for place in in_search_order(list(openable), kind.lower()):
            if number <= 0:
                break
            if game.task_type in ("Pick", "Pick2") and place.rsplit(" ", 1)[0] == game.receptacle.lower():
                continue
            searched.add(place)
            number -= found.count(place)
    return sum(1 + openable[place] for place in searched)
