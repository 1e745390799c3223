"""The TextWorld engine of the `alfworld` package behind the interface of [`ALFWorldEngine`].

It is the reference that [`ALFWorldEngine`] is tested against. To play with it is slow and takes care: it *evaluates
text of the game file as Python*, so give it only files you trust. Its parsers are shared by all games of a process, so
that threads take turns.
"""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Iterator
from typing import Any

from .engine import ALFWorldState
from .game import ALFWorldGame


_TURN = threading.Lock()


class UpstreamALFWorldEngine:
    """Plays one game on the upstream engine.

    Args:
        game ([`ALFWorldGame`]): the game to play.

    Raises:
        ImportError: the extra `alfworld` is not installed.
        ValueError: upstream's parser refuses the game.
    """

    def __init__(self, game: ALFWorldGame) -> None:
        try:
            import textworld
            from alfworld.agents.environment.alfred_tw_env import AlfredDemangler
            from textworld.envs.pddl import PddlEnv
        except ImportError as error:
            raise ImportError(
                "The upstream ALFWorld engine is not installed: pip install trl-agentic[alfworld]. "
                "The engine of this package, ALFWorldEngine, needs no extra."
            ) from error
        self.game = game
        self._base = PddlEnv(textworld.EnvInfos(won=True, admissible_commands=True))
        self._env = AlfredDemangler(self._base)
        with _TURN, _contained(game):
            self._env.load(game.to_dict())

    def reset(self) -> ALFWorldState:
        """Puts everything back and describes the room."""
        with _TURN, _contained(self.game):
            return _state(self._env.reset())

    def step(self, command: str) -> ALFWorldState:
        """Plays one command."""
        with _TURN:
            state, _, _ = self._env.step(command)
            return _state(state)

    def close(self) -> None:
        """Frees the game. The engine's copy of the planner library stays loaded: unloading it crashes the exit."""
        with _TURN:
            self._base.downward_lib.cleanup()


def _state(state: Any) -> ALFWorldState:
    return ALFWorldState(state["feedback"], list(state["admissible_commands"]), bool(state["won"]))


@contextlib.contextmanager
def _contained(game: ALFWorldGame) -> Iterator[None]:
    """Undoes that upstream's parser overwrites `sys.argv`, and turns its exit of the interpreter into an error."""
    arguments = sys.argv
    try:
        yield
    except SystemExit as error:
        raise ValueError(f"{game.path or game.name} is refused by the upstream PDDL parser: {error}") from error
    finally:
        sys.argv = arguments
