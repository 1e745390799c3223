"""The shop's pages written out by hand, what every action does, and that sessions are apart."""

from __future__ import annotations

import pickle
import re
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.environments.webshop.shop import RECORDS, option, record, small_shop
from trl_agentic.environments.webshop import Goal, WebShopCatalogue, WebShopEngine, WebShopState
from trl_agentic.environments.webshop.engine import name_and_argument


GOAL = Goal(
    asin="B000000001",
    name="Blue Clay Mug",
    query="mugs",
    category="garden",
    product_category="Home \u203a Kitchen \u203a Mugs",
    instruction="A mug, please",
    attributes=("hand made",),
    options=(("size", "small"),),
    price_upper=40.0,
)


def play(catalogue: WebShopCatalogue, *actions: str, mode: Any = "text") -> WebShopState:
    engine = WebShopEngine(catalogue, mode)
    state = engine.reset(GOAL)
    for action in actions:
        state = engine.step(action)
    return state


def test_search_page(catalogue: WebShopCatalogue):
    state = play(catalogue)
    assert state.observation == "WebShop [SEP] Instruction: [SEP] A mug, please [SEP] Search"
    assert state.available_actions == {"has_search_bar": True, "clickables": ["search"]}
    assert (state.reward, state.done) == (0.0, False)
    rich = "WebShop\nInstruction: \nA mug, please\n[button] Search [button_]\n"
    assert play(catalogue, mode="text_rich").observation == rich


def test_results_page(catalogue: WebShopCatalogue):
    state = play(catalogue, "search[clay mug]", mode="text_rich")
    assert state.observation == (
        "Instruction:\nA mug, please\n[button] Back to Search [button_]\nPage 1 (Total results: 2)\n"
        "[button] Next > [button_]\n"
        "\n[button] B000000003 [button_]\nRed Clay Mug\n$19.5 to $35.25\n"
        "\n[button] B000000001 [button_]\nBlue Clay Mug\n$25.0\n"
    )
    assert state.available_actions == {
        "has_search_bar": False,
        "clickables": ["back to search", "next >", "b000000003", "b000000001"],
    }


def test_next_never_ends_and_prev_appears(catalogue: WebShopCatalogue):
    state = play(catalogue, "search[clay mug]", "click[next >]", "click[next >]")
    assert "Page 3 (Total results: 2) [SEP] < Prev [SEP] Next >" in state.observation
    assert state.available_actions["clickables"] == ["back to search", "< prev", "next >"]
    again = play(catalogue, "search[clay mug]", "click[next >]", "click[< prev]", "click[< prev]")
    assert again == play(catalogue, "search[clay mug]")


def test_item_page(catalogue: WebShopCatalogue):
    state = play(catalogue, "search[mug]", "click[b000000001]", "click[Small]", "click[white]", mode="text_rich")
    assert state.observation == (
        "You have clicked white.\nYou have clicked small.\nInstruction:\nA mug, please\n"
        "[button] Back to Search [button_]\n[button] < Prev [button_]\n"
        "size\n  [clicked button] small [clicked button_]\n  [button] 12 | 14 oz [button_]\n"
        "color\n  [button] dark blue [button_]\n  [clicked button] white [clicked button_]\n"
        "Blue Clay Mug\nPrice: $25.0\nRating: N.A.\n"
        "[button] Description [button_]\n[button] Features [button_]\n[button] Reviews [button_]\n"
        "[button] Buy Now [button_]\n"
    )
    options = ["small", "12 | 14 oz", "dark blue", "white"]
    buttons = ["back to search", "< prev", "description", "features", "reviews", "buy now"]
    assert state.available_actions["clickables"] == [*buttons, *options]


def test_text_does_not_show_what_was_chosen(catalogue: WebShopCatalogue):
    opened = ("search[mug]", "click[b000000001]")
    assert play(catalogue, *opened) == play(catalogue, *opened, "click[small]")


def test_an_option_is_chosen_once(catalogue: WebShopCatalogue):
    engine = WebShopEngine(catalogue)
    engine.reset(GOAL)
    for action in ("search[mug]", "click[b000000001]", "click[small]", "click[white]", "click[12 | 14 oz]"):
        engine.step(action)
    assert engine.chosen == {"size": "12 | 14 oz", "color": "white"}
    engine.step("click[features]")
    engine.step("click[< prev]")
    assert engine.chosen == {"size": "12 | 14 oz", "color": "white"}
    engine.step("click[< prev]")
    assert engine.chosen == {}


@pytest.mark.parametrize(
    ("page", "text", "rich"),
    [
        ("description", " [SEP] A mug for tea.", "A mug for tea.\n"),
        ("features", " [SEP] Hand made & glazed [SEP] Dishwasher safe", " Hand made & glazed \n Dishwasher safe \n"),
        ("reviews", "", ""),
    ],
)
def test_pages_below_a_product(catalogue: WebShopCatalogue, page: str, text: str, rich: str):
    opened = ("search[mug]", "click[b000000001]", f"click[{page}]")
    state = play(catalogue, *opened)
    assert state.observation == f"Instruction: [SEP] A mug, please [SEP] Back to Search [SEP] < Prev{text}"
    assert state.available_actions == {"has_search_bar": False, "clickables": ["back to search", "< prev"]}
    assert play(catalogue, *opened, mode="text_rich").observation.endswith(f"[button] < Prev [button_]\n{rich}")
    assert play(catalogue, *opened, "click[< prev]") == play(catalogue, *opened[:2])


def test_visited_products_are_marked_until_the_search_page(catalogue: WebShopCatalogue):
    visit = ("search[clay mug]", "click[b000000001]", "click[< prev]")
    marked = "[clicked button] B000000001 [clicked button_]"
    assert marked in play(catalogue, *visit, mode="text_rich").observation
    assert marked in play(catalogue, *visit, "search[mug]", mode="text_rich").observation
    fresh = play(catalogue, *visit, "click[back to search]", "search[mug]", mode="text_rich")
    assert marked not in fresh.observation


def test_a_purchase_ends_the_session(catalogue: WebShopCatalogue):
    state = play(catalogue, "search[mug]", "click[b000000001]", "click[small]", "click[white]", "click[buy now]")
    assert (state.reward, state.done) == (1.0, True)
    assert state.available_actions == {"has_search_bar": False, "clickables": []}
    assert state.observation.startswith(
        "Thank you for shopping with us! [SEP] Your code: [SEP] None [SEP] (Paste it in"
    )
    assert '[SEP] options [SEP] {"color": "white", "size": "small"} [SEP] attrs' in state.observation
    assert state.observation.endswith("[SEP] Your score (min 0.0, max 1.0) [SEP] 1.0 [SEP] Reward Details [SEP] None")
    assert GOAL.instruction not in state.observation


def test_nothing_happens_after_a_purchase(catalogue: WebShopCatalogue):
    engine = WebShopEngine(catalogue)
    engine.reset(GOAL)
    for action in ("search[mug]", "click[b000000001]", "click[buy now]"):
        bought = engine.step(action)
    for action in ("search[mug]", "click[back to search]", "click[buy now]", ""):
        assert not engine.does_something(action)
        after = engine.step(action)
        assert (after.observation, after.reward, after.done) == (bought.observation, 0.0, True)
    assert engine.reset(GOAL).done is False


@pytest.mark.parametrize(
    "action",
    [
        "",
        "search",
        "search[]",
        "click[]",
        "buy now",
        "click[buy now",
        " click[buy now]",
        "Click[buy now]",
        "click [buy now]",
        "think\nclick[buy now]",
        "click[search]",
        "click[b000000002]",
        "click[next >]",
        "click[a][b]",
        "buy[mug]",
    ],
)
def test_broken_actions_change_nothing(catalogue: WebShopCatalogue, action: str):
    engine = WebShopEngine(catalogue)
    engine.reset(GOAL)
    for start in ("search[clay mug]", "click[b000000001]"):
        before = engine.step(start)
    assert not engine.does_something(action)
    assert engine.step(action) == before


def test_the_argument_reaches_to_the_last_bracket(catalogue: WebShopCatalogue):
    engine = WebShopEngine(catalogue)
    engine.reset(GOAL)
    engine.step("search[Mug] or glass] and more")
    assert engine.query == "mug] or glass"
    assert not engine.does_something("search[a [mug]")  # the name reaches to the last opening bracket, too


def test_searching_works_on_every_page_and_clears_the_options(catalogue: WebShopCatalogue):
    engine = WebShopEngine(catalogue)
    engine.reset(GOAL)
    for action in ("search[mug]", "click[b000000001]", "click[small]", "click[features]", "search[glass]"):
        state = engine.step(action)
    assert "b000000002" in state.available_actions["clickables"]
    assert engine.chosen == {}


@pytest.mark.parametrize(
    ("query", "asins"),
    [
        ("<a> hand made", ["B000000001"]),
        ("<a> nothing has this", []),
        ("<a>", []),
        ("<c> garden", ["B000000001", "B000000002", "B000000003", "B000000004"]),
        ("<c>", []),
        ("<q> mugs", ["B000000001", "B000000003"]),
        ("<q>mugs", ["B000000003", "B000000001"]),  # not marked: words to search for
    ],
)
def test_marked_queries(catalogue: WebShopCatalogue, query: str, asins: list[str]):
    found = [product.asin for product in catalogue.search(query)]
    assert found == asins or (query == "<q>mugs" and sorted(found) == sorted(asins))
    state = play(catalogue, f"search[{query}]")
    assert f"(Total results: {len(asins)})" in state.observation


def test_random_results_stay_the_same_over_pages(generated: WebShopCatalogue):
    results = generated.search("<r>")
    assert len(set(results)) == 50
    assert generated.search("<r>") == results
    assert generated.search("<r> again") != results


def test_a_query_can_name_a_place_in_the_shop(catalogue: WebShopCatalogue):
    """Pages are told apart by their address, which holds the query."""
    opened = ("search[clay mug item_page]", "click[b000000001]", "click[features]", "click[< prev]")
    assert "Page 1 (Total results: 2)" in play(catalogue, *opened).observation
    lost = ("search[clay mug search_results]", "click[b000000001]", "click[< prev]")
    assert "Page 0 (Total results: 2)" in play(catalogue, *lost).observation


def test_a_quoted_word_of_the_query_marks_an_option(catalogue: WebShopCatalogue):
    state = play(catalogue, 'search["white" mug]', "click[b000000001]", mode="text_rich")
    assert state.observation.startswith("You have clicked white.\n")


def test_two_options_with_one_value(tmp_path: Path):
    """The value belongs to the last option that has it, and is listed once."""
    options = {"Size": option("one", "two"), "Set": option("one")}
    shop = small_shop(tmp_path, records=[record("B1", "Mug", customization_options=options)], nouns={"Mug": ["mug"]})
    engine = WebShopEngine(shop)
    engine.reset(GOAL)
    for action in ("search[mug]", "click[b1]", "click[one]"):
        state = engine.step(action)
    assert engine.chosen == {"set": "one"}
    assert state.available_actions["clickables"].count("one") == 1


def test_html_in_the_data_is_text(tmp_path: Path):
    shop = small_shop(tmp_path, records=[record("B1", "<b>Mug</b> & [SEP] </s>")], nouns=None)
    engine = WebShopEngine(shop)
    engine.reset(GOAL)
    assert "[SEP] <b>Mug</b> & [SEP] </s> [SEP]" in engine.step("search[mug]").observation


broken = st.text(st.characters(exclude_categories=()), max_size=60)
arguments = st.one_of(
    broken,
    st.sampled_from(["mug", "clay mug", "<a> x", "<a>", "<c>", "<q>", "<r>", "mug " * 1500, "\ud800", "\x00"]),
    st.sampled_from(["b000000001", "B000000003", "small", "white", "buy now", "next >", "< prev", "back to search"]),
    st.sampled_from(["description", "Features", "reviews", "search", "search_results", "item_page", "item_sub_page"]),
)
actions = st.one_of(
    broken,
    st.builds("{}[{}]".format, st.sampled_from(["search", "click", "Click", "buy", ""]), arguments),
    st.builds("click[{}]".format, arguments),
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(actions, max_size=25), st.sampled_from(["text", "text_rich"]))
def test_no_action_raises_and_sessions_are_apart(catalogue: WebShopCatalogue, played: list[str], mode: Any):
    """A session that is played between the steps of another sees and changes nothing of it."""
    alone, watched, other = (WebShopEngine(catalogue, mode) for _ in range(3))
    first = alone.reset(GOAL)
    assert watched.reset(GOAL) == first
    other.reset(GOAL)
    for action, disturbance in zip(played, reversed(played), strict=True):
        before = pickle.dumps(first)
        state = alone.step(action)
        other.step(disturbance)
        assert watched.step(action) == state
        assert pickle.dumps(first) == before
        assert 0.0 <= state.reward <= 1.0
        assert state.done == (alone.purchase is not None)
        assert isinstance(state.observation, str)


def test_threads_share_a_catalogue(generated: WebShopCatalogue):
    def run(number: int) -> list[str]:
        engine = WebShopEngine(generated)
        engine.reset(number % 4)
        texts = []
        for action in (f"search[desk lamp {number % 4}]", "click[next >]", "click[< prev]"):
            texts.append(engine.step(action).observation)
        return texts

    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(run, range(40)))
    assert results == results[:4] * 10


def test_a_session_can_be_pickled(catalogue: WebShopCatalogue):
    engine = WebShopEngine(catalogue)
    engine.reset(GOAL)
    for action in ("search[mug]", "click[b000000001]", "click[small]"):
        engine.step(action)
    copy = pickle.loads(pickle.dumps(engine))
    assert copy.step("click[buy now]") == engine.step("click[buy now]")


def test_a_session_is_small(generated: WebShopCatalogue):
    """The goal of this engine: under 5 kB for each further environment, in the middle of an episode."""
    generated.goals()

    def start(number: int) -> WebShopEngine:
        engine = WebShopEngine(generated)
        engine.reset(number)
        results = engine.step("search[desk lamp]").available_actions["clickables"]
        engine.step(f"click[{results[2]}]")
        return engine

    start(0)
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        engines = [start(number) for number in range(200)]
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (after - before) / len(engines) < 5000


def test_wrong_use_is_named(catalogue: WebShopCatalogue):
    with pytest.raises(ValueError, match="`mode` must be 'text' or 'text_rich', got 'html'"):
        WebShopEngine(catalogue, "html")  # type: ignore[arg-type]
    engine = WebShopEngine(catalogue)
    with pytest.raises(RuntimeError, match="before reset"):
        engine.step("search[mug]")
    for number in (4, -1):
        with pytest.raises(IndexError, match=f"No goal {number}: the catalogue has 4 goals"):
            engine.reset(number)
    with pytest.raises(TypeError):
        engine.reset(0.5)  # type: ignore[arg-type]
    assert len(RECORDS) == len(catalogue)


@settings(max_examples=500, deadline=None)
@given(action=st.text("a[]\n", max_size=12))
def test_an_action_is_taken_apart_as_upstream_does(action: str):
    found = re.match(r"(.+)\[(.+)\]", action)
    assert name_and_argument(action) == (None if found is None else (found.group(1), found.group(2)))


def test_a_long_action_takes_no_long_time():
    assert name_and_argument("[" * 1_000_000) is None  # backtracking would take hours
