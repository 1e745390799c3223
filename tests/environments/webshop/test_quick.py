"""The quick shopper: what it looks at, what it forgets."""

from __future__ import annotations

import random

import pytest

from trl_agentic.environments.webshop import QuickShopper, WebShopCatalogue, WebShopEngine, quick_demonstration


def play(catalogue: WebShopCatalogue, forgets: float, count: int = 100) -> list[list[str]]:
    engine = WebShopEngine(catalogue)
    return [
        [step.action for step in quick_demonstration(engine, number, random.Random(number), forgets)]
        for number in range(count)
    ]


def test_an_episode_is_a_search_a_product_its_options_and_a_purchase(generated: WebShopCatalogue):
    for number, actions in enumerate(play(generated, 0.0)):
        goal = generated.goals()[number]
        assert actions[0].startswith("search[")
        asin = actions[1].removeprefix("click[").removesuffix("]")
        product = generated.product(asin)
        assert product is not None
        wanted = [value for _, value in goal.options if value in product.option_of]
        assert actions[2:] == [*(f"click[{value}]" for value in wanted), "click[buy now]"]


def test_it_opens_the_first_product(generated: WebShopCatalogue):
    engine = WebShopEngine(generated)
    for number in range(30):
        steps = quick_demonstration(engine, number, random.Random(0))
        assert generated.product(steps[1].action[6:-1]) == generated.search(engine.query)[0]


def test_forgetting_leaves_out_choices_and_nothing_else(generated: WebShopCatalogue):
    careful, forgetful, blind = (play(generated, forgets) for forgets in (0.0, 0.5, 1.0))
    for all_of, some, none in zip(careful, forgetful, blind, strict=True):
        assert none == [*all_of[:2], all_of[-1]]
        assert set(none) <= set(some) <= set(all_of)
    assert sum(map(len, blind)) < sum(map(len, forgetful)) < sum(map(len, careful))


@pytest.mark.parametrize("forgets", [0.0, 0.4])
def test_success_lies_between_chance_and_the_oracle(generated: WebShopCatalogue, forgets: float):
    engine, wins = WebShopEngine(generated), 0
    for number in range(500, 700):
        quick_demonstration(engine, number, random.Random(number), forgets)
        wins += engine.purchase is not None and engine.purchase.total == 1.0
    low, high = (0.3, 0.5) if forgets == 0.0 else (0.1, 0.25)
    assert low < wins / 200 < high


def test_it_finds_its_way_back_from_where_it_was_led(generated: WebShopCatalogue):
    engine = WebShopEngine(generated)
    engine.reset(0)
    shopper = QuickShopper(engine)
    engine.step(shopper.act(engine.step("click[search]")))
    state = engine.step("click[next >]")
    for _ in range(8):
        action = shopper.act(state)
        assert engine.does_something(action)
        state = engine.step("click[features]") if action == "click[buy now]" and not _ % 2 else engine.step(action)
        if state.done:
            return
    pytest.fail("it never bought anything")
