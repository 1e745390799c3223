"""Upstream WebShop behind the interface of [`WebShopEngine`], for those who have it installed.

Upstream is a source tree, not a package: clone https://github.com/princeton-nlp/WebShop, follow its setup (Java,
Lucene, spaCy, the data), and let `WEBSHOP_PATH` name the folder.
"""

from __future__ import annotations

import operator
import os
import random
import sys
import uuid
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from typing import Any, SupportsIndex

from .catalogue import DEFAULT_PRICE_SEED
from .engine import WebShopState, is_something
from .pages import Mode
from .reward import Goal


class UpstreamWebShopEngine:
    """One shopper's session on upstream's text environment.

    All engines of a process share one upstream server, which holds products, search and goals. Each has sessions of
    its own, whose names no other engine uses, and takes the last one away when the next begins.

    Args:
        path (`str` or `os.PathLike`, *optional*): upstream's folder. Defaults to `$WEBSHOP_PATH`.
        mode (`str`, *optional*, defaults to `"text"`): as for [`WebShopEngine`].
        human_goals (`bool`, *optional*, defaults to `False`): goals that people wrote.
        num_products (`int`, *optional*, defaults to `1000`): which of upstream's search indexes; `None` for the one of
            all products.

    Raises:
        FileNotFoundError: there is no upstream at `path`, or none was named.
        ImportError: something that upstream needs is not installed.
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | None = None,
        mode: Mode = "text",
        human_goals: bool = False,
        num_products: int | None = 1000,
    ) -> None:
        make, server, self.goals = _load(upstream_path(path), human_goals, num_products)
        self._env: Any = make(observation_mode=mode, server=server, session_prefix=f"{uuid.uuid4().hex}-")
        self._sessions: dict[str, Any] = server.user_sessions
        self._state: WebShopState | None = None

    def reset(self, goal: SupportsIndex) -> WebShopState:
        """Starts a session for the goal of that number.

        Raises:
            IndexError: there is no goal of that number.
        """
        number = operator.index(goal)  # upstream takes any other kind of number for the wish for a random goal
        if not 0 <= number < len(self.goals):
            raise IndexError(f"No goal {number}: upstream has {len(self.goals)} goals, counted from 0.")
        self.close()
        self._number = number
        observation, _ = self._env.reset(session=number)
        return self._shown(observation, 0.0, False)

    @property
    def goal(self) -> Goal:
        """What the session shops for."""
        return self.goals[self._number]

    @property
    def chosen(self) -> dict[str, str]:
        """The chosen options of the product that is open, name to value."""
        return self._sessions[self._env.session]["options"]

    def step(self, action: str) -> WebShopState:
        """Does one thing, as [`WebShopEngine.step`]; what makes upstream raise raises here, too.

        Raises:
            RuntimeError: the engine was not reset before.
        """
        if self._state is None:
            raise RuntimeError("UpstreamWebShopEngine was used before reset.")
        if self._state.done:  # upstream would pay again
            return WebShopState(self._state.observation, self._state.available_actions, 0.0, True)
        observation, reward, done, _ = self._env.step(action)
        return self._shown(observation, reward, done)

    def does_something(self, action: str) -> bool:
        """Whether an action is a search, or a click on something that is there."""
        if self._state is None or self._state.done:
            return False
        return is_something(action, self._state.available_actions["clickables"])

    def close(self) -> None:
        """Takes the session away."""
        self._sessions.pop(self._env.session, None)
        self._state = None

    def _shown(self, observation: str, reward: float, done: bool) -> WebShopState:
        self._state = WebShopState(observation, self._env.get_available_actions(), float(reward), bool(done))
        return self._state


def upstream_path(path: str | os.PathLike[str] | None = None) -> Path:
    """Upstream's folder: `path`, or else `$WEBSHOP_PATH`.

    Raises:
        FileNotFoundError: neither names a folder with upstream in it.
    """
    named = path or os.environ.get("WEBSHOP_PATH")
    if not named:
        raise FileNotFoundError(
            "Upstream WebShop: set WEBSHOP_PATH to a clone of https://github.com/princeton-nlp/WebShop. The engine of "
            "this package, WebShopEngine, needs none."
        )
    folder = Path(named).expanduser().resolve()
    if not (folder / "web_agent_site").is_dir():
        raise FileNotFoundError(f"Upstream WebShop: {folder} has no folder web_agent_site.")
    return folder


@lru_cache(maxsize=2)
def _load(path: Path, human_goals: bool, num_products: int | None) -> tuple[Any, Any, tuple[Goal, ...]]:
    """Upstream's environment class, a server for all environments of the process, and its goals."""
    if str(path) not in sys.path:
        sys.path.insert(0, str(path))
    try:
        make = import_module("web_agent_site.envs").WebAgentTextEnv
    except ImportError as error:
        raise ImportError(f"Upstream WebShop at {path} lacks what it needs ({error}): see its setup.") from error
    before = random.getstate()
    random.seed(DEFAULT_PRICE_SEED)  # upstream draws prices from the global random numbers
    try:
        server = make(observation_mode="text", human_goals=human_goals, num_products=num_products).server
    finally:
        random.setstate(before)
    server.user_sessions.clear()
    return make, server, tuple(Goal.from_dict(goal) for goal in server.goals)
