"""Search terms and ranking, against examples of the algorithms' authors and scores worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trl_agentic.environments.webshop.analysis import STOP_WORDS, analyze, stem
from trl_agentic.environments.webshop.search import SearchIndex, byte_length


@pytest.mark.parametrize(
    ("text", "terms"),
    [
        ("The cats' toys", ["cat", "toi"]),
        ("men's MEN\u2019S T-shirts", ["men", "men", "t", "shirt"]),
        ("material:SOLID wood", ["material:solid", "wood"]),
        ("1,000.5 pcs 3.5oz 4:3", ["1,000.5", "pc", "3.5oz", "4", "3"]),
        ("snake_case _ __x", ["snake_cas", "__x"]),
        ("caf\u00e9 \u00fcber\u00ad", ["caf\u00e9", "\u00fcber\u00ad"]),
        (
            "\u6df1\u5733 \u30ab\u30bf\u30ab\u30ca \u3072\u3089",
            ["\u6df1", "\u5733", "\u30ab\u30bf\u30ab\u30ca", "\u3072", "\u3089"],
        ),
        ("\u2764\u2764 \u2605new\u00ae \u2618", ["\u2764", "\u2764", "\u2605", "new", "\u00ae", "\u2618"]),
        ("\u3010note\u3011 -- \u2013 !", ["note"]),
        ("", []),
        ("it was not", []),
    ],
)
def test_terms(text: str, terms: list[str]):
    assert analyze(text) == terms


def test_long_words_are_cut():
    assert [len(term) for term in analyze("x" * 600)] == [255, 255, 90]


def test_stop_words():
    assert len(STOP_WORDS) == 33


# Examples of the paper: M.F. Porter, An algorithm for suffix stripping, Program 14 (1980), run through all its steps.
STEMS = """
caresses caress ponies poni ties ti caress caress cats cat feed feed agreed agre plastered plaster bled bled
motoring motor sing sing conflated conflat troubled troubl sized size hopping hop tanned tan falling fall
hissing hiss fizzed fizz
failing fail filing file happy happi sky sky relational relat conditional condit rational ration valenci valenc
hesitanci hesit digitizer digit conformabli conform radicalli radic differentli differ vileli vile analogousli analog
vietnamization vietnam predication predic operator oper feudalism feudal decisiveness decis hopefulness hope
callousness callous formaliti formal sensitiviti sensit sensibiliti sensibl triplicate triplic formative form
formalize formal electriciti electr electrical electr hopeful hope goodness good revival reviv allowance allow
inference infer airliner airlin gyroscopic gyroscop adjustable adjust defensible defens irritant irrit
replacement replac adjustment adjust dependent depend adoption adopt communism commun activate activ
angulariti angular homologous homolog effective effect bowdlerize bowdler probate probat rate rate cease ceas
controll control roll roll
possibly possibl analogies analog archaeology archaeolog
""".split()


@pytest.mark.parametrize(("word", "expected"), list(zip(STEMS[::2], STEMS[1::2], strict=True)))
def test_stems_of_the_paper(word: str, expected: str):
    assert stem(word) == expected


@given(st.text(st.characters(exclude_categories=())))
def test_any_text_has_terms(text: str):
    """Unpaired surrogates included."""
    assert all(analyze(text))


@pytest.mark.parametrize(
    ("length", "kept"),
    [(0, 0), (23, 23), (24, 24), (39, 39), (40, 40), (41, 40), (42, 42), (57, 56), (127, 120), (1000, 984)],
)
def test_lengths_are_kept_in_a_byte(length: int, kept: int):
    assert byte_length(length) == kept


def test_score_by_hand():
    """Three documents of 2, 1 and 3 terms: average 2. `mug` stands in two of them, once each.

    idf = ln(1 + (3 - 2 + 0.5) / (2 + 0.5)) = ln 1.6. In the first document, of average length, the saturation is
    1 + 1 / (0.9 * (0.6 + 0.4 * 2 / 2)) = 1 + 1 / 0.9; in the third,
    1 + 1 / (0.9 * (0.6 + 0.4 * 3 / 2)) = 1 + 1 / 1.08.
    """
    index = SearchIndex(["blue mug", "glass", "mug mat red"])
    number = index.vocabulary["mug"]
    start, end = index._starts[number], index._starts[number + 1]
    assert index._documents[start:end].tolist() == [0, 2]
    assert index._idf[number] == pytest.approx(math.log(1.6), rel=1e-6)
    np.testing.assert_allclose(index._saturation[start:end], [1 + 1 / 0.9, 1 + 1 / 1.08], rtol=1e-6)
    assert index.search("mug") == [0, 2]
    assert index.search("glass mug") == [1, 0, 2]  # the rarer word weighs more
    assert index.search("nothing like it") == []


def test_repeated_words_weigh_more():
    index = SearchIndex(["red mug", "blue glass"])
    assert index.search("red red glass") == [0, 1]
    assert index.search("red glass glass") == [1, 0]


def test_equal_scores_keep_the_order_of_the_documents():
    index = SearchIndex(["red mug"] * 200)
    assert index.search("mug") == list(range(50))
    assert index.search("mug", limit=3) == [0, 1, 2]


def test_an_index_of_empty_documents():
    assert SearchIndex(["", "the"]).search("anything") == []
