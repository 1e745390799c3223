"""A shop made up from a seed: products with titles, texts, options and goals, all from a closed list of words."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from .product import Product
from .reward import CATEGORY_SEPARATOR


# Chosen so that searching for an instruction finds its product about as often as in the official 1,000 products.
_WITHOUT_GOALS = 0.1
_GENERAL_FIRST = 0.3
_SHORT_NAME = 0.2


def generate_products(count: int = 1000, seed: int = 0) -> tuple[list[Product], dict[str, list[str]]]:
    """Makes products.

    Titles are composed of words whose kind is known, so their nouns need no parser. A product's number is `P` and
    pairs of digits joined by `X`, the last pair first, which distinguishes the products of a page: `P17X04` is 417.

    Args:
        count (`int`, *optional*, defaults to `1000`): how many.
        seed (`int`, *optional*, defaults to `0`): the same numbers give the same products. A larger `count` appends.

    Returns:
        `tuple[list[Product], dict[str, list[str]]]`: the products, and the nouns of each title.
    """
    words = _words()
    draw = random.Random(f"webshop {seed}")
    products, nouns = [], {}
    for number in range(count):
        product, title_nouns = _product(number, words, draw)
        products.append(product)
        nouns[product.title] = title_nouns
    return products, nouns


_DESCRIPTION = "This {style} {kind} comes from {brand}. It is made of {material} for your {use}."
_FEATURES = ("A {style} {kind} for {use}.", "This {kind} is {attribute}.", "Comes with {attribute}.")


def _product(number: int, words: dict[str, Any], draw: random.Random) -> tuple[Product, list[str]]:
    department = draw.choice(words["departments"])
    group = draw.choice(list(department["groups"]))
    kind = draw.choice(department["groups"][group])
    query = _plural(kind)
    parts = {
        "brand": draw.choice(words["brands"]),
        "style": draw.choice(words["styles"]),
        "material": draw.choice(department["materials"]),
        "use": draw.choice(department["uses"]),
        "kind": kind.split()[-1] if draw.random() < _SHORT_NAME else kind,
    }
    qualities = draw.sample(department["qualities"], draw.randint(1, 3))
    extras = draw.sample(department["parts"], draw.randint(1, 2))
    attributes = [*qualities, *extras]
    in_title = draw.choice(attributes) if draw.random() < 0.5 else ""
    title = f"{parts['brand']} {parts['style']} {parts['material']} {parts['kind']}".title()
    title += f" for {parts['use'].title()}" + (f", {in_title.title()}" if in_title else "")
    title_nouns = [parts["brand"].lower(), parts["material"], *parts["kind"].split(), parts["use"]]
    title_nouns += in_title.split() if in_title in extras else []
    # The search reads the first feature only, so what stands in the others is found by opening the product.
    features = [_FEATURES[1 if attribute in qualities else 2] for attribute in attributes]
    bullets = [text.format(attribute=attribute, **parts) for text, attribute in zip(features, attributes, strict=True)]
    draw.shuffle(bullets)
    if draw.random() < _GENERAL_FIRST:
        bullets.insert(0, _FEATURES[0].format(**parts))
    description = _DESCRIPTION.format(**parts)
    options = {name: _some(values, draw) for name, values in department["options"].items() if draw.random() < 0.9}
    low, high = department["prices"]
    prices = [float(draw.randint(low, high - 10)) + draw.choice((0.5, 0.95, 0.99))]
    if draw.random() < 0.2:
        prices.append(round(prices[0] + draw.randint(2, 8), 2))
    wanted = draw.sample(attributes, draw.randint(1, len(attributes)))
    product = Product(
        asin=_asin(number),
        title=title,
        description=description,
        bullets=tuple(bullets),
        category=department["name"],
        query=query,
        product_category=f" {CATEGORY_SEPARATOR} ".join((department["path"], group, query.title())),
        prices=tuple(prices),
        options=options,
        attributes=tuple(attributes),
        instruction=None if draw.random() < _WITHOUT_GOALS else _instruction(query, wanted, qualities),
        instruction_attributes=tuple(wanted),
    )
    return product, title_nouns


def _instruction(query: str, wanted: Sequence[str], qualities: Sequence[str]) -> str:
    before = ", ".join(attribute for attribute in wanted if attribute in qualities)
    after = ", ".join(attribute for attribute in wanted if attribute not in qualities)
    return f"Find me {before}{' ' if before else ''}{query}{' with ' if after else ''}{after}"


def _some(values: Sequence[str], draw: random.Random) -> tuple[str, ...]:
    count = draw.randint(1, min(4, len(values)))
    return tuple(values[number] for number in sorted(draw.sample(range(len(values)), count)))


def _plural(kind: str) -> str:
    if kind.endswith(("sh", "ss", "x")):
        return f"{kind}es"
    if kind.endswith("y") and kind[-2] not in "aeiou":
        return f"{kind[:-1]}ies"
    return f"{kind}s"


def _asin(number: int) -> str:
    pairs = [number % 100, number // 100 % 100]
    if number >= 10_000:
        pairs.append(number // 10_000)
    return "P" + "X".join(f"{pair:02d}" for pair in pairs)


@lru_cache(maxsize=1)
def _words() -> dict[str, Any]:
    return json.loads((Path(__file__).parent / "data" / "words.json").read_text(encoding="utf-8"))
