"""Changes to vLLM's CPU build and to TRL that training needs. For tests only: GPUs need none of them.

- Weights reach a server over NCCL, which does not run on CPUs. Here they go through a file (backend "disk").
- The CPU build repacks the weights of linear layers when it loads a checkpoint and drops the originals, so that later
  weights have no destination. Here it keeps the originals and multiplies with them.
- If vLLM computes a prompt in parts, it rewinds random generators, which is not possible on the CPU. Here a step has
  room for all prompts as a whole (`MOST_TOKENS`).

Loaded into a server's workers by `--worker-extension-cls tests.vllm.cpu.Worker`.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory
from vllm.model_executor.layers import utils as layers


ENVIRONMENT = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "OMP_NUM_THREADS": "1",
    "TORCHDYNAMO_DISABLE": "1",  # vLLM compiles parts of its sampler even in eager mode, for minutes
}
MOST_TOKENS = 32768  # of one step of the engine


@dataclass
class NoArguments(WeightTransferInitInfo):
    """Arguments for opening a connection: none."""


@dataclass
class File(WeightTransferUpdateInfo):
    """Path of the file with the weights, a list of names and tensors."""

    path: str


class DiskTransfer(WeightTransferEngine):
    """Weight transfer through a file."""

    init_info_cls, update_info_cls = NoArguments, File

    def init_transfer_engine(self, init_info: NoArguments) -> None:
        pass

    def start_weight_update(self) -> None:
        pass

    def receive_weights(self, update_info: File) -> None:
        self.model.load_weights(torch.load(update_info.path))

    def finish_weight_update(self) -> None:
        pass

    def shutdown(self) -> None:
        pass


def _multiply_as_loaded(layer: torch.nn.Module, remove_weight: bool) -> None:
    if layer.weight.ndim == 2 or layer.weight.is_meta:
        layer.cpu_linear = torch.nn.functional.linear


layers.dispatch_cpu_unquantized_gemm = _multiply_as_loaded
if "disk" not in WeightTransferEngineFactory._registry:
    WeightTransferEngineFactory.register_engine("disk", DiskTransfer)


class Worker:
    """Empty extension: vLLM imports this module for it."""


def patch_trl(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets TRL's client send weights through a file, and its colocated engine compute in float32, not compiled."""
    from trl.generation import vllm_generation
    from trl.generation.vllm_client import VLLMClient

    def init_communicator(self: Any, device: Any = 0) -> None:
        self._post(f"{self.base_url}/init_weight_transfer_engine", json={"init_info": {}})

    def update_named_params(self: Any, metadata: Any, named_params: Iterator[tuple[str, Tensor]]) -> None:
        file, path = tempfile.mkstemp(suffix=".pt")
        os.close(file)
        torch.save([(name, parameter.detach().clone()) for name, parameter in named_params], path)
        self._start_weight_update()
        self._post(f"{self.base_url}/update_weights", json={"update_info": {"path": path}})
        self._finish_weight_update()
        Path(path).unlink()

    monkeypatch.setattr(VLLMClient, "init_communicator", init_communicator)
    monkeypatch.setattr(VLLMClient, "update_named_params", update_named_params)
    llm = vllm_generation.LLM

    forced = {"enforce_eager": True, "dtype": "float32", "max_num_batched_tokens": MOST_TOKENS}

    def eager(*args: Any, **options: Any) -> Any:
        return llm(*args, **options | forced)

    monkeypatch.setattr(vllm_generation, "LLM", eager)
