"""The scripted shoppers, and the made-up shop that they learn their way around in."""

from __future__ import annotations

import random
import re

import pytest

from trl_agentic.environments.webshop import (
    SPLITS,
    RandomShopper,
    WebShopCatalogue,
    WebShopEngine,
    demonstration,
    generate_products,
    split_numbers,
)
from trl_agentic.environments.webshop.oracle import search_words


def sample(catalogue: WebShopCatalogue, split: str, count: int) -> list[int]:
    return random.Random(0).sample(split_numbers(len(catalogue.goals()), split), count)


@pytest.mark.parametrize("noise", [0.0, 0.2])
@pytest.mark.parametrize("split", SPLITS)
def test_the_shopper_reaches_the_ceiling(generated: WebShopCatalogue, split: str, noise: float):
    engine = WebShopEngine(generated)
    injected = read = 0
    numbers = sample(generated, split, 60)
    for number in numbers:
        steps, is_read = demonstration(engine, number, random.Random(number), noise)
        assert engine.purchase is not None and len(steps) <= 15
        assert engine.purchase.total == generated.best_purchase(engine.goal)[0]
        assert steps[-1].action == "click[buy now]" and steps[-1].is_expert
        injected += sum(not step.is_expert for step in steps)
        read += is_read
    assert (injected > 0) == (noise > 0)
    assert read > len(numbers) / 2  # mostly without looking the product up


def test_the_shopper_reaches_the_ceiling_of_the_official_goals(official: WebShopCatalogue):
    engine = WebShopEngine(official)
    goals = [*random.Random(0).sample(official.goals(), 60), *official.goals(human=True)]
    for goal in goals:
        demonstration(engine, goal)
        assert engine.purchase is not None
        assert engine.purchase.total >= official.best_purchase(goal)[0]


def test_a_random_shopper_is_far_from_it(generated: WebShopCatalogue):
    engine, scores = WebShopEngine(generated), []
    for number in sample(generated, "train", 100):
        state = engine.reset(number)
        shopper = RandomShopper(engine, random.Random(number))
        for _ in range(15):
            action = shopper.act(state)
            assert engine.does_something(action) or action == "click[search]" or state.done
            state = engine.step(action)
        scores.append(0.0 if engine.purchase is None else engine.purchase.total)
    assert 0.0 < sum(scores) / len(scores) < 0.5
    assert sum(score == 1.0 for score in scores) < 10


def test_a_demonstration_replays(generated: WebShopCatalogue):
    engine = WebShopEngine(generated)
    steps, _ = demonstration(engine, 3, random.Random(1), 0.2)
    assert demonstration(engine, 3, random.Random(1), 0.2)[0] == steps
    state = engine.reset(3)
    for step in steps:
        assert step.observation == state.observation
        state = engine.step(step.action)
    assert state.done


def test_search_words():
    text = "Find me non slip, easy clean desk lamps with oak finish with color: dark blue, and size: x-large"
    assert search_words(f"{text}, and price lower than 40.00 dollars") == (
        "non slip easy clean desk lamps oak finish dark blue x-large"
    )
    assert search_words("i need a mug") == "i need a mug"


def test_generated_products_follow_from_the_seed():
    products, nouns = generate_products(50, seed=3)
    again, _ = generate_products(80, seed=3)
    assert [repr(product) for product in again[:50]] == [repr(product) for product in products]
    other, _ = generate_products(50, seed=4)
    assert [product.title for product in other] != [product.title for product in products]
    assert set(nouns) == {product.title for product in products}


def test_generated_products_are_well_formed():
    products, nouns = generate_products(3000)
    assert len({product.asin for product in products}) == 3000
    for product in products:
        assert re.fullmatch(r"P\d\dX\d\d", product.asin)
        assert product.category in ("home", "fashion", "electronics", "beauty", "grocery")
        words = re.findall(r"[a-z]+", product.title.lower())
        assert set(nouns[product.title]) <= set(words) and len(nouns[product.title]) >= 4
        assert all(0.0 < price < 110.0 for price in product.prices)
        shown = " ".join(product.bullets).lower()
        assert all(attribute in shown for attribute in product.attributes)
        assert set(product.instruction_attributes) <= set(product.attributes)
        if product.instruction is not None:
            assert all(
                attribute in product.instruction for attribute in (product.query, *product.instruction_attributes)
            )


def test_generated_words_are_few(generated: WebShopCatalogue):
    """A few hundred whole words: a tokenizer of words needs no more, whatever the number of products."""

    def words(catalogue: WebShopCatalogue) -> set[str]:
        texts = [product.searchable_text for product in catalogue.products]
        texts += [f"{' '.join(product.bullets)} {product.product_category}" for product in catalogue.products]
        texts += [goal.instruction for goal in catalogue.goals()]
        return set(re.findall(r"[a-z]+", " ".join(texts).lower()))

    known = words(generated)
    assert 300 < len(known) < 500
    assert words(WebShopCatalogue.generate(1500, seed=7)) <= known


def test_generated_goals_are_as_hard_to_find_as_real_ones(generated: WebShopCatalogue):
    """Searching for the instruction: first .42, on the first page .92 (official 1,000 products: .52 and .92)."""
    goals = random.Random(1).sample(generated.goals(), 300)
    ranks = [
        [p.asin for p in generated.search(g.instruction.lower())].index(g.asin)
        for g in goals
        if g.asin in {p.asin for p in generated.search(g.instruction.lower())}
    ]
    assert 0.3 < sum(rank == 0 for rank in ranks) / 300 < 0.6
    assert 0.8 < sum(rank < 10 for rank in ranks) / 300 < 0.97
    assert len(ranks) / 300 > 0.95


def test_few_generated_goals_cannot_be_reached(generated: WebShopCatalogue):
    reached = sum(generated.best_purchase(goal)[0] == 1.0 for goal in generated.goals())
    assert 0.85 < reached / len(generated.goals()) < 0.97
