"""PDDL problem and walkthrough of a generated game."""

from __future__ import annotations

from .description import GameDescription, Receptacle, Scene, Thing
from .rooms import containable, properties


_TOOLS = {"Clean": "SinkBasin", "Heat": "Microwave", "Cool": "Fridge"}
_ABILITIES = {"Clean": "cleanable", "Heat": "heatable", "Cool": "coolable"}
_STATES = {"Clean": "isClean", "Heat": "isHot", "Cool": "isCool"}


def problem_text(game: GameDescription, scene: Scene, things: list[Thing]) -> str:
    """The PDDL problem of a game."""
    object_types = sorted({thing.kind for thing in things})
    receptacle_types = sorted({r.type for r in scene.receptacles})
    locations = sorted({r.location for r in scene.receptacles} | {scene.start})
    objects = ["agent1 - agent"]
    objects += [f"{kind}Type - otype" for kind in object_types]
    objects += [f"{kind}Type - rtype" for kind in receptacle_types]
    objects += [f"{thing.id} - object" for thing in things]
    objects += [f"{r.id} - receptacle" for r in scene.receptacles]
    objects += [f"{location} - location" for location in locations]

    facts = [f"receptacleType {r.id} {r.type}Type" for r in scene.receptacles]
    facts += [f"objectType {thing.id} {thing.kind}Type" for thing in things]
    for receptacle_type in receptacle_types:
        allowed = containable()[receptacle_type]
        facts += [f"canContain {receptacle_type}Type {kind}Type" for kind in object_types if kind in allowed]
    for name, kinds in properties().items():
        facts += [f"{name} {thing.id}" for thing in things if thing.kind in kinds]
    facts += [f"openable {r.id}" for r in scene.receptacles if r.openable]
    facts.append(f"atLocation agent1 {scene.start}")
    facts += [f"inReceptacle {thing.id} {thing.receptacle.id}" for thing in things if thing.receptacle]
    facts += [f"receptacleAtLocation {r.id} {r.location}" for r in scene.receptacles]
    facts += [f"objectAtLocation {thing.id} {thing.location}" for thing in things]

    return (
        f"(define (problem plan_{game.trial})\n(:domain alfred)\n(:objects\n"
        + "\n".join(f"    {line}" for line in objects)
        + "\n)\n(:init\n"
        + "\n".join(f"    ({line})" for line in facts)
        + f"\n)\n(:goal\n{_goal(game)}\n)\n)\n"
    )


def _goal(game: GameDescription) -> str:
    target, place = f"{game.object}Type", f"{game.receptacle}Type"
    if game.task_type == "Look":
        return (
            "    (and\n        (exists (?ot - object ?r - receptacle ?a - agent ?l - location)\n"
            f"            (and (objectType ?ot {place}) (toggleable ?ot) (isToggled ?ot) (receptacleAtLocation ?r ?l)"
            " (atLocation ?a ?l) (inReceptacle ?ot ?r)))\n"
            "        (exists (?o - object ?a - agent)\n"
            f"            (and (objectType ?o {target}) (holds ?a ?o))))"
        )
    if game.task_type == "Pick2":
        return (
            "    (and\n        (exists (?r - receptacle)\n            (exists (?o1 - object)\n"
            f"                (and (objectType ?o1 {target}) (receptacleType ?r {place}) (inReceptacle ?o1 ?r)\n"
            "                    (exists (?o2 - object)\n"
            f"                        (and (not (= ?o1 ?o2)) (objectType ?o2 {target}) (receptacleType ?r {place})"
            " (inReceptacle ?o2 ?r)))))))"
        )
    before, after = "", ""
    if game.task_type in _STATES:
        before, after = f"({_ABILITIES[game.task_type]} ?o) ", f" ({_STATES[game.task_type]} ?o)"
    return (
        "    (and\n        (exists (?r - receptacle)\n            (exists (?o - object)\n"
        f"                (and {before}(inReceptacle ?o ?r) (objectType ?o {target})"
        f" (receptacleType ?r {place}){after}))))"
    )


def walkthrough(game: GameDescription, scene: Scene, things: list[Thing]) -> list[str]:
    """A short solution, made with knowledge of where everything is."""
    names = player_names([thing.id for thing in things] + [r.id for r in scene.receptacles])
    commands: list[str] = []
    opened: set[str] = set()

    def visit(receptacle: Receptacle) -> None:
        commands.append(f"go to {names[receptacle.id]}")
        if receptacle.openable and receptacle.id not in opened:
            opened.add(receptacle.id)
            commands.append(f"open {names[receptacle.id]}")

    found = [(names[t.id], t.receptacle) for t in things if t.kind == game.object and t.receptacle]
    for name, source in found[: 2 if game.task_type == "Pick2" else 1]:
        visit(source)
        commands.append(f"take {name} from {names[source.id]}")
        if game.task_type == "Look":
            lamp, stand = next((t.id, t.receptacle) for t in things if t.kind == game.receptacle and t.receptacle)
            if stand.location != source.location:
                commands.append(f"go to {names[stand.id]}")
            commands.append(f"use {names[lamp]}")
            break
        if game.task_type in _TOOLS:
            tool = scene.of_type(_TOOLS[game.task_type])[0]
            if tool.location != source.location:
                commands.append(f"go to {names[tool.id]}")
            commands.append(f"{game.task_type.lower()} {name} with {names[tool.id]}")
        target = scene.of_type(game.receptacle)[0]
        visit(target)
        commands.append(f"move {name} to {names[target.id]}")
    return commands


def player_names(identifiers: list[str]) -> dict[str, str]:
    """The names that players read: ids in sorted order get the numbers of their kind from the highest down."""
    stems = {i: i.split("_bar_", 1)[0].lower() + ("basin" if "basin" in i.lower() else "") for i in identifiers}
    remaining: dict[str, int] = {}
    for stem in stems.values():
        remaining[stem] = remaining.get(stem, 0) + 1
    names: dict[str, str] = {}
    for identifier in sorted(identifiers, key=str.lower):
        stem = stems[identifier]
        names[identifier] = f"{stem} {remaining[stem]}"
        remaining[stem] -= 1
    return names
