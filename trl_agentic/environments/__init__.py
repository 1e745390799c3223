"""Text environments, and the protocol that they follow.

The concrete environments are imported when they are first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .base import Environment, check_environment


if TYPE_CHECKING:
    from .alfworld.env import ALFWorldEnv
    from .search.env import SearchEnv

_HOME_OF = {
    "ALFWorldEnv": "trl_agentic.environments.alfworld.env",
    "SearchEnv": "trl_agentic.environments.search.env",
}

__all__ = ["ALFWorldEnv", "Environment", "SearchEnv", "check_environment"]


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_HOME_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
