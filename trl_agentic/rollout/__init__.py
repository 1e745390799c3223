"""The multi-turn loop between a policy and its environments."""

from .chat import ChatRenderer


__all__ = ["ChatRenderer"]
