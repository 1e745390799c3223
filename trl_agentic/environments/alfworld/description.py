"""Description of a generated game: its task, its scene and the objects in it."""

from __future__ import annotations

from dataclasses import dataclass


TASK_NAMES = {
    "Pick": "pick_and_place_simple",
    "Look": "look_at_obj_in_light",
    "Clean": "pick_clean_then_place_in_recep",
    "Heat": "pick_heat_then_place_in_recep",
    "Cool": "pick_cool_then_place_in_recep",
    "Pick2": "pick_two_obj_and_place",
}
"""Short names of the six task types and the names that folders of game files start with."""


@dataclass(frozen=True, slots=True)
class GameDescription:
    """Task and scene of a generated game, without its objects.

    Attributes:
        split: `"train"`, `"valid_seen"` or `"valid_unseen"`.
        index: number of the game in its split.
        seed: seed of the set of games.
        task_type: short name, a key of `TASK_NAMES`.
        object: type of the object to handle, as in `"Mug"`.
        receptacle: type of the receptacle to put it in; the lamp for `"Look"`.
        room: `"kitchen"`, `"living"`, `"bedroom"` or `"bathroom"`.
        scene: number of the scene.
    """

    split: str
    index: int
    seed: int
    task_type: str
    object: str
    receptacle: str
    room: str
    scene: int

    @property
    def trial(self) -> str:
        """Folder of the game below that of its task, as in `"trial_train_S0_000007"`."""
        return f"trial_{self.split}_S{self.seed}_{self.index:06d}"

    @property
    def name(self) -> str:
        """`<task type>-<Object>-None-<Receptacle>-<scene>/<trial>`, as game files are laid out in their split."""
        return f"{TASK_NAMES[self.task_type]}-{self.object}-None-{self.receptacle}-{self.scene}/{self.trial}"


@dataclass(frozen=True, slots=True)
class Receptacle:
    """Receptacle of a scene. `weight` is its share of the objects that are placed in receptacles of its type."""

    id: str
    type: str
    position: tuple[int, int, int]
    location: str
    openable: bool
    weight: float


@dataclass(frozen=True, slots=True)
class Scene:
    """Room with receptacles that never change, the location where games start, and the types of its objects."""

    receptacles: tuple[Receptacle, ...]
    start: str
    object_types: tuple[str, ...]

    def of_type(self, receptacle_type: str) -> list[Receptacle]:
        """The receptacles of a type."""
        return [r for r in self.receptacles if r.type == receptacle_type]


@dataclass(frozen=True, slots=True)
class Thing:
    """Object of a game."""

    id: str
    kind: str
    location: str
    receptacle: Receptacle | None  # None: on the floor, out of reach
