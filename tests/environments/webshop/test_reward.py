"""The reward, term by term, each case worked out by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from trl_agentic.environments.webshop import Goal, Product, WebShopCatalogue
from trl_agentic.environments.webshop.reward import (
    has_attribute,
    matched_options,
    plain_color,
    same_category,
    title_score,
    type_factor,
)


COLORS = ("black", "blue", "dark", "white")
GOAL = {
    "asin": "B000000001",
    "name": "Blue Clay Mug",
    "query": "mugs",
    "category": "garden",
    "product_category": "Home \u203a Kitchen \u203a Mugs",
    "instruction_text": "Find me hand made mugs with color: white, and size: small",
    "attributes": ["hand made"],
    "price_upper": 40.0,
    "goal_options": {"color": "white", "size": "small"},
}


def goal(**changes: Any) -> Goal:
    return Goal.from_dict({**GOAL, **changes})


def product(catalogue: WebShopCatalogue, number: int) -> Product:
    found = catalogue.product(f"B00000000{number}")
    assert found is not None
    return found


def test_everything_right_is_one(catalogue: WebShopCatalogue):
    reward = catalogue.reward(goal(), product(catalogue, 1), ["white", "small"])
    assert reward.total == 1.0
    assert (reward.attributes, reward.options, reward.price) == ((True,), (True, True), True)
    assert (reward.same_query, reward.same_category, reward.title_score, reward.type_factor) == (True, True, 1.0, 1.0)


def test_a_term_that_is_missed_costs_its_share(catalogue: WebShopCatalogue):
    """One attribute, two options and the price make four terms."""
    mug = product(catalogue, 1)
    assert catalogue.reward(goal(), mug, ["white"]).total == 3 / 4
    assert catalogue.reward(goal(), mug, []).total == 2 / 4
    assert catalogue.reward(goal(price_upper=24.99), mug, ["white", "small"]).total == 3 / 4
    assert catalogue.reward(goal(price_upper=25.0), mug, ["white", "small"]).total == 1.0
    assert catalogue.reward(goal(attributes=["dishwasher safe", "gold rim"]), mug, ["white", "small"]).total == 4 / 5


@pytest.mark.parametrize(
    ("same_query", "same_category", "score", "factor"),
    [
        (True, False, 0.5, 1.0),
        (False, True, 0.15, 1.0),
        (False, False, 0.21, 1.0),
        (False, False, 0.2, 0.5),  # as for a goal whose title has no nouns
        (False, False, 0.1, 0.5),
        (False, False, 0.09, 0.1),
        (True, True, 0.09, 0.1),  # the title overrules query and category
        (True, True, 0.0, 0.0),
        (True, False, 0.2, 1.0),
    ],
)
def test_type_factor(same_query: bool, same_category: bool, score: float, factor: float):
    assert type_factor(same_query, same_category, score) == factor


@pytest.mark.parametrize(
    ("bought", "wanted", "score"),
    [
        (["clay", "mug"], ["clay", "mug"], 1.0),
        (["mug"], ["clay", "mug", "tea"], 1 / 3),
        (["mug", "mug"], ["mug", "mug", "mug", "tea"], 1 / 4),  # different nouns over all nouns
        ([], ["mug"], 0.0),
        (["mug"], [], 0.2),
        ([], [], 0.2),
    ],
)
def test_title_score(bought: list[str], wanted: list[str], score: float):
    assert title_score(bought, wanted) == score


def test_another_product_of_the_query_counts_half_as_much_as_its_title(catalogue: WebShopCatalogue):
    red, hose = product(catalogue, 3), product(catalogue, 4)
    assert catalogue.reward(goal(price_upper=1e6), red, []).total == 1 / 4  # the price alone, of four terms
    assert catalogue.reward(goal(price_upper=1e6), hose, []).total == 0.0  # no noun in common


def test_a_goal_without_nouns(catalogue: WebShopCatalogue):
    nameless = replace(goal(price_upper=1e6), name="8 x 10", query="", product_category="")
    reward = catalogue.reward(nameless, product(catalogue, 4))
    assert (reward.title_score, reward.type_factor) == (0.2, 0.5)
    assert reward.total == 0.5 * 1 / 4


@pytest.mark.parametrize(
    ("bought", "wanted", "same"),
    [
        ("A \u203a B \u203a C", "A \u203a B \u203a D", True),
        ("A \u203a B", "B \u203a A", True),
        ("A \u203a B", "A \u203a C", False),
        ("A\u203aB", " A \u203a B ", True),
        ("A", "A", False),
        ("", "", False),
    ],
)
def test_same_category(bought: str, wanted: str, same: bool):
    assert same_category(bought, wanted) is same


@pytest.mark.parametrize(
    ("wanted", "attributes", "texts", "found"),
    [
        ("hand made", ["made hand"], [], True),  # the order of words does not matter
        ("hand made", ["hand made clay"], [], True),  # nor do further words
        ("hand made", ["handmade"], [], True),  # 2 * 8 letters of 9 + 8: 94 in 100
        ("hand made", ["machine made"], [], False),
        ("hand made", [], ["it is hand made here"], True),
        ("Hand made", [], ["it is hand made here"], False),  # texts are compared in lower case, the goal as it is
        ("hand made", [], [], False),
    ],
)
def test_attributes(wanted: str, attributes: list[str], texts: list[str], found: bool):
    assert has_attribute(wanted, attributes, texts) is found


def test_colors_are_brought_to_the_first_name_they_contain():
    assert plain_color("dark blue", COLORS) == "blue"  # blue comes before dark in the list
    assert plain_color("darkblue", COLORS) == "blue"
    assert plain_color("blackish white", COLORS) == "black"
    assert plain_color("red", COLORS) == "red"


def test_a_pair_holds_a_color_only_if_its_value_is_one():
    assert plain_color(("color", "blue"), COLORS) == "blue"
    assert plain_color(("color", "dark blue"), COLORS) == ("color", "dark blue")


@pytest.mark.parametrize(
    ("chosen", "wanted", "matches"),
    [
        (["white"], [("color", "white")], (True,)),
        (["dark blue"], [("color", "dark blue")], (True,)),  # blue is among the words color, dark, blue
        (["darkblue"], [("color", "darkblue")], (False,)),  # blue is none of the words color, darkblue
        (["darkblue"], ["darkblue"], (True,)),  # a person's goal has no name: both become blue
        (["light blue"], ["dark blue"], (True,)),  # and so do these
        (["small"], [("size", "small"), ("color", "white")], (True, False)),
        (["size"], [("size", "small")], (True,)),  # the name of an option is one of its words
        (["x-large"], [("size", "large")], (False,)),  # large, x | large, size: 2 * 5 letters of 5 + 7
        ([], [("size", "small")], (False,)),
        (["small"], [], ()),
    ],
)
def test_options(chosen: list[str], wanted: list[Any], matches: tuple[bool, ...]):
    assert matched_options(chosen, wanted, COLORS) == matches


def test_best_purchase_knows_what_the_reward_cannot_see(catalogue: WebShopCatalogue):
    best, choice = catalogue.best_purchase(goal())
    assert (best, choice) == (1.0, {"size": "small", "color": "white"})
    strange = goal(goal_options={"color": "darkwhite", "size": "small"})
    best, choice = catalogue.best_purchase(strange)
    assert best == 3 / 4
    assert choice["size"] == "small"
    with pytest.raises(ValueError, match="'B9' is not in this catalogue of 4 products"):
        catalogue.best_purchase(goal(asin="B9"))


def test_a_goal_keeps_its_form():
    assert goal().to_dict() == GOAL
    human = {**GOAL, "goal_options": []}
    assert Goal.from_dict(human).to_dict() == human
    with pytest.raises(ValueError, match="'attributes', 'price_upper'"):
        Goal.from_dict({key: value for key, value in GOAL.items() if key not in ("attributes", "price_upper")})
