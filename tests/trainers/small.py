"""Small runs: a tiny model, a short episode, a step of a tenth of a second."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

import torch
from datasets import Dataset

from trl_agentic import (
    A2TGPOConfig,
    A2TGPOTrainer,
    AgenticConfig,
    AgenticGRPOConfig,
    AgenticGRPOTrainer,
    AgenticRLOOConfig,
    AgenticRLOOTrainer,
    AgenticTrainer,
    GAGPOConfig,
    GAGPOTrainer,
    GiGPOConfig,
    GiGPOTrainer,
    IGPOConfig,
    IGPOTrainer,
)


ConfigT = TypeVar("ConfigT", bound=AgenticConfig)

# Trainer, config and paper of every algorithm.
TRAINERS: dict[str, tuple[Any, Any, str]] = {
    "gagpo": (GAGPOTrainer, GAGPOConfig, "2605.13217"),
    "gigpo": (GiGPOTrainer, GiGPOConfig, "2505.10978"),
    "grpo": (AgenticGRPOTrainer, AgenticGRPOConfig, "2402.03300"),
    "rloo": (AgenticRLOOTrainer, AgenticRLOOConfig, "2402.14740"),
    "a2tgpo": (A2TGPOTrainer, A2TGPOConfig, "2605.06200"),
    "igpo": (IGPOTrainer, IGPOConfig, "2510.14967"),
}


def small_config(config_class: type[ConfigT], output_dir: Path, **changes: Any) -> ConfigT:
    """Arguments of a run of three steps with two tasks of four rollouts each, on the CPU."""
    options: dict[str, Any] = {
        "output_dir": str(output_dir),
        "use_cpu": True,
        "bf16": False,
        "report_to": "none",
        "disable_tqdm": True,
        "save_strategy": "no",
        "logging_steps": 1,
        "max_steps": 3,
        "learning_rate": 1e-3,
        "lr_scheduler_type": "constant",
        "per_device_train_batch_size": 8,
        "num_generations": 4,
        "max_turns": 4,
        "max_turn_tokens": 6,
        "max_completion_length": 160,
    }
    return config_class(**(options | changes))


def tasks(rows: int = 6, **columns: Any) -> Dataset:
    """Corridors of three lengths."""
    return Dataset.from_list([{"length": 1 + i % 3, **columns} for i in range(rows)])


def parameters(trainer: AgenticTrainer) -> dict[str, torch.Tensor]:
    """A copy of the policy's parameters."""
    model = trainer.accelerator.unwrap_model(trainer.model)
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def history(trainer: AgenticTrainer, key: str) -> list[float]:
    """Values that were logged under `key`, step by step."""
    return [entry[key] for entry in trainer.state.log_history if key in entry]
