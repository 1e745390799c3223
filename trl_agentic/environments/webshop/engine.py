"""The shop as a text game: same pages, same actions and same rewards as WebShop's own."""

from __future__ import annotations

import operator
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, SupportsIndex, TypedDict, get_args

from . import pages
from .catalogue import WebShopCatalogue
from .product import Product
from .reward import Goal, Reward


_SUB_PAGES = {name.lower() for name in pages.SUB_PAGES}


class AvailableActions(TypedDict):
    """What can be done on a page."""

    has_search_bar: bool
    clickables: list[str]


@dataclass(frozen=True, slots=True)
class WebShopState:
    """State that the shopper sees.

    Attributes:
        observation (`str`): the page.
        available_actions (`dict`): `has_search_bar` (`bool`) and `clickables` (`list[str]`), the texts that
            `click[...]` takes, in lower case. `search[...]` works on every page, search bar or not.
        reward (`float`): 0, and what the purchase is worth when it is made.
        done (`bool`): whether something was bought.
    """

    observation: str
    available_actions: AvailableActions
    reward: float
    done: bool


def name_and_argument(action: str) -> tuple[str, str] | None:
    """The parts of `name[argument]`, as `(.+)\\[(.+)\\]` finds them from the start, in time linear in the length.

    Args:
        action (`str`): any string.

    Returns:
        What stands before the last bracket that something in brackets follows, and the argument in lower case; `None`
        if the action has no such form.
    """
    line = action.partition("\n")[0]
    close = line.rfind("]")
    opening = line.rfind("[", 1, max(close - 1, 0))
    return None if opening < 0 else (line[:opening], line[opening + 1 : close].lower())


def is_something(action: str, clickables: Collection[str]) -> bool:
    """Whether an action is a search, or a click on one of the texts."""
    parts = name_and_argument(action)
    if parts is None:
        return False
    name, argument = parts
    return name == "search" or (name == "click" and argument != "search" and argument in clickables)


class WebShopEngine:
    """One shopper's session.

    Sessions share the catalogue and nothing else; a session is a few hundred bytes. It can be pickled, which copies
    the catalogue. One engine must not be used by two threads at a time; different engines may.

    Args:
        catalogue ([`WebShopCatalogue`]): the shop.
        mode (`str`, *optional*, defaults to `"text"`): `"text"`: the pieces of a page joined by ` [SEP] `, chosen
            options not shown. `"text_rich"`: a piece a line, with buttons, visited products and chosen options marked.
        human_goals (`bool`, *optional*, defaults to `False`): whether a number in `reset` is that of a goal that
            people wrote.

    Attributes:
        query (`str`): the last search.
        product ([`Product`], *optional*): the product that is open.
        chosen (`dict[str, str]`): its chosen options, name to value.
        purchase ([`Reward`], *optional*): what was bought is worth, term by term.

    Raises:
        ValueError: there is no such mode.

    Example:

    ```python
    >>> engine = WebShopEngine(WebShopCatalogue.generate())
    >>> engine.reset(goal=0).observation
    >>> engine.step("search[desk lamp]").available_actions["clickables"]
    ```
    """

    def __init__(self, catalogue: WebShopCatalogue, mode: pages.Mode = "text", human_goals: bool = False) -> None:
        if mode not in get_args(pages.Mode):
            raise ValueError(f"WebShopEngine: `mode` must be 'text' or 'text_rich', got {mode!r}.")
        self.catalogue = catalogue
        self.mode = mode
        self.human_goals = human_goals
        self._goal: Goal | None = None

    def reset(self, goal: Goal | Mapping[str, Any] | SupportsIndex) -> WebShopState:
        """Starts a session.

        Args:
            goal ([`Goal`], `dict` or `int`): what to shop for; a dict with WebShop's keys, or the number of a goal of
                the catalogue.

        Raises:
            IndexError: there is no goal of that number.
            ValueError: a key of the dict is missing.
        """
        if isinstance(goal, Mapping):
            goal = Goal.from_dict(goal)
        elif not isinstance(goal, Goal):
            goals, number = self.catalogue.goals(self.human_goals), operator.index(goal)
            if not 0 <= number < len(goals):
                raise IndexError(f"No goal {number}: the catalogue has {len(goals)} goals, counted from 0.")
            goal = goals[number]
        self._goal = goal
        self._page = "search"
        self.query = ""
        self._results: tuple[Product, ...] = ()
        self._page_number = 1
        self.product: Product | None = None
        self._visited: set[str] = set()
        self.chosen: dict[str, str] = {}
        self.purchase: Reward | None = None
        return self._state(0.0)

    @property
    def has_search_bar(self) -> bool:
        """Whether the session is on the page that it started on."""
        return self._page == "search"

    @property
    def goal(self) -> Goal:
        """What the session shops for.

        Raises:
            RuntimeError: the engine was not reset before.
        """
        if self._goal is None:
            raise RuntimeError("WebShopEngine was used before reset.")
        return self._goal

    def step(self, action: str) -> WebShopState:
        """Does one thing: `search[words]`, or `click[text]` with one of the clickables, in upper or lower case.

        Whatever else is given changes nothing, and so does every action after a purchase; no text raises.

        Args:
            action (`str`): any string.

        Raises:
            RuntimeError: the engine was not reset before.
        """
        goal = self.goal
        parts = name_and_argument(action)
        if self.purchase is not None or parts is None:
            return self._state(0.0)
        name, argument = parts
        if name == "search":
            self._search(argument)
        elif name == "click":
            if argument == "buy now" and self._page == "item" and self.product is not None:
                self.purchase = self.catalogue.reward(goal, self.product, self.chosen.values())
                self._page = "end"
                return self._state(self.purchase.total)
            self._click(argument)
        return self._state(0.0)

    def does_something(self, action: str) -> bool:
        """Whether an action is a search, or a click on something that is there."""
        return self.purchase is None and is_something(action, self._clickables())

    def _search(self, query: str) -> None:
        self._page, self._page_number = "results", 1
        self.query, self._results = query, self.catalogue.search(query)
        self.product, self.chosen = None, {}

    def _click(self, text: str) -> None:
        if self._page == "search":
            return
        if text == "back to search":
            self._page, self._visited = "search", set()
            self.product, self.chosen = None, {}
        elif self._page == "results":
            if text == "next >":
                self._page_number += 1
            elif text == "< prev" and self._page_number > 1:
                self._page_number -= 1
            else:
                shown = pages.on_page(self._results, self._page_number)
                product = next((product for product in shown if product.asin.lower() == text), None)
                if product is not None:
                    self._page, self.product = "item", product
                    self._visited.add(product.asin)
        elif self._page == "item":
            if text == "< prev":
                self._go_back()
            elif text in _SUB_PAGES:
                self._page = text
            elif self.product is not None and text in self.product.option_of:
                self.chosen[self.product.option_of[text]] = text
        elif text == "< prev":
            self._go_back()

    def _go_back(self) -> None:
        """From a product to the results, from a page below it to the product.

        The shop reads from the page's address where it is, and the query stands in the address: a query can name
        another place.
        """
        here = "item_page" if self._page == "item" else "item_sub_page"
        address = f"{here}/{pages.address(self.query, self.chosen)}"
        place = next(name for name in ("search_results", "item_page", "item_sub_page") if name in address)
        if place == "item_sub_page":
            self._page = "item"
            return
        self._page, self.product, self.chosen = "results", None, {}
        if place == "search_results":
            self._page_number -= 1

    def page(self) -> Iterable[pages.Piece]:
        """The page that the shopper sees, piece by piece."""
        instruction = self.goal.instruction
        if self._page == "search":
            return pages.search_page(instruction)
        if self._page == "results":
            return pages.results_page(instruction, self._results, self._page_number, self._visited)
        assert self.product is not None
        if self._page == "item":
            return pages.item_page(instruction, self.product, self.query, self.chosen)
        if self.purchase is not None:
            return pages.end_page(self.product, self.chosen, self.purchase.total)
        return pages.sub_page(instruction, self.product, self._page)

    def _clickables(self) -> list[str]:
        """Buttons first, then products or options; each text once."""
        if self._page == "search":
            return ["search"]
        if self._page == "end":
            return []
        if self._page == "results":
            before = ["< prev"] if self._page_number > 1 else []
            shown = pages.on_page(self._results, self._page_number)
            return ["back to search", *before, "next >", *(product.asin.lower() for product in shown)]
        if self._page == "item" and self.product is not None:
            buttons = ["back to search", "< prev", "description", "features", "reviews", "buy now"]
            return list(dict.fromkeys([*buttons, *self.product.option_of]))
        return ["back to search", "< prev"]

    def _state(self, reward: float) -> WebShopState:
        return WebShopState(
            observation=pages.render(self.page(), self.mode),
            available_actions={"has_search_bar": self.has_search_bar, "clickables": self._clickables()},
            reward=reward,
            done=self.purchase is not None,
        )
