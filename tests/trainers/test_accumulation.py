"""Backward passes before the last micro-batch of a step: the gradients add up, and no optimizer step is taken."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor

from trl_agentic.trainers.accumulation import LocalBackward


@pytest.fixture
def accelerator() -> Accelerator:
    return Accelerator(cpu=True)


def test_losses_and_gradients_add_up(accelerator: Accelerator):
    """Loss w * x for x of 1, 2 and 4: the sum is 7 w, its gradient 7."""
    model = torch.nn.Linear(1, 1, bias=False)
    model.weight.data.fill_(3.0)
    syncs: list[bool] = []

    def loss_of(x: float) -> Tensor:
        syncs.append(accelerator.sync_gradients)
        return model.weight.sum() * x

    backward = LocalBackward(accelerator, is_fsdp=False, is_deepspeed=False)
    assert accelerator.sync_gradients is True
    total = backward(model, [1.0, 2.0, 4.0], loss_of)
    assert total.item() == 21.0 and not total.requires_grad
    assert model.weight.grad.item() == 7.0
    assert syncs == [False] * 3 and accelerator.sync_gradients is True


def test_without_other_micro_batches_nothing_happens(accelerator: Accelerator):
    backward = LocalBackward(accelerator, is_fsdp=False, is_deepspeed=False)
    assert backward(torch.nn.Linear(1, 1), [], lambda batch: pytest.fail("there is no batch")).item() == 0.0


def test_in_evaluation_there_is_no_backward_pass(accelerator: Accelerator):
    model = torch.nn.Linear(1, 1, bias=False)
    backward = LocalBackward(accelerator, is_fsdp=False, is_deepspeed=False)
    with torch.no_grad():
        total = backward(model, [1.0, 2.0], lambda x: torch.tensor(x))
    assert total.item() == 3.0 and model.weight.grad is None


def test_the_flag_is_restored_after_an_error(accelerator: Accelerator):
    def broken(batch: Any) -> Tensor:
        raise ValueError("broken")

    backward = LocalBackward(accelerator, is_fsdp=True, is_deepspeed=False)
    with pytest.raises(ValueError, match="broken"):
        backward(torch.nn.Linear(1, 1), [1.0], broken)
    assert accelerator.sync_gradients is True


@pytest.mark.parametrize(("is_fsdp", "is_deepspeed"), [(False, False), (True, False), (False, True)])
def test_gradients_are_exchanged_only_where_they_must_be(is_fsdp: bool, is_deepspeed: bool):
    class Recording:
        device = torch.device("cpu")
        sync_gradients = True

        def __init__(self) -> None:
            self.options: list[dict[str, Any]] = []
            self.no_syncs = 0

        def no_sync(self, model: Any) -> Any:
            self.no_syncs += 1
            return torch.enable_grad()

        def backward(self, loss: Tensor, **options: Any) -> None:
            self.options.append(options)

    accelerator: Any = Recording()
    weight = torch.ones(1, requires_grad=True)
    LocalBackward(accelerator, is_fsdp, is_deepspeed)(None, [1.0, 2.0], lambda x: weight.sum() * x)
    assert accelerator.no_syncs == (0 if is_fsdp else 2)
    assert accelerator.options == [{"scale_wrt_gas": False} if is_deepspeed else {}] * 2
