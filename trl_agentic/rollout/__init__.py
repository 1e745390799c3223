"""The multi-turn loop between a policy and its environments."""

from .chat import ChatRenderer
from .context import View


__all__ = ["ChatRenderer", "View"]
