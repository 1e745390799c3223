"""Short runs on corridors, for one process or several; what each process ends with is saved to OUT/rank<i>.pt.

python -m torch.distributed.run --standalone --nproc_per_node 2 tests/distributed/corridor.py MODEL OUT
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor

from tests.toys import Corridor
from tests.trainers.small import parameters, small_config
from trl_agentic import (
    A2TGPOConfig,
    A2TGPOTrainer,
    AgenticConfig,
    AgenticTrainer,
    GAGPOConfig,
    GAGPOTrainer,
    StepResult,
    TurnBatch,
)
from trl_agentic.trainers.batches import PreparedGeneration


ROLLOUTS = 12  # three groups of four: with two processes the second one spans both
FAILS = -2  # length of a corridor that collapses
RUNS: dict[str, dict[str, Any]] = {
    "turn": {"beta": 0.1, "invalid_action_penalty": 0.1},
    "dapo": {"loss_type": "dapo", "importance_sampling_level": "turn", "num_iterations": 2},
    "grpo": {"loss_type": "grpo", "importance_sampling_level": "token"},
    # The second process has rows of one turn only, and fewer micro-batches of tokens than the first.
    "idle": {
        "beta": 0.1, "invalid_action_penalty": 0.25, "shuffle_dataset": False, "lengths": (3, -1, -1),
        "max_tokens_per_micro_batch": 150, "max_context_length": 150, "save_trajectories_steps": 1,
    },
    # Rollouts of several rows, on the second process of one; rows are packed.
    "window": {
        "beta": 0.1, "invalid_action_penalty": 0.25, "shuffle_dataset": False, "lengths": (3, -1, -1),
        "pack_micro_batches": True,
        "context": "window", "history_length": 1, "max_context_length": 150, "max_tokens_per_micro_batch": 150,
    },
    # All rollouts of the second process fail, and half of a group of the first.
    "fail": {
        "loss_type": "grpo", "shuffle_dataset": False, "lengths": (1, FAILS, FAILS), "max_tokens_per_micro_batch": 200,
        "max_failed_rollouts": 0.7, "environment_retries": 1,
        "context": "window", "history_length": 1, "max_context_length": 200,
    },
    # A2TGPO, its gains in several forward passes.
    "gain": {"config_class": A2TGPOConfig, "information_gain_tokens": 300},
    # The second process has no turn with a gain.
    "idle_gain": {
        "config_class": A2TGPOConfig, "shuffle_dataset": False, "lengths": (3, -1, -1), "information_gain_tokens": 300,
    },
}  # fmt: skip


class Fragile(Corridor):
    """A corridor that may collapse in the first turn."""

    def step(self, action: str) -> StepResult:
        if self.length == FAILS:
            raise RuntimeError("the corridor collapsed")
        return super().step(action)


class Recording(AgenticTrainer):
    """Keeps the advantages of every global batch, and counts the tokens that this process trains on."""

    recorded: list[Tensor]
    tokens = 0

    def turn_advantages(self, batch: TurnBatch) -> Tensor:
        advantages = super().turn_advantages(batch)
        self.recorded = [*getattr(self, "recorded", []), advantages]
        return advantages

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        prepare = self.generation.batches.prepare

        def counted(mode: str, *args: Any) -> PreparedGeneration:
            prepared = prepare(mode, *args)
            self.tokens += sum(map(len, prepared.sequences)) if mode == "train" else 0
            return prepared

        self.generation.batches.prepare = counted  # type: ignore[method-assign]


class RecordingGAGPO(Recording, GAGPOTrainer):
    pass


class RecordingA2TGPO(Recording, A2TGPOTrainer):
    pass


def config(
    output_dir: Path, processes: int, config_class: type[AgenticConfig] = GAGPOConfig, **changes: Any
) -> AgenticConfig:
    """Three steps of plain gradient descent on ROLLOUTS rollouts, however many processes share them."""
    size = ROLLOUTS // processes
    options = {"per_device_train_batch_size": size, "optim": "sgd", "learning_rate": 0.5, **changes}
    return small_config(config_class, output_dir, **options)


def train(model: str, args: AgenticConfig, processes: int, lengths: tuple[int, ...] = (1, 2, 3)) -> Recording:
    """Trains on corridors of these lengths. One of length -1 ends with the first turn, so that its process is idle."""
    rows = Dataset.from_list([{"length": length, "ground_truth": "the exit"} for length in lengths] * 2)
    trainer_class = RecordingA2TGPO if isinstance(args, A2TGPOConfig) else RecordingGAGPO
    trainer = trainer_class(model, args=args, train_dataset=rows, environment_factory=Fragile)
    assert trainer.accelerator.num_processes == processes, trainer.accelerator.state
    trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
    return trainer


def run(model: str, output_dir: Path, processes: int, **changes: Any) -> dict[str, Any]:
    """Trains, then evaluates and plays five more episodes. Returns what the process ends with."""
    lengths = {"lengths": changes.pop("lengths")} if "lengths" in changes else {}
    trainer = train(model, config(output_dir, processes, **changes), processes, **lengths)
    trained = {"advantages": trainer.recorded, "tokens": trainer.tokens, "log": [*trainer.state.log_history]}
    rows = [{"length": 1 + i % 3, "ground_truth": "the exit"} for i in range(5)]
    trainer.evaluate(Dataset.from_list(rows))
    evaluated = {name: x for name, x in trainer.state.log_history[-1].items() if name.startswith("eval_episode/")}
    played = trainer.rollout(rows, seed=1, batch_size=2)
    return {
        "world": trainer.accelerator.num_processes,
        "parameters": parameters(trainer),
        **trained,
        "evaluated": evaluated,
        "rollouts": [[turn.action_ids for turn in t.turns] for t in played],
    }


def main() -> None:
    model, out = sys.argv[1], Path(sys.argv[2])
    processes = int(os.environ["WORLD_SIZE"])
    results = {name: run(model, out / name, processes, **changes) for name, changes in RUNS.items()}
    torch.save(results, out / f"rank{os.environ['RANK']}.pt")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
