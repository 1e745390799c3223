"""Two trainer processes that share one vLLM server and take different numbers of turns.

python -m torch.distributed.run --standalone --nproc_per_node 2 tests/vllm/two_ranks.py MODEL SERVER OUT
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset

from tests.toys import Corridor
from tests.trainers.small import small_config
from tests.vllm.cpu import patch_trl
from trl_agentic import GAGPOConfig, GAGPOTrainer, StepResult, Trajectory


class Numbered(Corridor):
    """Environment with its number in every observation. Those of the first process end after one turn."""

    def reset(self, number: int = 0, **row: Any) -> str:
        self.number = number
        return f"Room {number}. {super().reset(length=9)}"

    def step(self, action: str) -> StepResult:
        result = super().step(action)
        return StepResult(f"Room {self.number}. {result.observation}", terminated=self.number < 4)


class Recording(GAGPOTrainer):
    """Records the rollouts of each step of this process, in the order of training."""

    def information_gains(self, rows: Any, trajectories: list[Trajectory]) -> Any:
        self.played = [*getattr(self, "played", []), trajectories]
        return super().information_gains(rows, trajectories)


def unequal_prompts(trainer: GAGPOTrainer) -> dict[str, Any]:
    """Sends prompts as TRL's own tool loop does: each process those of its rollouts that have not ended."""
    rank = trainer.accelerator.process_index
    prompts = [[[5, 6, 7], [8, 9], [10, 11, 12]], [[20, 21]]][rank]
    returned, *_ = trainer.vllm_generation.generate(prompts=prompts, images=None, num_generations=1)
    return {"sent": prompts, "returned": returned}


def sampled_by(model: str, args: GAGPOConfig, rows: Dataset) -> list[list[int]]:
    """The optimizer steps whose weights sampled the batches of this process in a run."""
    trainer = Recording(model, args=args, train_dataset=rows, environment_factory=Numbered)
    trainer.train()
    return [sorted({turn.policy_step for p in step for turn in p.turns}) for step in trainer.played]


def main() -> None:
    model, server, out = sys.argv[1], sys.argv[2], Path(sys.argv[3])
    with pytest.MonkeyPatch.context() as patch:
        patch_trl(patch)
        args = small_config(
            GAGPOConfig, out / "run", per_device_train_batch_size=4, shuffle_dataset=False, use_vllm=True,
            vllm_mode="server", vllm_server_base_url=server, max_steps=2,
        )  # fmt: skip
        rows = Dataset.from_list([{"number": number} for number in (0, 7)] * 4)
        trainer = Recording(model, args=args, train_dataset=rows, environment_factory=Numbered)
        assert trainer.accelerator.num_processes == 2
        trainer.train()
        saved = {
            "log": trainer.state.log_history,
            "played": [[(t.prompt_ids, t.action_ids, t.logprobs) for t in p.turns] for p in trainer.played[-1]],
            "tasks": [p.task["number"] for p in trainer.played[-1]],
            "trl": unequal_prompts(trainer),
        }
        args.max_staleness, args.max_steps = 1, 3
        saved["prefetched"] = sampled_by(model, args, rows)
    torch.save(saved, out / f"rank{os.environ['RANK']}.pt")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
