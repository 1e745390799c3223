"""Products of the shop."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


DEFAULT_PRICE = 100.0
"""Price of a product whose files have none, in dollars."""


@dataclass(frozen=True, slots=True, eq=False)
class Product:
    """A product as the shop shows it.

    Attributes:
        asin (`str`): its identifier.
        title, description (`str`): texts.
        bullets (`tuple[str, ...]`): its features.
        category, query, product_category (`str`): department, the search that it was found with, and its place in the
            shop, as in [`Goal`].
        prices (`tuple[float, ...]`): one price, or two between which it is drawn, in dollars.
        options (`dict[str, tuple[str, ...]]`): values of each option, in the order shown.
        attributes (`tuple[str, ...]`): attributes that the reward recognises.
        instruction (`str`, *optional*) and `instruction_attributes`: request of a synthetic goal.
        human_instructions (`tuple[dict, ...]`): goals that people wrote.
    """

    asin: str
    title: str
    description: str
    bullets: tuple[str, ...]
    category: str
    query: str
    product_category: str
    prices: tuple[float, ...]
    options: dict[str, tuple[str, ...]]
    attributes: tuple[str, ...]
    instruction: str | None = None
    instruction_attributes: tuple[str, ...] = ()
    human_instructions: tuple[Mapping[str, Any], ...] = ()
    option_of: dict[str, str] = field(init=False, repr=False)
    """Name of the option that a value belongs to; the last one where several have the value."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "option_of", {v: name for name, values in self.options.items() for v in values})

    @property
    def price_tag(self) -> str:
        """The price as the shop shows it."""
        return " to ".join(f"${price}" for price in self.prices)

    @property
    def searchable_text(self) -> str:
        """Text that the search reads: title, description, first feature and options."""
        options = ", and ".join(f"{name}: {', '.join(values)}" for name, values in self.options.items())
        return f"{self.title} {self.description} {self.bullets[0] if self.bullets else ''} {options}".lower()
