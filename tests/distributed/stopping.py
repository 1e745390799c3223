"""Two processes, of which only the second receives a signal to stop, and then only the second computes a NaN.

python -m torch.distributed.run --standalone --nproc_per_node 2 tests/distributed/stopping.py MODEL OUT
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import TrainerCallback

from tests.distributed.corridor import config
from tests.toys import Corridor
from tests.trainers.small import parameters
from trl_agentic import GAGPOTrainer


class Tell(TrainerCallback):
    """Sends a signal to this process in its first step."""

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 0:
            os.kill(os.getpid(), signal.SIGTERM)


def trainer(model: str, output_dir: Path) -> GAGPOTrainer:
    """Three steps; a generation serves two of them, so that the first stops within one."""
    args = config(output_dir, processes=2, steps_per_generation=2, gradient_accumulation_steps=1)
    rows = Dataset.from_list([{"length": 1 + i % 3} for i in range(6)])
    return GAGPOTrainer(model, args=args, train_dataset=rows, environment_factory=Corridor)


def main() -> None:
    model, out, rank = sys.argv[1], Path(sys.argv[2]), int(os.environ["RANK"])
    saved: dict[str, Any] = {}

    whole = trainer(model, out / "whole")
    whole.train()
    saved["whole"] = parameters(whole)

    stopped = trainer(model, out / "stopped")
    if rank == 1:
        stopped.add_callback(Tell())
    try:
        stopped.train()
    except SystemExit as stop:
        saved["code"], saved["stopped at"] = stop.code, stopped.state.global_step

    resumed = trainer(model, out / "stopped")
    resumed.train(resume_from_checkpoint=str(out / "stopped" / "checkpoint-1"))
    saved["resumed"] = parameters(resumed)

    broken = trainer(model, out / "broken")
    if rank == 1:

        def corrupt(module: Any, args: Any, output: Any) -> Any:
            if broken.model.training and torch.is_grad_enabled():
                output.last_hidden_state = output.last_hidden_state * torch.nan
            return output

        broken.accelerator.unwrap_model(broken.model).model.register_forward_hook(corrupt)
    try:
        broken.train()
    except FloatingPointError as error:
        saved["error"] = str(error)

    torch.save(saved, out / f"rank{rank}.pt")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
