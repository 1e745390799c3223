"""A scripted shopper that does without reading: what a small policy can imitate."""

from __future__ import annotations

import random

from .engine import WebShopEngine, WebShopState
from .oracle import Step, search_words


class QuickShopper:
    """Buys the first product that it finds.

    Searches for the words of the instruction, opens the first product of the first page, chooses what the instruction
    says as far as it is offered, and buys. It compares nothing, never reads a description or the features and never
    goes back.

    Args:
        engine ([`WebShopEngine`]): a session in the mode `"text"`, just reset.
        draw (`random.Random`, *optional*): where its forgetting comes from.
        forgets (`float`, *optional*, defaults to `0.0`): probability that it leaves out a choice, for each.
    """

    def __init__(self, engine: WebShopEngine, draw: random.Random | None = None, forgets: float = 0.0) -> None:
        self.engine = engine
        self._goal = engine.goal
        wanted = [option if isinstance(option, str) else option[1] for option in self._goal.options]
        draw = draw or random.Random(0)
        self._left = [value for value in wanted if draw.random() >= forgets]

    def act(self, state: WebShopState) -> str:
        """Answers a page with the next action. Called once for each step of the session."""
        texts = state.available_actions["clickables"]
        if state.available_actions["has_search_bar"]:
            return f"search[{search_words(self._goal.instruction)}]"
        if "next >" in texts:
            products = [text for text in texts if self.engine.catalogue.product(text)]
            return f"click[{(products or ['back to search'])[0]}]"
        if "buy now" not in texts:
            return "click[< prev]"
        choice = next((value for value in self._left if value in texts), "buy now")
        if choice in self._left:
            self._left.remove(choice)
        return f"click[{choice}]"


def quick_demonstration(
    engine: WebShopEngine, goal: int, draw: random.Random, forgets: float = 0.0, max_steps: int = 15
) -> list[Step]:
    """Plays one goal as [`QuickShopper`] does.

    Args:
        engine, draw, forgets: as there.
        goal (`int`): number of the goal.
        max_steps (`int`, *optional*, defaults to `15`): steps after which it ends.
    """
    state = engine.reset(goal)
    shopper = QuickShopper(engine, draw, forgets)
    steps: list[Step] = []
    while not state.done and len(steps) < max_steps:
        action = shopper.act(state)
        steps.append(Step(state.observation, action, True))
        state = engine.step(action)
    return steps
