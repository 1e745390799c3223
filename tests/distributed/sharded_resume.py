"""A run with parameters that FSDP2 shards over two processes, and one that resumes from its second checkpoint.

python -m torch.distributed.run --standalone --nproc_per_node 2 tests/distributed/sharded_resume.py MODEL OUT
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import torch

from tests.distributed.corridor import train
from tests.distributed.sharded import sharded_config


# Four steps of Adam with a schedule, in a window; saved at the second.
FOUR_STEPS: dict[str, Any] = {
    "optim": "adamw_torch", "learning_rate": 1e-2, "lr_scheduler_type": "linear", "max_steps": 4, "beta": 0.1,
    "num_iterations": 2, "context": "window", "history_length": 1, "max_context_length": 200, "save_strategy": "steps",
    "save_steps": 2,
}  # fmt: skip


def run(model: str, output_dir: Path, resume: Path | None = None) -> dict[str, Any]:
    args = sharded_config(output_dir, **FOUR_STEPS, resume_from_checkpoint=None if resume is None else str(resume))
    trainer = train(model, args, 2)
    return {"parameters": trainer.accelerator.get_state_dict(trainer.model), "log": trainer.state.log_history}


def main() -> None:
    model, out = sys.argv[1], Path(sys.argv[2])
    whole = run(model, out / "whole")
    resumed = run(model, out / "resumed", out / "whole" / "checkpoint-2")
    torch.save({"whole": whole, "resumed": resumed}, out / f"rank{os.environ['RANK']}.pt")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
