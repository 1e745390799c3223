import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trl_agentic.environments.search.answers import Move, exact_match, f1, normalize, parse_plain, parse_tags


@pytest.mark.parametrize(
    ("turn", "move"),
    [
        ("<think>a</think><search>Silver Lantern</search>", Move("search", "Silver Lantern", True)),
        ("<think>a</think>\n\n<answer>\n Mira \n Dalton</answer>\n", Move("answer", "Mira Dalton", True)),
        ("<THINK></THINK><Search>x</SEARCH>", Move("search", "x", True)),
        ("So: <think>a</think> then <search>x</search> please", Move("search", "x", True)),
        ("<think>a < b > c</think><search>x < y</search>", Move("search", "x < y", True)),
        # without a thought, twice, misordered, unpaired, nested, with a result of its own
        ("<search>x</search>", Move("search", "x", False)),
        ("<answer>x</answer>", Move("answer", "x", False)),
        ("<think>a</think><search>x</search><search>y</search>", Move("search", "x", False)),
        ("<think>a</think><answer>x</answer><answer>y</answer>", Move("answer", "y", False)),
        ("<think>a</think><search>x</search><answer>y</answer>", Move("answer", "y", False)),
        ("<search>x</search><think>a</think>", Move("search", "x", False)),
        ("<think>a<search>x</search>", Move("search", "x", False)),
        ("<think>a</think></think><answer>x</answer>", Move("answer", "x", False)),
        ("<think>a <answer>x</answer></think><search>y</search>", Move("search", "y", False)),
        ("<think>a</think><search>x</search><result>y</result>", Move("search", "x", False)),
        # neither
        ("<think>a</think><search>x", Move(None, "", False)),
        ("<think>a</think><search> </search>", Move(None, "", False)),
        ("<think>a</think><answer></answer>", Move(None, "", False)),
        ("<think><answer>x</answer></think>", Move(None, "", False)),
        ("Paris", Move(None, "", False)),
        ("", Move(None, "", False)),
    ],
)
def test_tags(turn, move):
    assert parse_tags(turn) == move


@pytest.mark.parametrize(
    ("turn", "move"),
    [
        ("search Silver Lantern", Move("search", "Silver Lantern", True)),
        ("  answer  Mira\n Dalton \n", Move("answer", "Mira Dalton", True)),
        ("answer search", Move("answer", "search", True)),
        ("search", Move(None, "", False)),
        ("answer  ", Move(None, "", False)),
        ("searching Silver", Move(None, "", False)),
        ("Search Silver", Move(None, "", False)),
        ("Mira Dalton", Move(None, "", False)),
        ("", Move(None, "", False)),
    ],
)
def test_plain(turn, move):
    assert parse_plain(turn) == move


FRAGMENTS = ["<think>", "</think>", "<search>", "</search>", "<answer>", "</answer>", "<result>", "search ", "answer "]
turns = st.lists(st.one_of(st.sampled_from(FRAGMENTS), st.text(max_size=8)), max_size=9).map("".join)


@given(turns)
def test_every_turn_means_something(turn):
    for parse in (parse_tags, parse_plain):
        move = parse(turn)
        assert (move.kind is None) == (move.text == "")
        assert move.text == " ".join(move.text.split())
        assert move.kind is not None or not move.is_well_formed


@pytest.mark.parametrize(
    ("answer", "normal"),
    [
        ("The Beatles", "beatles"),
        ("  an  Apple, a day! ", "apple day"),
        ("U.S.A.", "usa"),
        ("Theodore", "theodore"),
        ("the", ""),
        ("Ünal", "ünal"),
    ],
)
def test_normal_form(answer, normal):
    assert normalize(answer) == normal


@given(st.text(alphabet=string.printable))
def test_the_normal_form_of_a_normal_form_is_itself_unless_an_article_appears(text):
    once = normalize(text)
    assert once == " ".join(once.split())
    assert not set(once) & set(string.punctuation)
    assert {"a", "an", "the"}.isdisjoint(once.split())


def test_exact_match_takes_any_alias():
    assert exact_match("the Castle Hill.", ["Otter Mill", "castle hill"]) == 1.0
    assert exact_match("Castle", ["Castle Hill"]) == 0.0


def test_f1_by_hand():
    # Two of three words are right, two of two are found: precision 2/3, recall 1, harmonic mean 4/5.
    assert f1("old Castle Hill", ["Castle Hill", "Otter"]) == pytest.approx(0.8)
    # "hill" counts once: one of two right, one of two found.
    assert f1("hill hill", ["castle hill"]) == pytest.approx(0.5)
    assert f1("Otter", ["Castle Hill", "Otter"]) == 1.0
    assert f1("Mill", ["Castle Hill"]) == 0.0
    assert f1("the", ["Castle Hill"]) == 0.0
