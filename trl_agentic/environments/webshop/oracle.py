"""Two scripted shoppers: one that earns what can be earned, and one that acts at random.

The first judges what it sees, as a policy must: it searches for the words of the instruction, opens products whose
title and price fit, compares their options and features with the goal, and buys the first that has everything. Where
that would take too many steps it looks up the product that the goal was made from.
"""

from __future__ import annotations

import random
import re
from typing import NamedTuple

from .analysis import analyze
from .engine import WebShopEngine, WebShopState
from .pages import PER_PAGE
from .product import Product
from .reward import Goal
from .site import UpstreamSiteEngine
from .upstream import UpstreamWebShopEngine


_PAGE = re.compile(r"Page (\d+) \(Total results: (\d+)\)")
_LIMIT = re.compile(r",? and price lower than .*$", re.DOTALL)
_FILLERS = {"find", "me", "with", "and"}


class Step(NamedTuple):
    """One step of a demonstration.

    Attributes:
        observation: the page before the action.
        action: what was done.
        is_expert: `False` for an injected action, which nothing should be trained to repeat.
    """

    observation: str
    action: str
    is_expert: bool


class Shopper:
    """Buys what a goal asks for, for the highest reward that the goal's own product can earn.

    ```python
    state = engine.reset(goal)
    shopper = Shopper(engine)
    while not state.done:
        state = engine.step(shopper.act(state))
    ```

    What was done since the last call, by the shopper or by someone else, is taken from the session.

    Args:
        engine ([`WebShopEngine`]): a session in the mode `"text"`, just reset.
        max_steps (`int`, *optional*, defaults to `15`): steps of the session; enough are kept for looking the product
            up.

    Attributes:
        looked_up (`bool`): whether that was done. What followed cannot be learned from the pages.

    Raises:
        ValueError: the goal's product is not in the catalogue.
    """

    def __init__(self, engine: WebShopEngine, max_steps: int = 15) -> None:
        self.engine = engine
        self.looked_up = False
        self._goal = engine.goal
        self._best, _ = engine.catalogue.best_purchase(self._goal)
        self._values = [option if isinstance(option, str) else option[1] for option in self._goal.options]
        self._kind = analyze(self._goal.query)[-1:]
        self._left = max_steps
        self._seen: set[str] = set()
        self._decided: Product | None = None

    def act(self, state: WebShopState) -> str:
        """Answers a page with the next action. Called once for each step of the session."""
        texts = state.available_actions["clickables"]
        # Looking it up takes a search, a click, the options and the purchase; one step is to spare.
        if self._decided is None and self._left <= len(self._goal.options) + 4:
            self._look_up()
        self._left -= 1
        if self._decided is not None:
            return self._buy(self._decided, texts)
        if "search" in texts:
            return f"search[{search_words(self._goal.instruction)}]"
        if "next >" in texts:
            return self._open_product(state.observation, texts)
        product = self.engine.product
        if product is not None and "buy now" in texts:
            return self._judge_options(product, texts)
        if product is not None and product.asin not in self._seen and self._has_attributes(state.observation, product):
            self._decided = product
        if product is not None:
            self._seen.add(product.asin)
        return "click[< prev]"

    def _look_up(self) -> None:
        self._decided = self.engine.catalogue.product(self._goal.asin)
        self.looked_up = True

    def _buy(self, product: Product, texts: list[str]) -> str:
        """The way to a product that is decided on, from wherever the session is."""
        if self.engine.product is product:
            if "buy now" not in texts:
                return "click[< prev]"
            _, choice = self.engine.catalogue.best_purchase(self._goal, product)
            missing = [value for name, value in choice.items() if self.engine.chosen.get(name) != value]
            return f"click[{missing[0] if missing else 'buy now'}]"
        if product.asin.lower() in texts:
            return f"click[{product.asin.lower()}]"
        title = " ".join(product.title.split())
        return "click[next >]" if "next >" in texts and self.engine.query == title.lower() else f"search[{title}]"

    def _open_product(self, page: str, texts: list[str]) -> str:
        """The first product that may be right and was not looked at, or the next page."""
        for asin in texts:
            product = self.engine.catalogue.product(asin)
            if product is not None and asin.upper() not in self._seen and self._may_be_right(product):
                return f"click[{asin}]"
        found = _PAGE.search(page)
        if found is not None and int(found[1]) * PER_PAGE < int(found[2]):
            return "click[next >]"
        self._look_up()
        assert self._decided is not None
        return self._buy(self._decided, texts)

    def _may_be_right(self, product: Product) -> bool:
        return set(self._kind) <= set(analyze(product.title)) and max(product.prices) <= self._goal.price_upper

    def _judge_options(self, product: Product, texts: list[str]) -> str:
        if product.asin not in self._seen and set(self._values) <= set(texts):
            return "click[features]"
        self._seen.add(product.asin)
        return "click[< prev]"

    def _has_attributes(self, page: str, product: Product) -> bool:
        # What the page shows decides; the reward has a say because it counts what no page shows, such as the query.
        shown = f"{page} {product.title}".lower().replace(self._goal.instruction.lower(), "")
        if not all(attribute in shown for attribute in self._goal.attributes):
            return False
        return self.engine.catalogue.best_purchase(self._goal, product)[0] >= self._best


class RandomShopper:
    """Searches for random words of the instruction and clicks on random things.

    Args:
        engine ([`WebShopEngine`], [`UpstreamWebShopEngine`] or [`UpstreamSiteEngine`]): a session, just reset.
        draw (`random.Random`): where its choices come from.
    """

    def __init__(
        self, engine: WebShopEngine | UpstreamWebShopEngine | UpstreamSiteEngine, draw: random.Random
    ) -> None:
        self._words = search_words(engine.goal.instruction).split() or ["product"]
        self._draw = draw

    def act(self, state: WebShopState) -> str:
        """Answers a page with an action that does something, as long as there is one."""
        texts = state.available_actions["clickables"]
        if state.available_actions["has_search_bar"] or not texts:
            words = self._draw.sample(self._words, self._draw.randint(1, len(self._words)))
            return f"search[{' '.join(words)}]"
        return f"click[{self._draw.choice(texts)}]"


def search_words(instruction: str) -> str:
    """The words of an instruction that are worth searching for, in their order, in lower case."""
    words = _LIMIT.sub("", instruction).lower().replace(",", " ").split()
    return " ".join(word for word in words if word not in _FILLERS and not word.endswith(":"))


def demonstration(
    engine: WebShopEngine,
    goal: Goal | int,
    draw: random.Random | None = None,
    noise: float = 0.0,
    max_steps: int = 15,
) -> tuple[list[Step], bool]:
    """Plays one goal.

    Args:
        engine ([`WebShopEngine`]): a session in the mode `"text"`; it is reset.
        goal ([`Goal`] or `int`): what to shop for.
        draw (`random.Random`, *optional*): where the random actions come from.
        noise (`float`, *optional*, defaults to `0.0`): probability of a random action, never a purchase, before a
            step of the shopper.
        max_steps (`int`, *optional*, defaults to `15`): steps of an episode.

    Returns:
        `tuple[list[Step], bool]`: the steps, and whether the pages alone led there (nothing was looked up).
    """
    draw = draw or random.Random(0)
    state = engine.reset(goal)
    shopper, chance = Shopper(engine, max_steps), RandomShopper(engine, draw)
    steps: list[Step] = []
    while not state.done and len(steps) < max_steps:
        action, is_expert = shopper.act(state), True
        if noise and draw.random() < noise and max_steps - len(steps) > len(engine.goal.options) + 6:
            wrong = chance.act(state)
            if wrong not in (action, "click[buy now]"):
                action, is_expert = wrong, False
        steps.append(Step(state.observation, action, is_expert))
        state = engine.step(action)
    return steps, not shopper.looked_up
