"""GAGPO and A2TGPO with DeepSpeed's ZeRO-2 or ZeRO-3 on two processes on the CPU, and a run that resumes.

    python -m torch.distributed.run --standalone --nproc_per_node 2 tests/distributed/zero.py MODEL STAGE OUT

accelerate starts DeepSpeed on accelerators only. It does so over gloo when the job presents itself as one of DeepSpeed
whose device is the CPU; only a test should do that.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import deepspeed
import torch
from accelerate import PartialState
from accelerate.utils import DistributedType

from tests.distributed.corridor import RUNS, Recording, config, train
from tests.distributed.sharded_resume import FOUR_STEPS
from trl_agentic import AgenticConfig


def zero_config(output_dir: Path, **changes: Any) -> AgenticConfig:
    """Arguments of a run on two processes, whose trainer will shard."""
    args = config(output_dir, processes=2, **changes)
    PartialState().distributed_type = DistributedType.DEEPSPEED
    PartialState().device = torch.device("cpu")
    return args


def result(trainer: Recording) -> dict[str, Any]:
    assert trainer.accelerator.distributed_type == DistributedType.DEEPSPEED
    named = dict(trainer.accelerator.unwrap_model(trainer.model).named_parameters())
    with deepspeed.zero.GatheredParameters(list(named.values())):
        whole = {name: parameter.detach().clone() for name, parameter in named.items()}
    return {"advantages": trainer.recorded, "parameters": whole, "log": trainer.state.log_history}


def main() -> None:
    model, stage, out = sys.argv[1], sys.argv[2], Path(sys.argv[3])
    os.environ |= {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": stage}
    results: dict[str, Any] = {}
    for name in ("turn", "window", "idle_gain"):
        changes = dict(RUNS[name])
        lengths = {"lengths": changes.pop("lengths")} if "lengths" in changes else {}
        results[name] = result(train(model, zero_config(out / name, **changes), 2, **lengths))
    results["whole"] = result(train(model, zero_config(out / "whole", **FOUR_STEPS), 2))
    resume = str(out / "whole" / "checkpoint-2")
    args = zero_config(out / "resumed", **FOUR_STEPS, resume_from_checkpoint=resume)
    results["resumed"] = result(train(model, args, 2))
    try:
        train(model, zero_config(out / "skip", nonfinite_update="skip"), 2)
    except ValueError as error:
        results["skip"] = str(error)
    torch.save(results, out / f"rank{os.environ['RANK']}.pt")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
