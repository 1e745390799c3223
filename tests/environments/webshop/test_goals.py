"""Goals: what they ask for, and which split they belong to."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.environments.webshop.shop import RECORDS, record, small_shop
from trl_agentic.environments.webshop import SPLITS, WebShopCatalogue, WebShopEnv, split_numbers


def test_a_goal_for_each_combination_of_options(catalogue: WebShopCatalogue):
    """The mug has two sizes and two colours; the other products have no instruction."""
    goals = catalogue.goals()
    assert sorted(goal.options for goal in goals) == [
        (("color", "dark blue"), ("size", "12 | 14 oz")),
        (("color", "dark blue"), ("size", "small")),
        (("color", "white"), ("size", "12 | 14 oz")),
        (("color", "white"), ("size", "small")),
    ]
    assert {goal.attributes for goal in goals} == {("hand made",)}
    (limit,) = {goal.price_upper for goal in goals}
    assert limit in (40.0, 50.0, 60.0)  # the larger of two of 30, 40, 50, 60
    for goal in goals:
        (_, color), (_, size) = goal.options
        expected = (
            f"Find me hand made mugs with color: {color}, and size: {size}, and price lower than {limit:.2f} dollars"
        )
        assert goal.instruction == expected


def test_human_goals_ask_for_values(catalogue: WebShopCatalogue):
    (goal,) = catalogue.goals(human=True)  # an instruction without attributes is no goal
    assert goal.options == ("small", "dark blue")
    assert goal.instruction == f"i want a small blue mug, and price lower than {goal.price_upper:.2f} dollars"


@pytest.mark.parametrize(("price", "limited"), [("$979.9", True), ("$980.0", False), ("$5000.0", False)])
def test_no_limit_near_the_end_of_the_scale(tmp_path: Path, price: str, limited: bool):
    """980 and 990 are the last two steps."""
    shop = small_shop(tmp_path, records=[record("B000000001", "Mug", pricing=price)], nouns={"Mug": ["mug"]})
    (goal,) = shop.goals()
    assert ("price lower" in goal.instruction) is limited
    assert (goal.price_upper == 1e6) is not limited


def test_seeds_draw_other_prices(tmp_path: Path):
    small_shop(tmp_path)
    shops = [WebShopCatalogue.from_json(tmp_path, price_seed=seed) for seed in range(8)]
    prices = {shop.price(shop.products[2]) for shop in shops}
    assert len(prices) == 8
    assert all(19.5 <= price <= 35.25 for price in prices)
    assert len({shop.goals()[0].price_upper for shop in shops}) > 1
    assert {shop.price(shop.products[0]) for shop in shops} == {25.0}
    again = WebShopCatalogue.from_json(tmp_path, price_seed=3)
    assert again.goals() == shops[3].goals()


def test_shops_without_goals(tmp_path: Path):
    shop = small_shop(tmp_path, records=RECORDS[1:], human=None)
    with pytest.raises(ValueError, match="None of the 3 products has an instruction"):
        shop.goals()
    with pytest.raises(ValueError, match="None of the 3 products has instructions that people wrote"):
        shop.goals(human=True)


@pytest.mark.parametrize("count", [1501, 4474, 6910])
def test_splits_cover_all_goals_and_never_overlap(count: int):
    numbers = {split: list(split_numbers(count, split)) for split in SPLITS}
    assert {split: len(found) for split, found in numbers.items()} == {
        "test": 500,
        "eval": 1000,
        "train": count - 1500,
    }
    assert numbers["test"] + numbers["eval"] + numbers["train"] == list(range(count))


def test_splits_of_the_environment_share_no_goal(generated: WebShopCatalogue):
    numbers = {split: [row["goal"] for row in WebShopEnv(split).tasks()] for split in SPLITS}
    everything = generated.goals()
    goals = {split: {(everything[i].asin, everything[i].options) for i in found} for split, found in numbers.items()}
    for split, other in (("test", "eval"), ("test", "train"), ("eval", "train")):
        assert not goals[split] & goals[other], f"{split} and {other}"


@pytest.mark.parametrize(("count", "split"), [(13, "eval"), (500, "eval"), (1500, "train")])
def test_an_empty_split_is_an_error(count: int, split: str):
    with pytest.raises(ValueError, match=f"split '{split}' is empty: there are {count} goals"):
        split_numbers(count, split)
    with pytest.raises(ValueError, match="Unknown WebShop split 'valid'"):
        split_numbers(count, "valid")
