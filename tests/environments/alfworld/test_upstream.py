"""The engine against the upstream engine, live: same commands, same answers."""

from __future__ import annotations

import importlib.util
import random
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.environments.alfworld.test_engine import ODD_COMMANDS, PICK, older_wording, small_content
from trl_agentic.environments.alfworld import ALFWorldEngine, ALFWorldGame, ALFWorldState, find_games
from trl_agentic.environments.alfworld.game import TASK_TYPES
from trl_agentic.environments.alfworld.upstream import UpstreamALFWorldEngine


MISSING = [name for name in ("alfworld", "textworld", "fast_downward") if importlib.util.find_spec(name) is None]


def needs_upstream(test: Any) -> Any:
    reason = f"needs pip install trl-agentic[alfworld]: no {', '.join(MISSING)}"
    marks = [
        pytest.mark.upstream,
        pytest.mark.skipif(bool(MISSING), reason=reason),
        pytest.mark.filterwarnings("default"),  # the upstream packages have warnings of their own
    ]
    for mark in marks:
        test = mark(test)
    return test


def parity(game: ALFWorldGame, plan: Sequence[str], seed: int, steps: int) -> list[ALFWorldState]:
    """Plays `plan`, then random and broken commands, on both engines; returns the states they agreed on."""
    draw = random.Random(seed)
    ours, theirs = ALFWorldEngine(game), UpstreamALFWorldEngine(game)
    history = ["<reset>"]
    states = [ours.reset()]
    try:
        assert (history, states[0]) == (history, theirs.reset())
        for i in range(steps):
            commands = states[-1].admissible_actions
            changing = [
                command for command in commands if command.split()[0] not in ("go", "help", "look", "inventory")
            ]
            kind = draw.random()
            if i < len(plan):
                command = plan[i]
            elif kind < 0.1:
                command = draw.choice(ODD_COMMANDS)
            elif kind < 0.2:
                command = "look"
            elif kind < 0.75 and changing:
                command = draw.choice(changing)
            else:
                command = draw.choice(commands)
            history.append(command)
            states.append(ours.step(command))
            assert (history, states[-1]) == (history, theirs.step(command))
    finally:
        theirs.close()
    return states


TO_TABLE = ["go to diningtable 1", "take apple 1 from diningtable 1"]
TO_DRAWER = ["go to drawer 1", "open drawer 1", "move apple 1 to drawer 1", "look", "take apple 1 from drawer 1"]
CLEAN = ["go to sinkbasin 1", "clean apple 1 with sinkbasin 1", "examine apple 1"]
HEAT = ["go to microwave 1", "heat apple 1 with microwave 1", "examine apple 1"]
COOL = ["go to fridge 1", "cool apple 1 with fridge 1", "examine apple 1"]
BACK = ["go to diningtable 1", "move apple 1 to diningtable 1"]
SLICE = ["take knife 1 from diningtable 1", "slice apple 1 with knife 1", "move knife 1 to diningtable 1"]
AGAIN = ["take apple 1 from diningtable 1", "examine apple 1"]
LAMP = ["use desklamp 1", "go to drawer 2", "open drawer 2", "take pen 1 from drawer 2", "go to diningtable 1"]
NEIGHBOURS = ["open drawer 2", "take pen 1 from drawer 2", "open drawer 1", "move pen 1 to drawer 1", "look"]
NEIGHBOURS += ["take bowl 1 from drawer 2", "examine bowl 1", "move bowl 1 to drawer 1", "look", "examine drawer 1"]
NEIGHBOURS += [
    "take pen 1 from drawer 1",
    "move pen 1 to drawer 2",
    "look",
    "go to fridge 1",
    "go to drawer 1",
    "look",
]

# name: (content of the game file, commands that win it and show its texts, whether they do win it)
VARIANTS: dict[str, tuple[dict[str, Any], list[str], bool]] = {
    "pick": (small_content(), [*TO_TABLE, *TO_DRAWER], True),
    "older wording": (
        older_wording(small_content()),
        [
            *TO_TABLE,
            "go to drawer 1",
            "open drawer 1",
            "put apple 1 in/on drawer 1",
            "move apple 1 to drawer 1",
            "look",
        ],
        True,
    ),
    "neighbours": (small_content(), ["go to drawer 2", *NEIGHBOURS], False),
    "starts at the drawers": (small_content(start="loc_bar_1"), NEIGHBOURS, False),
    "starts with a cup": (
        small_content(
            objects="Cup_bar_1 - object",
            more="(objectType Cup_bar_1 BowlType) (pickupable Cup_bar_1) (holds agent1 Cup_bar_1) (holdsAny agent1)",
        ),
        ["inventory", "examine cup 1", "go to diningtable 1", "move cup 1 to diningtable 1", "inventory"],
        False,
    ),
    "all states": (
        small_content(goal=PICK.format("(isSliced ?o) (isCool ?o) (isClean ?o)")),
        [*TO_TABLE, *CLEAN, *HEAT, *COOL, *BACK, *SLICE, *AGAIN, *HEAT, *BACK, *AGAIN, *COOL, *BACK],
        True,
    ),
    "sliced only": (small_content(), ["go to diningtable 1", *SLICE, *AGAIN, *HEAT, *COOL], False),
    "clean": (
        small_content(goal=PICK.format("(isClean ?o) (receptacleType ?r DiningTableType)")),
        [*TO_TABLE, *CLEAN, *BACK],
        True,
    ),
    "heated": (small_content(goal=PICK.format("(isHot ?o)")), [*TO_TABLE, *HEAT, *BACK], True),
    "two in one": (
        small_content(
            goal=PICK.format(
                "(exists (?p - object) (and (not (= ?o ?p)) (inReceptacle ?p ?r) (objectType ?p PenType)))"
            )
        ),
        ["go to drawer 2", *NEIGHBOURS[:5], *TO_TABLE, "go to drawer 1", "move apple 1 to drawer 1"],
        True,
    ),
    "lamp": (
        small_content(
            goal="""(and (exists (?l - object ?r - receptacle ?a - agent ?at - location)
                (and (objectType ?l DeskLampType) (toggleable ?l) (isToggled ?l) (receptacleAtLocation ?r ?at)
                (atLocation ?a ?at) (inReceptacle ?l ?r)))
                (exists (?o - object ?a - agent) (and (objectType ?o PenType) (holds ?a ?o))))"""
        ),
        ["go to diningtable 1", *LAMP],
        True,
    ),
    "or": (
        small_content(goal="(or (opened Fridge_bar_1) (exists (?a - agent) (holdsAny ?a)))"),
        ["go to fridge 1", "open fridge 1", "use phone 1", "take phone 1 from fridge 1", "examine phone 1"],
        True,
    ),
    "all closed, or light": (
        small_content(
            goal="""(and (checked Fridge_bar_1)
                (forall (?r - receptacle) (or (not (opened ?r)) (isOn DeskLamp_bar_1))))"""
        ),
        [
            "go to fridge 1",
            "open fridge 1",
            "close fridge 1",
            "open fridge 1",
            "go to diningtable 1",
            "use desklamp 1",
        ],
        True,
    ),
}


@needs_upstream
@pytest.mark.parametrize("variant", VARIANTS)
def test_made_up_kitchen(variant: str):
    content, plan, wins = VARIANTS[variant]
    game = ALFWorldGame.from_dict(content, name=variant)
    states = parity(game, plan, seed=1, steps=len(plan) + 60)
    assert any(state.won for state in states[: len(plan) + 1]) == wins


@needs_upstream
@pytest.mark.parametrize("task_type", TASK_TYPES)
def test_released_games(shared_dir: Path, task_type: str):
    archive = shared_dir / "data" / "alfworld" / "alfworld_games.tar.xz"
    if not archive.exists():
        pytest.skip("needs ../shared/data/alfworld/alfworld_games.tar.xz")
    reference = next(found for found in find_games(archive, "valid_seen") if found.task_type == task_type)
    game = reference.load()
    states = parity(game, game.walkthrough, seed=0, steps=60)
    assert states[len(game.walkthrough)].won


@needs_upstream
def test_threads_take_turns():
    """Its parsers are shared by all games of a process."""
    game, output = ALFWorldGame.from_dict(small_content(), name="small"), sys.stdout
    with ThreadPoolExecutor(4) as threads:
        played = list(threads.map(lambda seed: parity(game, [], seed, steps=15), range(8)))
    assert all(len(states) == 16 for states in played)
    assert sys.stdout is output


@needs_upstream
def test_the_command_line_is_left_alone():
    arguments = list(sys.argv)
    engine = UpstreamALFWorldEngine(ALFWorldGame.from_dict(small_content(), name="small"))
    engine.reset()
    engine.close()
    assert sys.argv == arguments


def test_a_missing_backend_names_the_extra(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "textworld", None)
    with pytest.raises(ImportError, match=r"pip install trl-agentic\[alfworld\]"):
        UpstreamALFWorldEngine(ALFWorldGame.from_dict(small_content(), name="small"))
