"""ALFWorld: household tasks as a text game."""

from .engine import ALFWorldEngine, ALFWorldState
from .env import ALFWorldEnv
from .expert import Expert, Step, completing_commands, demonstration
from .files import GameReference, find_games
from .game import ALFWorldGame
from .generator import TASK_NAMES, GameDescription, describe_game, generate_game, write_game
from .policy import small_policy
from .prompts import ALFWorldPrompt


__all__ = [
    "TASK_NAMES",
    "ALFWorldEngine",
    "ALFWorldEnv",
    "ALFWorldGame",
    "ALFWorldPrompt",
    "ALFWorldState",
    "Expert",
    "GameDescription",
    "GameReference",
    "Step",
    "completing_commands",
    "demonstration",
    "describe_game",
    "find_games",
    "generate_game",
    "small_policy",
    "write_game",
]
