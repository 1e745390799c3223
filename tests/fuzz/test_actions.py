"""Every environment under text that nobody would expect; and what once failed."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tests.fuzz.actions import ENVIRONMENTS, TAGS, play


pytest.importorskip("rapidfuzz", reason="needs pip install trl-agentic[webshop]")
CORPUS = sorted((Path(__file__).parent / "corpus").glob("*.txt"))
every_environment = pytest.mark.parametrize("name", ENVIRONMENTS)


def actions(name: str) -> st.SearchStrategy[list[str]]:
    """Episodes of a few turns: anything, or pieces that mean something, well or badly put together."""
    pieces = st.sampled_from([*ENVIRONMENTS[name][2], *TAGS])
    put_together = st.lists(st.one_of(pieces, st.text(max_size=5)), max_size=10).map(" ".join)
    tight = st.lists(pieces, max_size=10).map("".join)
    anything = st.text(st.characters(exclude_categories=()), max_size=60)
    return st.lists(st.one_of(put_together, tight, anything), min_size=1, max_size=4)


@every_environment
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_whatever_the_policy_says_is_answered(name: str, data: st.DataObject):
    play(name, data.draw(actions(name)))


@every_environment
@example("")
@example("\x00")
@example("\ud800\udfff")
@example("<action>" * 3000)
@example("<think>" * 500 + "</think>" * 500 + "<action>look</action><action>inventory</action>")
@example("search[" * 2000)
@example("<search>a</search><answer>b</answer><search>c")
@example("\uff1caction\uff1elook\uff1c/action\uff1e")
@example("\u0130" * 200)
@example("x" * 200_000)
@settings(max_examples=1, deadline=None)
@given(action=st.just("look"))
def test_what_models_have_said_is_answered(name: str, action: str):
    play(name, [action, action])


@pytest.mark.parametrize("path", CORPUS, ids=lambda path: path.stem)
def test_what_once_failed_does_no_more(path: Path):
    """A file holds one episode: turns of UTF-8 (lone surrogates passed through), separated by form feeds."""
    episode = path.read_bytes().decode("utf-8", "surrogatepass").split("\f")
    for name in ENVIRONMENTS:
        play(name, episode)
