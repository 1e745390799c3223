"""GAGPO and A2TGPO with parameters that FSDP (1 or 2) shards over two processes on the CPU.

    python -m torch.distributed.run --standalone --nproc_per_node 2 tests/distributed/sharded.py MODEL VERSION OUT

accelerate shards on accelerators only. It does so over gloo when the job presents itself as one of several GPUs whose
device is the CPU; only a test should do that.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import DistributedType
from torch.distributed.fsdp import FullyShardedDataParallel

from tests.distributed.corridor import RUNS, config, train
from trl_agentic import AgenticConfig, AgenticTrainer


DECODER_LAYER = "Qwen3DecoderLayer"
FSDP = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_TRANSFORMER_CLS_TO_WRAP": DECODER_LAYER,
    "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT",
    "FSDP_CPU_RAM_EFFICIENT_LOADING": "false",
}


def sharded_config(output_dir: Path, version: int = 2, **changes: Any) -> AgenticConfig:
    """Arguments of a run on two processes, whose trainer will shard."""
    os.environ |= FSDP | {"FSDP_VERSION": str(version)}
    args = config(output_dir, processes=2, **changes)
    assert args.device.type == "cpu"
    PartialState().distributed_type = DistributedType.MULTI_GPU
    PartialState().device = torch.device("cpu")
    return args


def whole_weights(trainer: AgenticTrainer) -> dict[str, torch.Tensor]:
    """As `get_state_dict`, which fails with FSDP1 on CPUs: torch frees what it has just moved to the CPU."""
    with FullyShardedDataParallel.summon_full_params(trainer.model):
        named = [(name.replace("_fsdp_wrapped_module.", ""), p) for name, p in trainer.model.named_parameters()]
        return {name: parameter.detach().clone() for name, parameter in named}


def main() -> None:
    model, version, out = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])
    results = {}
    for name in ("idle", "idle_gain", "window") if version == 2 else ("window",):
        changes = dict(RUNS[name])
        lengths = changes.pop("lengths")
        trainer = train(model, sharded_config(out / name, version, **changes), 2, lengths)
        assert trainer.accelerator.distributed_type == DistributedType.FSDP
        assert trainer.generation.engines.samples_in_step
        weights = whole_weights(trainer) if version == 1 else trainer.accelerator.get_state_dict(trainer.model)
        kinds = {type(module).__name__ for module in trainer.model.modules()}
        assert (f"FSDP{DECODER_LAYER}" in kinds, "FullyShardedDataParallel" in kinds) == (version == 2, version == 1)
        results[name] = {"advantages": trainer.recorded, "parameters": weights, "log": trainer.state.log_history}
    torch.save(results, out / f"rank{os.environ['RANK']}.pt")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
