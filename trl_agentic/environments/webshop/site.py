"""Upstream WebShop as a web site, behind the interface of [`WebShopEngine`].

Upstream's pins are years old. Where its site runs, in a Python and on a machine of its own, its address is enough.
"""

from __future__ import annotations

import operator
import uuid
import warnings
from dataclasses import dataclass, field, replace
from html.parser import HTMLParser
from typing import Any, SupportsIndex
from urllib.parse import urljoin

from .engine import AvailableActions, WebShopState, is_something, name_and_argument
from .pages import Mode, Piece, render
from .reward import Goal


_VOID = set("area base br col embed hr img input link meta param source track wbr".split())
_UNSEEN = {"style", "script", "head", "title", "meta"}
_UNKNOWN = Goal("", "", "", "webshop", "", "", (), (), 1e6)


@dataclass(frozen=True, slots=True)
class _Target:
    """Where a click leads. `option` is the name of the option that it chooses."""

    url: str
    method: str
    option: str = ""


@dataclass(slots=True)
class _Page:
    pieces: list[Piece] = field(default_factory=list)
    buttons: dict[str, _Target] = field(default_factory=dict)
    products: dict[str, _Target] = field(default_factory=dict)
    options: dict[str, _Target] = field(default_factory=dict)
    has_search_bar: bool = False
    reward: float | None = None

    @property
    def targets(self) -> dict[str, _Target]:
        return self.buttons | self.products | self.options


class _Reader(HTMLParser):
    """Reads a page: its texts, what can be clicked, and the reward where it ends.

    As upstream's own agents find them: buttons of the class `btn` in forms, links of the class `product-link`, radio
    buttons with the address of their choice in `data-url`, the field `search_input`, and a number below `reward`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.page = _Page()
        self._open: list[tuple[str, dict[str, str]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = {name: value or "" for name, value in attrs}
        if attributes.get("id") == "search_input":
            self.page.has_search_bar = True
        if tag == "input" and attributes.get("type") == "radio":
            target = _Target(attributes.get("data-url", ""), "GET", attributes.get("name", ""))
            self.page.options[attributes.get("value", "").lower()] = target
        if tag not in _VOID:
            self._open.append((tag, attributes))

    def handle_endtag(self, tag: str) -> None:
        if tag in (name for name, _ in self._open):
            while self._open.pop()[0] != tag:
                pass

    def handle_data(self, data: str) -> None:
        tag, attributes = self._open[-1] if self._open else ("", {})
        if tag in _UNSEEN or not data.strip():
            return
        text, classes = data.strip(), attributes.get("class", "").split()
        kind = {"button": "button", "label": "option"}.get(tag, "text")
        if tag == "button" and "btn" in classes:
            form = next((known for name, known in reversed(self._open) if name == "form"), {})
            self.page.buttons[text.lower()] = _Target(form.get("action", ""), form.get("method", "get").upper())
        elif "product-link" in classes:
            kind = "product"
            self.page.products[text.lower()] = _Target(attributes.get("href", ""), "GET")
        elif tag == "pre" and any(known.get("id") == "reward" for _, known in self._open):
            self.page.reward = float(text)
        self.page.pieces.append(Piece(text, kind))


class UpstreamSiteEngine:
    """One shopper's session on upstream's web site (`python -m web_agent_site.app`).

    Sessions have names that no other engine uses and that end in the number of their goal, as upstream expects. The
    site keeps all of them. It does not report which goals it has: a goal has only its instruction here.

    Args:
        url (`str`): where the site's first page is, for instance `"http://127.0.0.1:3000"`.
        mode (`str`, *optional*, defaults to `"text"`): as for [`WebShopEngine`].
        timeout (`float`, *optional*, defaults to `300.0`): seconds to wait for a page. The site loads its products
            when it is asked for the first.

    Raises:
        ConnectionError: nothing answers at that address, or not as upstream does.
        ImportError: the extra `webshop` is not installed.
    """

    def __init__(self, url: str, mode: Mode = "text", timeout: float = 300.0) -> None:
        self.url = url.rstrip("/")
        self.mode: Mode = mode
        self._browser = _Browser(self.url, timeout)
        page = self._browser.open(f"{self.url}/{_session(0)}")
        if page is None or not page.has_search_bar:
            raise ConnectionError(f"{self.url} does not answer as upstream WebShop: it has no goal 0.")
        self._state: WebShopState | None = None

    def reset(self, goal: SupportsIndex) -> WebShopState:
        """Starts a session for the goal of that number.

        Raises:
            IndexError: there is no goal of that number.
            ConnectionError: the site does not answer, or not as upstream does.
        """
        number = operator.index(goal)
        self._home = f"{self.url}/{_session(number)}"
        self.chosen: dict[str, str] = {}
        self._visited: set[str] = set()
        page = self._browser.open(self._home) if number >= 0 else None
        if page is None:
            raise IndexError(f"No goal {number}: {self.url} has no page for it.")
        if not page.has_search_bar:
            raise ConnectionError(f"{self._home} is no search page: is {self.url} upstream WebShop?")
        texts = [piece.text for piece in page.pieces]
        self.goal = replace(_UNKNOWN, instruction=" ".join(texts[1:-1]).partition("Instruction:")[2].strip())
        return self._show(page)

    def step(self, action: str) -> WebShopState:
        """Does one thing, as [`WebShopEngine.step`].

        What makes the site fail, such as a search for `<a>` and an attribute that it does not know, changes nothing;
        a warning says so.

        Raises:
            RuntimeError: the engine was not reset before.
            ConnectionError: the site does not answer.
        """
        if self._state is None:
            raise RuntimeError("UpstreamSiteEngine was used before reset.")
        if self._state.done or not self.does_something(action):
            return WebShopState(self._state.observation, self._state.available_actions, 0.0, self._state.done)
        name, argument = name_and_argument(action) or ("", "")
        if name == "search":
            target, form = _Target(self._home, "POST"), {"search_query": argument}
        else:
            target, form = self._page.targets[argument], {}
        page = self._browser.open(urljoin(self._home, target.url), target.method, form)
        if page is None:
            warnings.warn(f"{self.url} has no page for {action!r:.200}: it changes nothing.", stacklevel=2)
            return WebShopState(self._state.observation, self._state.available_actions, 0.0, False)
        if target.option:
            self.chosen[target.option] = argument
        elif name == "search" or not self._browser.at.removeprefix(self.url).startswith("/item_"):
            self.chosen = {}
        if name == "click" and argument in self._page.products:
            self._visited.add(argument)
        elif page.has_search_bar:
            self._visited = set()
        return self._show(page)

    def does_something(self, action: str) -> bool:
        """Whether an action is a search, or a click on something that is there."""
        if self._state is None or self._state.done:
            return False
        return is_something(action, self._state.available_actions["clickables"])

    def close(self) -> None:
        """Ends the session here; the site keeps it."""
        self._state = None

    def _show(self, page: _Page) -> WebShopState:
        clicked = {"product": self._visited, "option": self.chosen.values()}
        pieces = [replace(piece, clicked=piece.text.lower() in clicked.get(piece.kind, ())) for piece in page.pieces]
        actions = AvailableActions(has_search_bar=page.has_search_bar, clickables=list(page.targets))
        self._page, done = page, page.reward is not None
        self._state = WebShopState(render(pieces, self.mode), actions, page.reward or 0.0, done)
        return self._state


class _Browser:
    """Fetches pages and keeps the connection.

    Attributes:
        at (`str`): address of the last page.
    """

    def __init__(self, url: str, timeout: float) -> None:
        try:
            import requests
        except ImportError as error:
            raise ImportError("Upstream's site needs `requests`: pip install trl-agentic[webshop]") from error
        self._connection, self._failures = requests.Session(), requests.RequestException
        self._url, self._timeout = url, timeout
        self.at = ""

    def open(self, url: str, method: str = "GET", form: dict[str, Any] | None = None) -> _Page | None:
        """The page at an address, or `None` where the site has none for it (any status from 400)."""
        try:
            answer = self._connection.request(method, url, data=form, timeout=self._timeout)
        except self._failures as error:
            raise ConnectionError(
                f"Upstream WebShop does not answer at {self._url}: {error}. Does `python -m web_agent_site.app` run "
                "there, and is this its address?"
            ) from error
        if answer.status_code >= 400:
            return None
        self.at, reader = answer.url, _Reader()
        reader.feed(answer.text)
        reader.close()
        return reader.page


def _session(number: int) -> str:
    return f"{uuid.uuid4().hex}-fixed_{number}"
