"""The shop's pages, as the two forms of text that a policy can read."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from .product import Product


Mode = Literal["text", "text_rich"]
PER_PAGE = 10
BACK, PREVIOUS, NEXT, BUY = "Back to Search", "< Prev", "Next >", "Buy Now"
_ESCAPED = {ord(sign): f"\\u{ord(sign):04x}" for sign in "<>&'"}
SUB_PAGES = ("Description", "Features", "Reviews")


@dataclass(frozen=True, slots=True)
class Piece:
    """A piece of text on a page. `kind` is `"text"`, `"button"`, `"product"` or `"option"`."""

    text: str
    kind: str = "text"
    clicked: bool = False


def render(pieces: Iterable[Piece], mode: Mode) -> str:
    """A page as text: joined by ` [SEP] `, or with buttons marked and a piece a line (`"text_rich"`)."""
    shown = [piece for piece in pieces if piece.text not in ("", "\n")]
    if mode == "text":
        return " [SEP] ".join(piece.text.strip() for piece in shown)
    lines = []
    chosen = []
    for piece in shown:
        if piece.kind == "text":
            lines.append(piece.text)
            continue
        button = "clicked button" if piece.clicked else "button"
        before = {"product": "\n", "option": "  ", "button": ""}[piece.kind]
        lines.append(f"{before}[{button}] {piece.text} [{button}_]")
        if piece.clicked and piece.kind == "option":
            chosen.append(f"You have clicked {piece.text}.")
    return "\n".join([*reversed(chosen), *lines]) + "\n"


def search_page(instruction: str) -> Iterator[Piece]:
    """Where an episode starts."""
    yield Piece("WebShop")
    yield Piece("Instruction: ")
    yield Piece(instruction)
    yield Piece("Search", "button")


def results_page(instruction: str, results: Sequence[Product], page: int, visited: Collection[str]) -> Iterator[Piece]:
    """Ten results; `page` counts from 1, and there is no end to them."""
    yield from _head(instruction)
    yield Piece(f"Page {page} (Total results: {len(results)})")
    if page > 1:
        yield Piece(PREVIOUS, "button")
    yield Piece(NEXT, "button")
    for product in on_page(results, page):
        yield Piece(product.asin, "product", product.asin in visited)
        yield Piece(product.title)
        yield Piece(product.price_tag)


def on_page(results: Sequence[Product], page: int) -> Sequence[Product]:
    """The results that stand on a page."""
    return results[(page - 1) * PER_PAGE : page * PER_PAGE]


def item_page(instruction: str, product: Product, query: str, chosen: Mapping[str, str]) -> Iterator[Piece]:
    """A product. What marks a value as chosen is that it stands in quotes in the page's address."""
    where = address(query, chosen)
    yield from _head(instruction)
    yield Piece(PREVIOUS, "button")
    for name, values in product.options.items():
        yield Piece(name)
        for value in values:
            yield Piece(value, "option", f'"{value}"' in where)
    yield Piece(product.title)
    yield Piece(f"Price: {product.price_tag}")
    yield Piece("Rating: N.A.")
    for name in (*SUB_PAGES, BUY):
        yield Piece(name, "button")


def sub_page(instruction: str, product: Product, name: str) -> Iterator[Piece]:
    """The description or the features of a product, or its reviews, of which there are none."""
    yield from _head(instruction)
    yield Piece(PREVIOUS, "button")
    if name == "description":
        yield Piece(product.description)
    elif name == "features":
        for bullet in product.bullets:
            yield Piece(f" {bullet}")


def end_page(product: Product, chosen: Mapping[str, str], reward: float) -> Iterator[Piece]:
    """What is shown after the purchase. The goal itself stays hidden."""
    options = json.dumps(dict(chosen), sort_keys=True).translate(_ESCAPED)
    texts = ["Thank you for shopping with us!", "Your code: ", "None", " (Paste it in your MTurk interface.)"]
    texts += ["Purchased", "asin", product.asin, "options", options, "attrs", "None", "category", "None"]
    texts += ["query", "None", "product category", "None", "Target", "asin", "options", "attrs", "price upper"]
    texts += ["instuction text", "category", "product category", "query", "Goal ", "None"]
    texts += ["Reward", "Your score (min 0.0, max 1.0)", str(reward), "Reward Details ", "None"]
    yield from map(Piece, texts)


def address(query: str, chosen: Mapping[str, str]) -> str:
    """The part of a product's address that the shopper has a hand in."""
    return f"{query.replace(' ', '+')}/{json.dumps(dict(chosen))}"


def _head(instruction: str) -> Iterator[Piece]:
    yield Piece("Instruction:")
    yield Piece(instruction)
    yield Piece(BACK, "button")
