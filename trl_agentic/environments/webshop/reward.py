"""What a purchase is worth: how well the product, its attributes, the chosen options and the price fit the goal."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any


try:
    from rapidfuzz import fuzz, utils
except ImportError as error:
    raise ImportError("WebShop's reward needs rapidfuzz: pip install trl-agentic[webshop]") from error


MATCHES_ABOVE = 85
CATEGORY_SEPARATOR = "\u203a"

Option = str | tuple[str, str]
"""What a goal asks for: a value (human goals), or a name and a value (synthetic goals)."""


@dataclass(frozen=True, slots=True)
class Goal:
    """What the customer wants.

    Attributes:
        asin (`str`): the product that the goal was made from.
        name (`str`): its title.
        query (`str`): the search that it was found with.
        category (`str`): one of the shop's departments.
        product_category (`str`): its place in the shop, from general to special.
        instruction (`str`): what the shopper reads.
        attributes (`tuple[str, ...]`): wanted attributes.
        options (`tuple`): wanted options; (name, value) pairs in synthetic goals, values in human ones.
        price_upper (`float`): what it may cost, in dollars.
        is_human (`bool`, *optional*, defaults to `False`): a person wrote it.
    """

    asin: str
    name: str
    query: str
    category: str
    product_category: str
    instruction: str
    attributes: tuple[str, ...]
    options: tuple[Option, ...]
    price_upper: float
    is_human: bool = False

    @classmethod
    def from_dict(cls, goal: Mapping[str, Any]) -> Goal:
        """Reads a goal with the keys that WebShop gives it.

        Raises:
            ValueError: a key is missing. The message names it.
        """
        keys = ("asin", "name", "query", "category", "product_category", "instruction_text", "attributes")
        missing = [key for key in (*keys, "goal_options", "price_upper") if key not in goal]
        if missing:
            raise ValueError(f"The goal has no {', '.join(map(repr, missing))}: {dict(goal)!r:.200}")
        options = goal["goal_options"]
        return cls(
            asin=goal["asin"],
            name=goal["name"],
            query=goal["query"],
            category=goal["category"],
            product_category=goal["product_category"],
            instruction=goal["instruction_text"],
            attributes=tuple(goal["attributes"]),
            options=tuple(options.items()) if isinstance(options, Mapping) else tuple(options),
            price_upper=float(goal["price_upper"]),
            is_human=not isinstance(options, Mapping),
        )

    def to_dict(self) -> dict[str, Any]:
        """The goal with the keys that WebShop gives it."""
        return {
            "asin": self.asin,
            "category": self.category,
            "query": self.query,
            "name": self.name,
            "product_category": self.product_category,
            "instruction_text": self.instruction,
            "attributes": list(self.attributes),
            "price_upper": self.price_upper,
            "goal_options": list(self.options) if self.is_human else dict(self.options),  # type: ignore[arg-type]
        }


@dataclass(frozen=True, slots=True)
class Reward:
    """The reward of a purchase, term by term.

    Attributes:
        type_factor (`float`): 1, 0.5, 0.1 or 0: is it the right kind of product.
        same_query (`bool`): the product was found with the goal's query.
        same_category (`bool`): two steps of the product's place in the shop are the goal's.
        title_score (`float`): share of the nouns in the goal's title that the product's title has, too.
        attributes (`tuple[bool, ...]`): for each wanted attribute, whether the product has it.
        options (`tuple[bool, ...]`): for each wanted option, whether it was chosen.
        price (`bool`): whether the product is cheap enough.
    """

    type_factor: float
    same_query: bool
    same_category: bool
    title_score: float
    attributes: tuple[bool, ...]
    options: tuple[bool, ...]
    price: bool

    @property
    def total(self) -> float:
        """The reward, from 0 to 1."""
        got = sum(self.attributes) + sum(self.options) + self.price
        return got / (len(self.attributes) + len(self.options) + 1) * self.type_factor


def type_factor(same_query: bool, same_category: bool, title_score: float) -> float:
    """How much a purchase counts for being the right kind of product. A title without a common noun overrules all."""
    if title_score == 0.0:
        return 0.0
    if title_score < 0.1:
        return 0.1
    return 1.0 if same_query or same_category or title_score > 0.2 else 0.5


def title_score(bought: Sequence[str], wanted: Sequence[str]) -> float:
    """Number of different nouns that two titles share, divided by the number of nouns, repeated ones too, in `wanted`.

    0.2 where `wanted` is empty.
    """
    return len(set(bought) & set(wanted)) / len(wanted) if wanted else 0.2


def same_category(bought: str, wanted: str) -> bool:
    """Whether two places in the shop, such as `"A > B > C"`, have two or more names in common."""
    return len(_steps(bought) & _steps(wanted)) >= 2


def _steps(category: str) -> set[str]:
    return {step.strip() for step in category.split(CATEGORY_SEPARATOR)}


def has_attribute(wanted: str, attributes: Iterable[str], texts: Iterable[str]) -> bool:
    """Whether one of the attributes is like the wanted one, or one of the lower-case texts contains it."""
    return any(_alike(attribute, wanted) for attribute in attributes) or any(wanted in text for text in texts)


def matched_options(chosen: Iterable[str], wanted: Iterable[Option], color_names: Sequence[str]) -> tuple[bool, ...]:
    """For each wanted option whether a chosen value is like it, colours brought to their plain names."""
    values = [plain_color(value, color_names) for value in chosen]
    targets = [plain_color(option, color_names) for option in wanted]
    return tuple(any(_alike(value, target) for value in values) for target in targets)


def plain_color(option: Option, color_names: Sequence[str]) -> Option:
    """The first colour name, in the order of `color_names`, that the option contains; else the option.

    A (name, value) pair contains a colour only if the value *is* one: that is how the reward has always been computed.
    """
    return next((color for color in color_names if color in option), option)


@lru_cache(maxsize=1 << 16)
def _alike(first: Option, second: Option) -> bool:
    words = utils.default_process(str(first)), utils.default_process(str(second))
    return fuzz.token_set_ratio(*words) > MATCHES_ABOVE
