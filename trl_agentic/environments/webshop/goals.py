"""Goals: the requests of shoppers, and the split of each."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Sequence
from typing import Any

from .product import Product
from .reward import Goal, Option


SHUFFLE_SEED = 233
PRICE_STEPS = [10.0 * step for step in range(1, 100)]
NO_LIMIT = 1e6

SPLITS = {"test": slice(0, 500), "eval": slice(500, 1500), "train": slice(1500, None)}
"""Goals of each split. The splits do not overlap."""


def synthetic_goals(products: Sequence[Product], prices: Sequence[float], state: tuple[Any, ...]) -> tuple[Goal, ...]:
    """One goal for each combination of the options of each product that has an instruction, shuffled.

    Args:
        products (`Sequence[Product]`): all products.
        prices (`Sequence[float]`): price of each.
        state (`tuple`): state of the random numbers that the price limits are drawn with.
    """
    draw = _random(state)
    goals: list[Goal] = []
    for product, price in zip(products, prices, strict=True):
        if product.instruction is None or not product.instruction_attributes:
            continue
        limit, limit_text = _price_limit(price, draw)
        names = sorted(product.options)
        for values in itertools.product(*(product.options[name] for name in names)):
            options = tuple(zip(names, values, strict=True))
            options_text = ", and ".join(f"{name}: {value}" for name, value in options)
            text = f"{product.instruction}{' with ' if options else ''}{options_text}{limit_text}"
            goals.append(_goal(product, text, product.instruction_attributes, options, limit))
    return _shuffled(goals)


def human_goals(products: Sequence[Product], prices: Sequence[float], state: tuple[Any, ...]) -> tuple[Goal, ...]:
    """The goals that people wrote for the products, shuffled. Arguments as for [`synthetic_goals`]."""
    draw = _random(state)
    goals: list[Goal] = []
    for product, price in zip(products, prices, strict=True):
        for written in product.human_instructions:
            attributes = tuple(written["instruction_attributes"])
            if attributes:
                limit, limit_text = _price_limit(price, draw)
                text = written["instruction"].strip(".") + limit_text
                goals.append(_goal(product, text, attributes, tuple(written["instruction_options"]), limit, True))
    return _shuffled(goals)


def split_numbers(count: int, split: str) -> range:
    """Numbers of the goals of a split.

    Args:
        count (`int`): how many goals there are.
        split (`str`): `"test"`, `"eval"` or `"train"`.

    Raises:
        ValueError: there is no such split, or it is empty.
    """
    if split not in SPLITS:
        raise ValueError(f"Unknown WebShop split {split!r}: expected one of {', '.join(SPLITS)}.")
    numbers = range(count)[SPLITS[split]]
    if not numbers:
        raise ValueError(
            f"The WebShop split {split!r} is empty: there are {count} goals, of which the first 500 are `test`, the "
            "next 1,000 `eval` and the rest `train`."
        )
    return numbers


def _random(state: tuple[Any, ...]) -> random.Random:
    draw = random.Random()
    draw.setstate(state)
    return draw


def _price_limit(price: float, draw: random.Random) -> tuple[float, str]:
    """The larger of two of the next four multiples of ten, and how it is put; no limit near the end of the scale."""
    steps: Iterator[float] = (step for step in PRICE_STEPS if step > price)
    above = list(itertools.islice(steps, 4))
    if len(above) < 2:
        return NO_LIMIT, ""
    limit = max(draw.sample(above, 2))
    return limit, f", and price lower than {limit:.2f} dollars"


def _goal(
    product: Product,
    text: str,
    attributes: tuple[str, ...],
    options: tuple[Option, ...],
    limit: float,
    is_human: bool = False,
) -> Goal:
    return Goal(
        asin=product.asin,
        name=product.title,
        query=product.query,
        category=product.category,
        product_category=product.product_category,
        instruction=text,
        attributes=attributes,
        options=options,
        price_upper=limit,
        is_human=is_human,
    )


def _shuffled(goals: list[Goal]) -> tuple[Goal, ...]:
    random.Random(SHUFFLE_SEED).shuffle(goals)
    return tuple(goals)
