"""Text to search terms, as Lucene's English analyzer makes them: Unicode words, stop words, Porter stems."""

from __future__ import annotations

import re
from functools import lru_cache

import regex


STOP_WORDS = frozenset(
    "a an and are as at be but by for if in into is it no not of on or such that the their then there these they this "
    "to was will with".split()
)
MAX_TOKEN_LENGTH = 255

# Words by the default boundaries of Unicode (UAX #29). In ASCII text, letters are joined by : . ' and digits by , ; .
# '
_ASCII_TOKEN = re.compile(r"_*[A-Za-z0-9](?:[A-Za-z0-9_]|(?<=[A-Za-z])[:.'](?=[A-Za-z])|(?<=[0-9])[,;.'](?=[0-9]))*")
_IGNORED = r"[\p{WB=Extend}\p{WB=Format}\p{WB=ZWJ}]*"
_LETTER = rf"[\p{{WB=ALetter}}\p{{WB=Hebrew_Letter}}]{_IGNORED}"
_DIGIT = rf"\p{{WB=Numeric}}{_IGNORED}"
_CONNECTOR = rf"(?:\p{{WB=ExtendNumLet}}{_IGNORED})*"
_BETWEEN_LETTERS = rf"[\p{{WB=MidLetter}}\p{{WB=MidNumLet}}:']{_IGNORED}"
_BETWEEN_DIGITS = rf"[\p{{WB=MidNum}}\p{{WB=MidNumLet}}']{_IGNORED}"
# Extended_Pictographic as Unicode 11 had it, which is what Lucene 8 knows; later versions cut it down.
_PICTURE = (
    r"[\u00a9\u00ae\u203c\u2049\u2122\u2139\u2194-\u2199\u21a9\u21aa\u231a\u231b\u2328\u2388\u23cf\u23e9-\u23f3"
    r"\u23f8-\u23fa\u24c2\u25aa\u25ab\u25b6\u25c0\u25fb-\u25fe\u2600-\u2605\u2607-\u2612\u2614-\u2685\u2690-\u2705"
    r"\u2708-\u2712\u2714\u2716\u271d\u2721\u2728\u2733\u2734\u2744\u2747\u274c\u274e\u2753-\u2755\u2757\u2763-\u2767"
    r"\u2795-\u2797\u27a1\u27b0\u27bf\u2934\u2935\u2b05-\u2b07\u2b1b\u2b1c\u2b50\u2b55\u3030\u303d\u3297\u3299"
    r"\U0001f000-\U0001f0ff\U0001f10d-\U0001f10f\U0001f12f\U0001f16c-\U0001f171\U0001f17e\U0001f17f\U0001f18e"
    r"\U0001f191-\U0001f19a\U0001f1ad-\U0001f1e5\U0001f201-\U0001f20f\U0001f21a\U0001f22f\U0001f232-\U0001f23a"
    r"\U0001f23c-\U0001f23f\U0001f249-\U0001f3fa\U0001f400-\U0001f53d\U0001f546-\U0001f64f\U0001f680-\U0001f6ff"
    r"\U0001f774-\U0001f77f\U0001f7d5-\U0001f7ff\U0001f80c-\U0001f80f\U0001f848-\U0001f84f\U0001f85a-\U0001f85f"
    r"\U0001f888-\U0001f88f\U0001f8ae-\U0001f8ff\U0001f90c-\U0001f90f\U0001f910-\U0001f93a\U0001f93c-\U0001f945"
    r"\U0001f947-\U0001fffd]"
)
_TOKEN = regex.compile(
    "|".join(
        (
            rf"{_CONNECTOR}(?:(?:{_LETTER}(?:{_BETWEEN_LETTERS}(?={_LETTER}))?"
            rf"|{_DIGIT}(?:{_BETWEEN_DIGITS}(?={_DIGIT}))?){_CONNECTOR})+",
            rf"{_CONNECTOR}(?:\p{{WB=Katakana}}{_IGNORED}{_CONNECTOR})+",
            rf"[\p{{Script=Han}}\p{{Script=Hiragana}}]{_IGNORED}",
            r"\p{LB=SA}+",  # scripts without spaces: Thai, Lao, Khmer, Burmese
            rf"{_PICTURE}(?:\u200d{_PICTURE}|{_IGNORED[:-1]})*",
            r"\p{RI}\p{RI}",
        )
    ),
    regex.V1,
)
_POSSESSIVE = ("'s", "\u2019s", "\uff07s", "'S", "\u2019S", "\uff07S")


def analyze(text: str) -> list[str]:
    """The search terms of a text, in order.

    Args:
        text (`str`): any string, unpaired surrogates included.

    Returns:
        `list[str]`: stems; stop words are left out.
    """
    found = _ASCII_TOKEN.findall(text) if text.isascii() else _TOKEN.findall(text)
    terms = []
    for token in found:
        if len(token) > MAX_TOKEN_LENGTH:
            pieces = [token[i : i + MAX_TOKEN_LENGTH] for i in range(0, len(token), MAX_TOKEN_LENGTH)]
        else:
            pieces = [token]
        for piece in pieces:
            term = _term(piece)
            if term:
                terms.append(term)
    return terms


@lru_cache(maxsize=1 << 16)
def _term(token: str) -> str:
    """The stem of a word; empty for a stop word."""
    word = (token[:-2] if token.endswith(_POSSESSIVE) else token).lower()
    return "" if word in STOP_WORDS else stem(word)


def stem(word: str) -> str:
    """Porter's stem (1980) of a lower-case word, with the two departures of his own later programs: -bli, -logi."""
    if len(word) < 3:
        return word
    word = _inflection(word)
    word = _derivation(word, _DOUBLE_SUFFIXES, least=1)
    word = _derivation(word, _SUFFIXES, least=1)
    word = _last_suffix(word)
    return _tidy(word)


def _shape(word: str) -> str:
    """`c` for each consonant, `v` for each vowel; y is a vowel after a consonant."""
    shape = ""
    for letter in word:
        is_vowel = letter in "aeiou" or (letter == "y" and shape.endswith("c"))
        shape += "v" if is_vowel else "c"
    return shape


def _measure(word: str) -> int:
    """Number of vowel-consonant sequences: m of [C](VC)^m[V]."""
    return _shape(word).count("vc")


def _has_vowel(word: str) -> bool:
    return "v" in _shape(word)


def _doubled(word: str) -> bool:
    return len(word) > 1 and word[-1] == word[-2] and _shape(word).endswith("c")


def _short_end(word: str) -> bool:
    """Consonant, vowel, consonant at the end, the last one none of w, x, y."""
    return _shape(word).endswith("cvc") and word[-1] not in "wxy"


def _inflection(word: str) -> str:
    """Plurals, past and continuous forms, and y after a vowel in the stem."""
    if word.endswith("s"):
        if word.endswith(("sses", "ies")):
            word = word[:-2]
        elif not word.endswith("ss"):
            word = word[:-1]
    if word.endswith("eed"):
        if _measure(word[:-3]) > 0:
            word = word[:-1]
    elif (word.endswith("ed") and _has_vowel(word[:-2])) or (word.endswith("ing") and _has_vowel(word[:-3])):
        word = word[: -2 if word.endswith("ed") else -3]
        if word.endswith(("at", "bl", "iz")):
            word += "e"
        elif _doubled(word):
            if word[-1] not in "lsz":
                word = word[:-1]
        elif _measure(word) == 1 and _short_end(word):
            word += "e"
    if word.endswith("y") and _has_vowel(word[:-1]):
        word = word[:-1] + "i"
    return word


_DOUBLE_SUFFIXES = (
    ("ational", "ate"),
    ("tional", "tion"),
    ("enci", "ence"),
    ("anci", "ance"),
    ("izer", "ize"),
    ("bli", "ble"),
    ("alli", "al"),
    ("entli", "ent"),
    ("eli", "e"),
    ("ousli", "ous"),
    ("ization", "ize"),
    ("ation", "ate"),
    ("ator", "ate"),
    ("alism", "al"),
    ("iveness", "ive"),
    ("fulness", "ful"),
    ("ousness", "ous"),
    ("aliti", "al"),
    ("iviti", "ive"),
    ("biliti", "ble"),
    ("logi", "log"),
)
_SUFFIXES = (
    ("icate", "ic"),
    ("ative", ""),
    ("alize", "al"),
    ("iciti", "ic"),
    ("ical", "ic"),
    ("ful", ""),
    ("ness", ""),
)
_LAST_SUFFIXES = tuple("al ance ence er ic able ible ant ement ment ent sion tion ou ism ate iti ous ive ize".split())


def _derivation(word: str, suffixes: tuple[tuple[str, str], ...], least: int) -> str:
    for suffix, replacement in suffixes:
        if word.endswith(suffix):
            rest = word[: -len(suffix)]
            return rest + replacement if _measure(rest) >= least else word
    return word


def _last_suffix(word: str) -> str:
    for suffix in _LAST_SUFFIXES:
        if word.endswith(suffix):
            kept = word[: -3 if suffix in ("sion", "tion") else -len(suffix)]
            return kept if _measure(kept) > 1 else word
    return word


def _tidy(word: str) -> str:
    """A last e, and one of two last l."""
    if word.endswith("e"):
        measure = _measure(word[:-1])
        if measure > 1 or (measure == 1 and not _short_end(word[:-1])):
            word = word[:-1]
    if word.endswith("ll") and _measure(word) > 1:
        word = word[:-1]
    return word
