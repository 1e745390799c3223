"""Backward passes of the micro-batches of one accumulation step."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor


class LocalBackward:
    """Runs backward passes whose gradients stay in this process, before the last micro-batch of a step.

    Args:
        accelerator: the trainer's accelerator.
        is_fsdp: whether FSDP shards the model. Gradients that were not exchanged are not sharded either, so FSDP
            exchanges them in every pass.
        is_deepspeed: whether DeepSpeed trains the model. As in transformers, its backward pass does not scale.
    """

    def __init__(self, accelerator: Accelerator, is_fsdp: bool, is_deepspeed: bool):
        self._accelerator, self._is_fsdp = accelerator, is_fsdp
        self._options: dict[str, Any] = {"scale_wrt_gas": False} if is_deepspeed else {}

    def __call__(self, model: Any, batches: Sequence[Any], compute_loss: Callable[[Any], Tensor]) -> Tensor:
        """Computes the loss of each batch and its gradient.

        Returns:
            0-d `Tensor`: the sum of the losses, without a gradient.
        """
        total = torch.zeros((), device=self._accelerator.device)
        for batch in batches:
            with self._without_update(model):
                loss = compute_loss(batch)
                if loss.requires_grad:
                    self._accelerator.backward(loss, **self._options)
            total += loss.detach()
        return total

    @contextmanager
    def _without_update(self, model: Any) -> Iterator[None]:
        """Backward passes in this context end without an exchange between processes and without an optimizer step."""
        synced = self._accelerator.sync_gradients
        self._accelerator.sync_gradients = False  # DeepSpeed takes its step according to this flag
        try:
            with nullcontext() if self._is_fsdp else self._accelerator.no_sync(model):
                yield
        finally:
            self._accelerator.sync_gradients = synced
