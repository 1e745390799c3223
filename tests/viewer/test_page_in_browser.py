"""Viewer page in a browser: contents, filters, keys, and that nasty text stays text. Skipped without a Chromium."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.viewer.browser import Browser, find_browser
from tests.viewer.pages import record, records
from tests.viewer.test_page import NASTY
from trl_agentic.viewer import render_page


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    program = find_browser()
    if program is None:
        pytest.skip("needs an installed Chromium or Chrome")
    browser = Browser(program, tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()


@pytest.fixture
def show(browser: Browser, tmp_path: Path) -> Iterator[Any]:
    """`show(records, fragment)` opens a page. Any problem that the browser reports fails the test."""
    browser.problems.clear()

    def open_page(rollouts: list[Any], fragment: str = "") -> Browser:
        file = tmp_path / "page.html"
        file.write_text(render_page({"run": rollouts}), encoding="utf-8")
        browser.open(file, fragment)
        return browser

    yield open_page
    assert browser.problems == []


def texts(browser: Browser, selector: str) -> list[str]:
    return browser.run(f"[...document.querySelectorAll({selector!r})].map((node) => node.textContent)")


def test_a_rollout_turn_by_turn(show: Any):
    browser = show(records(), "rollout=1&turn=1")
    assert texts(browser, ".turn pre") == [
        "You are start.", "go", "You are after go.", "oops", "You are after oops.", "look", "the end",
    ]  # fmt: skip
    header = texts(browser, ".turn.chosen header")[0]
    for part in ("turn 1", "advantage -0.5", "return 0", "V(s) 0.5", "ratio 1", "clip range [0.8, 1.25]", "invalid"):
        assert part in header
    assert "clipped" not in header
    assert "clipped" in texts(browser, ".turn header")[2]
    assert texts(browser, ".strip button.clipped") == ["2"]
    colours = browser.run(
        "[0, 1].map((i) => { choose(rollouts[i], 0);"
        " return getComputedStyle(document.querySelector('.strip button')).backgroundColor; })"
    )
    assert colours[0] != colours[1]  # an advantage of 0.5 and one of -0.5


def test_filters_select_and_count(show: Any):
    browser = show(records(), "task_type=Heat")
    assert [row.split()[0] for row in texts(browser, ".row")] == ["#2✓Heat1", "#3✗Heat0"]
    assert texts(browser, "#summary") == ["2 of 4 rollouts, success 1/2, mean return 0.5"]
    browser.run("Object.assign(document.querySelector('[name=success]'), {value: 'no'}).onchange()")
    assert texts(browser, ".row") == ["#3✗Heat0"]
    assert texts(browser, ".turn.chosen pre.action") == ["right"]
    assert "success=no" in browser.run("location.hash")
    browser.run("show({task_type: undefined, success: undefined, sort: 'return'})")
    assert [row[:2] for row in texts(browser, ".row")] == ["#1", "#3", "#0", "#2"]
    browser.run("show({search: 'OOPS'})")
    assert [row[:2] for row in texts(browser, ".row")] == ["#1"]
    browser.run("show({search: 'nowhere'})")
    assert "No rollout fits" in texts(browser, "main")[0]


def test_a_group_side_by_side_at_its_shared_states(show: Any):
    browser = show(records(), "rollout=1&turn=0&view=group")
    assert [text.split()[1] for text in texts(browser, "thead th")[1:]] == ["#0", "#1"]
    assert texts(browser, "tbody th pre") == ["start", "after go"]  # `after oops` is a state of one rollout
    assert texts(browser, "tbody th span") == ["2 visits, V(s) 0.5"] * 2
    assert texts(browser, "tbody tr:nth-child(2) td .visit pre") == ["take", "oops"]
    browser.run("show({all: '1'})")
    assert texts(browser, "tbody th pre") == ["start", "after go", "after oops"]
    browser.run("document.querySelectorAll('tbody .visit')[2].click()")
    assert browser.run("[state.rollout, state.turn]") == ["0", "1"]


def test_keys_select_rollouts_turns_and_views(show: Any):
    browser = show(records())

    def place() -> tuple[Any, ...]:
        return tuple(browser.run("[chosen().index, Number(state.turn ?? 0), state.view ?? 'rollout']"))

    for key, expected in [
        ("j", (1, 0, "rollout")), ("ArrowRight", (1, 1, "rollout")), ("ArrowRight", (1, 2, "rollout")),
        ("ArrowRight", (1, 2, "rollout")), ("ArrowLeft", (1, 1, "rollout")), ("]", (1, 0, "rollout")),
        ("[", (0, 0, "rollout")), ("j", (1, 0, "rollout")), ("j", (2, 0, "rollout")), ("g", (2, 0, "group")),
        ("k", (1, 0, "group")), ("g", (1, 0, "rollout")),
    ]:  # fmt: skip
        browser.press(key)
        assert place() == expected, key
    browser.press("?")
    assert browser.run("document.getElementById('help').open")
    browser.press("?")
    browser.press("t")
    first = browser.run("document.documentElement.dataset.theme")
    browser.press("t")
    assert {first, browser.run("document.documentElement.dataset.theme")} == {"light", "dark"}
    browser.press("/")
    browser.press("j")  # typed into the field, not a command
    assert browser.run("document.getElementById('search').value") == "j"
    assert place()[0] == 1


def test_nasty_text_stays_text(show: Any):
    text = "".join(NASTY).replace("\0", "")
    rollout = record(actions=(text, "take"), task_type=text, error=text)
    rollout["turns"][0]["observation"] = rollout["turns"][0]["anchor_state"] = text
    browser = show([rollout, record(1, 0)])
    assert texts(browser, ".turn pre")[:2] == [text, text]
    browser.press("g")
    assert browser.run("document.querySelectorAll('img, iframe, object').length") == 0
    assert browser.run("document.scripts.length") == 2


def test_two_thousand_rollouts_are_listed_and_filtered(show: Any):
    actions = tuple(f"go to shelf {i}" for i in range(30))
    group = [record(0, sample, actions) for sample in range(8)]
    browser = show([{**rollout, "group": i} for i in range(250) for rollout in group])
    assert len(texts(browser, ".row")) == 2000
    browser.run("show({success: 'no'}); choose(shown[9], 3); toggleGroup();")
    assert texts(browser, "#summary")[0].startswith("1750 of 2000")
