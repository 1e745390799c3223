"""The ALFWorld text game in plain Python: same texts, same admissible actions, same end as the TextWorld engine."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from .game import ALFWorldGame


NOTHING_HAPPENS = "Nothing happens."

Action = tuple[str, ...]
"""A verb and the ids of what it is done to."""


@dataclass(frozen=True, slots=True)
class ALFWorldState:
    """State that the player sees.

    Attributes:
        observation (`str`): the answer to the last command, or the first description of the room.
        admissible_actions (`list[str]`): all commands that would do something now, sorted.
        won (`bool`): whether the goal is true now. A later command may make it false again.
    """

    observation: str
    admissible_actions: list[str]
    won: bool


class ALFWorldEngine:
    """Plays one game.

    Engines of one game share what they read from it; the state of one is a few kilobytes. An engine can be pickled in
    the middle of an episode. One engine must not be used by two threads at a time; different engines may.

    Args:
        game ([`ALFWorldGame`]): the game to play.

    Example:

    ```python
    >>> engine = ALFWorldEngine(ALFWorldGame.from_file("game.tw-pddl"))
    >>> engine.reset().observation
    '-= Welcome to TextWorld, ALFRED! =-\\n\\nYou are in the middle of a room. ...'
    >>> engine.step("go to desk 1").observation
    'You arrive at desk 1. On the desk 1, you see a mug 1.'
    ```
    """

    def __init__(self, game: ALFWorldGame) -> None:
        self.game = game
        self._started = False

    def reset(self) -> ALFWorldState:
        """Puts everything back and describes the room."""
        world = self.game.world
        self._facts: dict[str, set[tuple[str, ...]]] = {name: set(rows) for name, rows in world.initial.items()}
        self._removed: set[tuple[str, str]] = set()  # (object, receptacle) that it was taken from and not put back to
        ((_, self._location),) = self._facts["atlocation"]
        self._started = True
        room = self._look(receptacle for receptacle, _ in world.goto.values())
        self._won = world.goal.holds(self._facts)
        self._local = self._find_local_actions()
        return self._state(f"-= Welcome to TextWorld, ALFRED! =-\n\n{room}\n\nYour task is to: {self.game.task}")

    def step(self, command: str) -> ALFWorldState:
        """Plays one command. White space around it does not matter; whatever is not admissible changes nothing.

        Args:
            command (`str`): any string.

        Raises:
            RuntimeError: the engine was not reset before.
        """
        if not self._started:
            raise RuntimeError("ALFWorldEngine.step was called before reset.")
        command = command.strip()
        action = self._local.get(command)
        if action is None:
            receptacle, location = self.game.world.goto.get(command, ("", self._location))
            if location == self._location:
                return self._state(NOTHING_HAPPENS)
            action = ("goto", receptacle, location)
        observation = self._play(action)
        if action[0] not in ("look", "inventory", "help", "examine"):
            self._local = self._find_local_actions()
        self._won = self.game.world.goal.holds(self._facts)
        return self._state(observation)

    def _state(self, observation: str) -> ALFWorldState:
        here = self._location
        commands = [command for command, (_, location) in self.game.world.goto.items() if location != here]
        commands += self._local
        commands.sort()
        return ALFWorldState(observation, commands, self._won)

    def _find_local_actions(self) -> dict[str, Action]:
        """All that can be done without going somewhere: command to action."""
        world, names, facts = self.game.world, self.game.world.names, self._facts
        actions: dict[str, Action] = {"inventory": ("inventory",), "look": ("look",)}
        if world.wording.help is not None:
            actions["help"] = ("help",)
        held = [item for _, item in facts["holds"]]

        for receptacle in world.receptacles_at.get(self._location, ()):
            name = names[receptacle]
            actions[f"examine {name}"] = ("examine", receptacle)
            accessible = True
            if receptacle in world.openable:
                accessible = (receptacle,) in facts["opened"]
                verb = "close" if accessible else "open"
                actions[f"{verb} {name}"] = (verb, receptacle)

            for item, place in facts["inreceptacle"]:
                if place == receptacle:
                    if item in world.toggleable:
                        actions[f"use {names[item]}"] = ("use", item)
                    if accessible and not facts["holdsany"] and item in world.pickupable:
                        actions[f"take {names[item]} from {name}"] = ("take", item, receptacle)

            for item in held:
                takes = world.accepts.get(receptacle, frozenset())
                if accessible and not takes.isdisjoint(world.object_types.get(item, ())):
                    actions[world.wording.put_command.format(o=names[item], r=name)] = ("put", item, receptacle)
                for verb, appliances in world.appliances.items():
                    if receptacle in appliances and item in world.treatable[verb]:
                        actions[f"{verb} {names[item]} with {name}"] = (verb, item, receptacle)

        for item in held:
            actions[f"examine {names[item]}"] = ("examine object", item)
            if item in world.knives:
                for other, location in facts["objectatlocation"]:
                    if location == self._location and other in world.sliceable:
                        actions[f"slice {names[other]} with {names[item]}"] = ("slice", other, item)
        return actions

    def _play(self, action: Action) -> str:
        """Plays a possible action and returns its text."""
        world, facts = self.game.world, self._facts
        verb, *arguments = action
        names = [world.names[identifier] for identifier in arguments]
        match verb:
            case "look":
                facts["checked"].add((self._location,))
                return self._look(visible=())
            case "inventory":
                facts["checked"].add((world.agent,))
                if not facts["holdsany"]:
                    return "You are not carrying anything."
                return f"You are carrying: {self._listing(item for _, item in facts['holds'])}."
            case "help":
                facts["checked"].add((world.agent,))
                return str(world.wording.help)
            case "examine":
                facts["checked"].add((arguments[0],))
                return self._describe_receptacle(arguments[0])
            case "examine object":
                facts["checked"].add((arguments[0],))
                return self._describe_object(arguments[0])
            case "goto":
                receptacle, self._location = arguments
                facts["atlocation"] = {(world.agent, self._location)}
                arrived = names[1] if world.wording.arrive_at_location else names[0]
                return f"You arrive at {arrived}. {self._describe_receptacle(receptacle)}"
            case "open":
                facts["opened"].add((arguments[0],))
                facts["checked"].add((arguments[0],))
                return f"You open the {names[0]}. {self._describe_receptacle(arguments[0])}"
            case "close":
                facts["opened"].discard((arguments[0],))
                return f"You close the {names[0]}."
        return self._handle(verb, arguments, names)

    def _handle(self, verb: str, arguments: list[str], names: list[str]) -> str:
        """Plays an action on an object and returns its text."""
        world, facts = self.game.world, self._facts
        match verb:
            case "take":
                item, receptacle = arguments
                facts["inreceptacle"].discard((item, receptacle))
                self._removed.add((item, receptacle))
                facts["objectatlocation"].discard((item, self._location))
                facts["holds"].add((world.agent, item))
                facts["holdsany"].add((world.agent,))
                return f"You pick up the {names[0]} from the {names[1]}."
            case "put":
                item, receptacle = arguments
                facts["inreceptacle"].add((item, receptacle))
                self._removed.discard((item, receptacle))
                facts["objectatlocation"].add((item, self._location))
                facts["holds"].discard((world.agent, item))
                facts["holdsany"].discard((world.agent,))
                return world.wording.put_feedback.replace("{o.name}", names[0]).replace("{r.name}", names[1])
            case "clean":
                facts["isclean"].add((arguments[0],))
            case "heat":
                facts["ishot"].add((arguments[0],))
                facts["iscool"].discard((arguments[0],))
            case "cool":
                facts["iscool"].add((arguments[0],))
                facts["ishot"].discard((arguments[0],))
            case "use":
                facts["ison"] ^= {(arguments[0],)}
                facts["istoggled"].add((arguments[0],))
                return f"You turn on the {names[0]}."
            case "slice":
                facts["issliced"].add((arguments[0],))
                return f"You sliced the {names[0]} with the {names[1]}."
        return f"You {verb} the {names[0]} using the {names[1]}."

    def _listing(self, identifiers: Iterable[str]) -> str:
        """`a mug 2, a mug 1, and a pen 1`, in the order of the ids; `nothing` if there are none."""
        return _join([f"a {self.game.world.names[identifier]}" for identifier in sorted(identifiers)])

    def _describe_receptacle(self, receptacle: str) -> str:
        name = self.game.world.names[receptacle]
        inside = (item for item, place in self._facts["inreceptacle"] if place == receptacle)
        if receptacle not in self.game.world.openable:
            return f"On the {name}, you see {self._listing(inside)}."
        if (receptacle,) in self._facts["opened"]:
            return f"The {name} is open. In it, you see {self._listing(inside)}."
        return f"The {name} is closed."

    def _describe_object(self, item: str) -> str:
        world, facts = self.game.world, self._facts
        called = world.names[item]
        if item in world.receptacle_objects:
            return f"This is a normal {called}. In it, you see {self._listing(world.contents.get(item, ()))}."
        clean, hot, cool, sliced = ((item,) in facts[name] for name in ("isclean", "ishot", "iscool", "issliced"))
        full_name = f"sliced {called}" if sliced else called
        if clean and hot:
            return f"This is a hot and clean {full_name}."
        if clean and cool:
            return f"This is a cool and clean {full_name}."
        if sliced and (clean or hot or cool):
            return f"This is a {'clean' if clean else 'hot' if hot else 'cool'} {full_name}."
        if hot or clean or cool:
            return f"This is a {'hot' if hot else 'clean' if clean else 'cold'} {called}."
        if item in world.toggleable and (item,) in facts["istoggled"]:
            return f"This {called} is on."
        if item in world.sliceable and sliced:
            return f"This is a {full_name}."
        return f"There's nothing special about {called}."

    def _look(self, visible: Iterable[str]) -> str:
        """Where the agent stands. `visible` is listed in the middle of a room: all receptacles at first, none later.

        (Upstream's `look` asks for receptacles at the agent's own location, of which there are none there.)
        """
        world = self.game.world
        here = world.receptacles_at.get(self._location)
        if not here:
            return f"You are in the middle of a room. Looking quickly around you, you see {self._listing(visible)}."
        facing = _join([world.names[receptacle] for receptacle in here])
        # An object is "next to" a receptacle that it was taken from when it now lies elsewhere in the same location.
        nearby = [
            item
            for item, location in self._facts["objectatlocation"]
            if location == self._location
            for receptacle in here
            if (item, receptacle) in self._removed
        ]
        return f"You are facing the {facing}. Next to it, you see {self._listing(nearby)}."


def _join(parts: list[str]) -> str:
    if len(parts) < 2:
        return parts[0] if parts else "nothing"
    return f"{', '.join(parts[:-1])}, and {parts[-1]}"
