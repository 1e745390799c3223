"""Nouns of a title, which the reward compares: from a file, from spaCy, or by a heuristic."""

from __future__ import annotations

import json
import os
import re
import warnings
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from .analysis import STOP_WORDS


SPACY_MODEL = "en_core_web_sm"
_WORD = re.compile(r"[^\W\d_]{2,}")


class Nouns:
    """Nouns of titles, with a memory.

    A title that `known` does not have is parsed by spaCy (`en_core_web_sm`: what is tagged NOUN or PROPN) and
    remembered on disk, in `$XDG_CACHE_HOME/trl_agentic/webshop_nouns.jsonl`. Without spaCy every word of two letters
    or more that is no stop word counts as a noun, which the first such title warns of.

    Args:
        known (`Mapping[str, Sequence[str]]`): nouns of titles, in lower case, as often as they occur.
    """

    def __init__(self, known: Mapping[str, Any]) -> None:
        self._known = {title: tuple(nouns) for title, nouns in known.items()}

    def __call__(self, title: str) -> tuple[str, ...]:
        nouns = self._known.get(title)
        if nouns is None:
            nouns = self._known[title] = _parsed(title)
        return nouns


def words_as_nouns(title: str) -> tuple[str, ...]:
    """Every word of a title, stop words left out: what counts as a noun without spaCy."""
    return tuple(word for word in _WORD.findall(title.lower()) if word not in STOP_WORDS)


def _parsed(title: str) -> tuple[str, ...]:
    parse = _spacy()
    if parse is None:
        return words_as_nouns(title)
    remembered = _remembered()
    if title not in remembered:
        remembered[title] = tuple(token.text.lower() for token in parse(title) if token.pos_ in ("NOUN", "PROPN"))
        path = _cache_file()
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps([title, remembered[title]]) + "\n")
    return remembered[title]


@lru_cache(maxsize=1)
def _spacy() -> Callable[[str], Any] | None:
    try:
        import spacy

        return spacy.load(SPACY_MODEL, disable=["parser", "ner", "lemmatizer"])
    except (ImportError, OSError) as error:
        warnings.warn(
            f"WebShop titles without known nouns: neither a nouns*.json next to the data nor spaCy with {SPACY_MODEL} "
            f"({error}). All words of a title count as nouns. On the 1,000-product set this changes the reward of "
            "no purchase of a goal's own product, of 3% of all others, and of 8% of those from the first page that "
            "the instruction finds.",
            stacklevel=4,
        )
        return None


def _cache_file() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "trl_agentic" / "webshop_nouns.jsonl"


@lru_cache(maxsize=1)
def _remembered() -> dict[str, tuple[str, ...]]:
    path = _cache_file()
    if not path.is_file():
        return {}
    lines = path.read_text(encoding="utf-8").splitlines()
    try:
        return {title: tuple(nouns) for title, nouns in map(json.loads, lines)}
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path} is broken ({error}): delete it, and it is made again.") from error
