"""What the policy's text means: a search, an answer or neither; and what an answer is worth."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal


_TAG = re.compile(r"</?(think|search|result|answer)>", re.IGNORECASE)
_THOUGHT = re.compile(r"<think>.*?</think>", re.DOTALL | re.IGNORECASE)
_SEARCH = re.compile(r"<search>(.*?)</search>", re.DOTALL | re.IGNORECASE)
_ANSWER = re.compile(r"<answer>(.*?)</answer>", re.DOTALL | re.IGNORECASE)
_WELL_FORMED = [["<think>", "</think>", f"<{tag}>", f"</{tag}>"] for tag in ("search", "answer")]
_PLAIN = re.compile(r"\s*(search|answer)\s+(\S.*)", re.DOTALL)
_PUNCTUATION = str.maketrans("", "", string.punctuation)


@dataclass(frozen=True, slots=True)
class Move:
    """What one turn of the policy says.

    Attributes:
        kind: `"search"`, `"answer"`, or `None` if it says neither.
        text: the query or the answer, white space collapsed; never empty for a search or an answer.
        is_well_formed: whether the turn keeps to the format.
    """

    kind: Literal["search", "answer"] | None
    text: str
    is_well_formed: bool


def parse_plain(turn: str) -> Move:
    """Reads `search QUERY` or `answer TEXT`."""
    found = _PLAIN.fullmatch(turn)
    if found is None:
        return Move(None, "", False)
    return Move("search" if found[1] == "search" else "answer", _collapse(found[2]), True)


def parse_tags(turn: str) -> Move:
    """Reads `<think>...</think>` followed by `<search>QUERY</search>` or `<answer>TEXT</answer>`.

    In an ill-formed turn, the last answer outside of thoughts counts, or else the first search.
    """
    spoken = _THOUGHT.sub("", turn)
    answers = [text for text in map(_collapse, _ANSWER.findall(spoken)) if text]
    searches = [text for text in map(_collapse, _SEARCH.findall(spoken)) if text]
    is_well_formed = [tag[0].lower() for tag in _TAG.finditer(turn)] in _WELL_FORMED
    if answers:
        return Move("answer", answers[-1], is_well_formed)
    if searches:
        return Move("search", searches[0], is_well_formed)
    return Move(None, "", False)


def normalize(answer: str) -> str:
    """SQuAD's normal form: lower case, without punctuation and articles, single spaces."""
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", answer.lower().translate(_PUNCTUATION)).split())


def exact_match(answer: str, ground_truth: Sequence[str]) -> float:
    """1 if the answer equals an accepted one in normal form, else 0."""
    return float(normalize(answer) in {normalize(truth) for truth in ground_truth})


def f1(answer: str, ground_truth: Sequence[str]) -> float:
    """Word overlap with the accepted answer that fits best: the harmonic mean of precision and recall, in [0, 1]."""
    return max(_f1(normalize(answer).split(), normalize(truth).split()) for truth in ground_truth)


def _f1(words: list[str], truth: list[str]) -> float:
    shared = sum((Counter(words) & Counter(truth)).values())
    if not words or not truth:
        return float(words == truth)
    return 2 * shared / (len(words) + len(truth))


def _collapse(text: str) -> str:
    return " ".join(text.split())
