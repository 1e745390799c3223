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
from trl_agentic import GAGPOConfig, GAGPOTrainer, StepResult


class Numbered(Corridor):
    """Tells its number in every observation. Those of the first process end with the first turn."""

    def reset(self, number: int = 0, **row: Any) -> str:
        self.number = number
        return f"Room {number}. {super().reset(length=9)}"

    def step(self, action: str) -> StepResult:
        result = super().step(action)
        return StepResult(f"Room {self.number}. {result.observation}", terminated=self.number < 4)


class Remembering(GAGPOTrainer):
    """Keeps the last rollouts."""

    def _play(self, *args: Any, **kwargs: Any) -> Any:
        self.played = super()._play(*args, **kwargs)
        return self.played


def unequal_prompts(trainer: GAGPOTrainer) -> dict[str, Any]:
    """What TRL's own tool loop does: later turns of those rollouts alone that go on, on each process for itself."""
    rank = trainer.accelerator.process_index
    asked = [[[5, 6, 7], [8, 9], [10, 11, 12]], [[20, 21]]][rank]
    got, *_ = trainer.vllm_generation.generate(prompts=asked, images=None, num_generations=1)
    return {"asked": asked, "got": got}


def sampled_by(model: str, args: GAGPOConfig, rows: Dataset) -> list[list[int]]:
    """Steps whose weights sampled the batches of a run with `rollout_ahead`, on this process."""
    trainer = Remembering(model, args=args, train_dataset=rows, environment_factory=Numbered)
    steps: list[list[int]] = []
    take = trainer._next_rollouts

    def remember(*args: Any) -> Any:
        trajectories, clock = take(*args)
        steps.append(sorted({turn.policy_step for trajectory in trajectories for turn in trajectory.turns}))
        return trajectories, clock

    trainer._next_rollouts = remember  # type: ignore[method-assign]
    trainer.train()
    return steps


def main() -> None:
    model, server, out = sys.argv[1], sys.argv[2], Path(sys.argv[3])
    with pytest.MonkeyPatch.context() as patch:
        patch_trl(patch)
        args = small_config(
            GAGPOConfig, out / "run", per_device_train_batch_size=4, shuffle_dataset=False, use_vllm=True,
            vllm_mode="server", vllm_server_base_url=server, max_steps=2,
        )  # fmt: skip
        rows = Dataset.from_list([{"number": number} for number in (0, 7)] * 4)
        trainer = Remembering(model, args=args, train_dataset=rows, environment_factory=Numbered)
        assert trainer.accelerator.num_processes == 2
        trainer.train()
        saved = {
            "log": trainer.state.log_history,
            "played": [[(t.prompt_ids, t.action_ids, t.logprobs) for t in p.turns] for p in trainer.played],
            "tasks": [p.task["number"] for p in trainer.played],
            "trl": unequal_prompts(trainer),
        }
        args.rollout_ahead, args.max_steps = 1, 3
        saved["ahead"] = sampled_by(model, args, rows)
    torch.save(saved, out / f"rank{os.environ['RANK']}.pt")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
