"""Multi-turn reinforcement learning of language-model agents on top of TRL.

Names are imported when they are first used: `import trl_agentic` itself loads neither torch nor TRL.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    from trl_agentic.environments import ALFWorldEnv, SearchEnv, check_environment
    from trl_agentic.environments.base import Environment
    from trl_agentic.trainers.a2tgpo import A2TGPOConfig, A2TGPOTrainer
    from trl_agentic.trainers.base import AgenticConfig, AgenticTrainer
    from trl_agentic.trainers.gagpo import GAGPOConfig, GAGPOTrainer
    from trl_agentic.trainers.gigpo import GiGPOConfig, GiGPOTrainer
    from trl_agentic.trainers.grpo import AgenticGRPOConfig, AgenticGRPOTrainer
    from trl_agentic.trainers.igpo import IGPOConfig, IGPOTrainer
    from trl_agentic.trainers.rloo import AgenticRLOOConfig, AgenticRLOOTrainer
    from trl_agentic.types import StepResult, StopReason, Trajectory, Turn, TurnBatch

__version__ = "0.1.0.dev0"

_HOMES = {
    "trl_agentic.environments": ("ALFWorldEnv", "SearchEnv", "check_environment"),
    "trl_agentic.environments.base": ("Environment",),
    "trl_agentic.trainers.a2tgpo": ("A2TGPOConfig", "A2TGPOTrainer"),
    "trl_agentic.trainers.base": ("AgenticConfig", "AgenticTrainer"),
    "trl_agentic.trainers.gagpo": ("GAGPOConfig", "GAGPOTrainer"),
    "trl_agentic.trainers.gigpo": ("GiGPOConfig", "GiGPOTrainer"),
    "trl_agentic.trainers.grpo": ("AgenticGRPOConfig", "AgenticGRPOTrainer"),
    "trl_agentic.trainers.igpo": ("IGPOConfig", "IGPOTrainer"),
    "trl_agentic.trainers.rloo": ("AgenticRLOOConfig", "AgenticRLOOTrainer"),
    "trl_agentic.types": ("StepResult", "StopReason", "Trajectory", "Turn", "TurnBatch"),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "A2TGPOConfig",
    "A2TGPOTrainer",
    "ALFWorldEnv",
    "AgenticConfig",
    "AgenticGRPOConfig",
    "AgenticGRPOTrainer",
    "AgenticRLOOConfig",
    "AgenticRLOOTrainer",
    "AgenticTrainer",
    "Environment",
    "GAGPOConfig",
    "GAGPOTrainer",
    "GiGPOConfig",
    "GiGPOTrainer",
    "IGPOConfig",
    "IGPOTrainer",
    "SearchEnv",
    "StepResult",
    "StopReason",
    "Trajectory",
    "Turn",
    "TurnBatch",
    "check_environment",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_HOME_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
