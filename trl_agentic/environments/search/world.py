"""A generated world to ask questions about: people, towns, works and institutions, described in short passages.

Everything follows from a seed. A question names a chain of relations, as in "Name the birthplace of the author of
Silver Lantern."; each relation of the chain stands in another passage. Two things make retrieval fail: entities share
their words with others, and each relation is expressed in one of two wordings that share no word with each other or
with the question.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from importlib.resources import files


@dataclass(frozen=True, slots=True)
class Wording:
    """One way to tell a relation.

    Attributes:
        text: predicate with `{}` for the value.
        keyword: its word that no other predicate has.
    """

    text: str
    keyword: str


@dataclass(frozen=True, slots=True)
class Relation:
    """What an entity has exactly one of.

    Attributes:
        name: its noun in questions.
        subject: kind of the entities that have one.
        value: kind of what it leads to.
        wordings: how passages express it, the more frequent one first.
    """

    name: str
    subject: str
    value: str
    wordings: tuple[Wording, Wording]


RELATIONS = {
    name: Relation(name, subject, value, (Wording(first, first_keyword), Wording(second, second_keyword)))
    for name, subject, value, first, first_keyword, second, second_keyword in (
        ("birthplace", "person", "town", "was born in {}", "born", "is a native of {}", "native"),
        ("spouse", "person", "person", "married {}", "married", "is the partner of {}", "partner"),
        ("teacher", "person", "person", "learned from {}", "learned", "was a pupil of {}", "pupil"),
        ("school", "person", "institution", "studied at {}", "studied", "is a graduate of {}", "graduate"),
        ("debut", "person", "year", "first appeared in {}", "appeared", "began work in {}", "began"),
        ("author", "work", "person", "was written by {}", "written", "is from the pen of {}", "pen"),
        ("setting", "work", "town", "takes place in {}", "place", "tells of life in {}", "tells"),
        ("date", "work", "year", "was printed in {}", "printed", "reached readers in {}", "readers"),
        ("founder", "institution", "person", "was founded by {}", "founded", "owes its start to {}", "owes"),
        ("seat", "institution", "town", "stands in {}", "stands", "has its halls in {}", "halls"),
        ("opening", "institution", "year", "opened in {}", "opened", "took its first members in {}", "members"),
        ("mayor", "town", "person", "is governed by {}", "governed", "elected {}", "elected"),
        ("river", "town", "river", "lies on {}", "lies", "is crossed by {}", "crossed"),
    )
}
"""The relations by name. An entity has a value for each relation of its kind, and one passage contains it."""

SPLIT_SIZES = {"train": 4000, "test": 400}
"""Number of questions of each split."""
MAX_HOPS = 4

_ASIDES = {
    "person": ("once visited {town}", "sent letters to {person}", "lectured at {institution}", "retired in {year}"),
    "work": ("was praised by {person}", "was banned in {town}", "was reprinted in {year}"),
    "institution": ("once dismissed {person}", "was repaired in {year}", "owns land near {town}"),
    "town": ("was flooded in {year}", "honours {person}", "sends sons to {institution}"),
}
_SIZES = {"person": 220, "town": 60, "work": 120, "institution": 60, "river": 30}  # in each split
_YEARS = range(1700, 1900)
_SECOND_WORDING = 0.4
_ALIAS = 0.3
_NAME = "Name the "


@dataclass(frozen=True, slots=True)
class Question:
    """A question about the world.

    Attributes:
        text: the question.
        answers: what counts as an answer: the name, and the other name that passages tell, if there is one.
        hops: number of relations that lead from the entity in the question to the answer.
        entities: all entities of the chain, from the one in the question to the answer (years are no entities).
    """

    text: str
    answers: tuple[str, ...]
    hops: int
    entities: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class World:
    """Passages, and questions about them that share no entity between splits.

    Attributes:
        passages: the corpus, one to three sentences each.
        questions: split to its questions.
    """

    passages: tuple[str, ...]
    questions: dict[str, tuple[Question, ...]]


@dataclass(eq=False, slots=True)
class _Entity:
    kind: str
    name: str
    alias: str | None = None
    values: dict[str, _Entity | str] = field(default_factory=dict)


@lru_cache(maxsize=8)
def generate_world(seed: int = 0) -> World:
    """Makes a world.

    Args:
        seed (`int`, *optional*, defaults to `0`): equal seeds give equal worlds, on every machine.

    Returns:
        [`World`]: about 3,000 passages, and `SPLIT_SIZES` questions, each split's about entities of its own.
    """
    rng = random.Random(seed)
    names = _Names(rng)
    splits = {
        split: {kind: [names.entity(kind) for _ in range(size)] for kind, size in _SIZES.items()}
        for split in SPLIT_SIZES
    }
    for entities in splits.values():
        _relate(entities, rng)
    everyone = {kind: [e for entities in splits.values() for e in entities[kind]] for kind in _SIZES}
    passages = [text for kind in _ASIDES for e in everyone[kind] for text in _passages(e, everyone, rng)]
    rng.shuffle(passages)
    questions = {split: tuple(_questions(entities, SPLIT_SIZES[split], rng)) for split, entities in splits.items()}
    return World(tuple(passages), questions)


def chain_of(question: str) -> tuple[str, list[Relation]]:
    """The entity that a question names, and the relations to follow from it, the first one to look up first.

    Raises:
        ValueError: it is no question of a generated world.
    """
    *nouns, entity = question.strip().removeprefix(_NAME).removesuffix(".").split(" of ")
    names = [noun.removeprefix("the ") for noun in reversed(nouns)]
    if not names or any(name not in RELATIONS for name in names):
        raise ValueError(f"Not a question about a generated world: {question[:200]!r}.")
    return entity, [RELATIONS[name] for name in names]


class _Names:
    """Two-word names, none given twice."""

    def __init__(self, rng: random.Random):
        words = json.loads((files(__package__) / "data" / "words.json").read_text(encoding="utf-8"))
        self._rng = rng
        self._left: dict[str, list[str]] = {}
        for kind, first, second in (
            ("person", "given", "families"),
            ("town", "sites", "settlements"),
            ("work", "qualities", "things"),
            ("institution", "families", "houses"),
            ("river", "sites", "waters"),
        ):
            self._left[kind] = [f"{a} {b}" for a in words[first] for b in words[second]]
            rng.shuffle(self._left[kind])

    def entity(self, kind: str) -> _Entity:
        left = self._left[kind]
        has_alias = kind in ("person", "town") and self._rng.random() < _ALIAS
        return _Entity(kind, left.pop(), left.pop() if has_alias else None)


def _relate(entities: dict[str, list[_Entity]], rng: random.Random) -> None:
    """Gives every entity of a split one value for each of its relations, from the same split.

    No relation leads to one person twice: passages about many pupils would bury the passage about their teacher.
    """
    for relation in RELATIONS.values():
        subjects = rng.sample(entities[relation.subject], len(entities[relation.subject]))
        values: list[_Entity | str]
        if relation.name == "spouse":
            values = [subjects[place ^ 1] for place in range(len(subjects))]
        elif relation.subject == relation.value:
            values = [*subjects[1:], subjects[0]]
        elif relation.value == "person":
            values = list(rng.sample(entities["person"], len(subjects)))
        elif relation.value == "year":
            values = [str(rng.choice(_YEARS)) for _ in subjects]
        else:
            values = [rng.choice(entities[relation.value]) for _ in subjects]
        for subject, value in zip(subjects, values, strict=True):
            subject.values[relation.name] = value


def _passages(entity: _Entity, everyone: dict[str, list[_Entity]], rng: random.Random) -> Iterator[str]:
    """All facts about an entity, in passages of one to three sentences, each of which names it."""
    predicates = []
    for name, value in entity.values.items():
        wording = RELATIONS[name].wordings[rng.random() < _SECOND_WORDING]
        predicates.append(wording.text.format(value if isinstance(value, str) else value.name))
    for aside in rng.sample(_ASIDES[entity.kind], 2):
        names = {kind: rng.choice(others).name for kind, others in everyone.items()}
        predicates.append(aside.format(**names, year=rng.choice(_YEARS)))
    if entity.alias:
        predicates.append(f"is also known as {entity.alias}")
    rng.shuffle(predicates)
    while predicates:
        size = rng.randint(1, 3)
        sentences, predicates = predicates[:size], predicates[size:]
        yield " ".join(f"{entity.name} {text}." for text in sentences)


def _questions(entities: dict[str, list[_Entity]], count: int, rng: random.Random) -> Iterator[Question]:
    """Different questions, equally many of each number of hops."""
    subjects = [e for kind in _ASIDES for e in entities[kind]]
    asked: set[str] = set()
    while len(asked) < count:
        hops = len(asked) % MAX_HOPS + 1
        question = _question(rng.choice(subjects), hops, rng)
        if question is not None and question.text not in asked:
            asked.add(question.text)
            yield question


def _question(start: _Entity, hops: int, rng: random.Random) -> Question | None:
    """A walk of `hops` relations that meets no entity twice, as a question; `None` if it comes to an end too early."""
    chain, names = [start], []
    value: _Entity | str = start
    for _ in range(hops):
        if isinstance(value, str) or not value.values:
            return None
        name = rng.choice(list(value.values))
        value = value.values[name]
        names.append(name)
        if isinstance(value, _Entity):
            if value in chain:
                return None
            chain.append(value)
    answers = (value,) if isinstance(value, str) else (value.name, *([value.alias] if value.alias else []))
    nouns = " of the ".join(reversed(names))
    return Question(f"{_NAME}{nouns} of {start.name}.", answers, hops, tuple(e.name for e in chain))
