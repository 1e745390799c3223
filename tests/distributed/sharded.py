"""GAGPO and A2TGPO with parameters that FSDP2 shards over two processes on the CPU.

    python -m torch.distributed.run --standalone --nproc_per_node 2 tests/distributed/sharded.py MODEL OUT

accelerate shards on accelerators only. It does so over gloo when the job presents itself as one of several GPUs whose
device is the CPU; nobody but a test should do that.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import DistributedType

from tests.distributed.corridor import RUNS, config, train
from trl_agentic import AgenticConfig


FSDP2 = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_TRANSFORMER_CLS_TO_WRAP": "Qwen3DecoderLayer",
    "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT",
    "FSDP_CPU_RAM_EFFICIENT_LOADING": "false",
}


def sharded_config(output_dir: Path, **changes: Any) -> AgenticConfig:
    """Arguments of a run on two processes, whose trainer will shard."""
    os.environ |= FSDP2
    args = config(output_dir, processes=2, **changes)
    assert args.device.type == "cpu"
    PartialState().distributed_type = DistributedType.MULTI_GPU
    PartialState().device = torch.device("cpu")
    return args


def main() -> None:
    model, out = sys.argv[1], Path(sys.argv[2])
    results = {}
    for name in ("idle", "idle_gain", "window"):
        changes = dict(RUNS[name])
        lengths = changes.pop("lengths")
        trainer = train(model, sharded_config(out / name, **changes), 2, lengths)
        assert trainer.accelerator.distributed_type == DistributedType.FSDP and trainer._params_sharded
        weights: dict[str, Any] = trainer.accelerator.get_state_dict(trainer.model)
        assert {type(parameter).__name__ for parameter in trainer.model.parameters()} == {"DTensor"}
        results[name] = {"advantages": trainer.recorded, "parameters": weights, "log": trainer.state.log_history}
    torch.save(results, out / f"rank{os.environ['RANK']}.pt")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
