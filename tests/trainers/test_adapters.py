"""LoRA and full fine-tuning: each changes the parameters that it should and no others."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.toys import Corridor
from tests.trainers.small import history, parameters, small_config, tasks
from trl_agentic import GAGPOConfig, GAGPOTrainer


Model = Callable[..., Path]


def trained(model: Path, output_dir: Path, adapter: Any = None, **changes: Any) -> tuple[Any, Any, GAGPOTrainer]:
    """Parameters before and after a run in a window."""
    options = {"learning_rate": 1e-2, "context": "window", "history_length": 1, "max_context_length": 200}
    args = small_config(GAGPOConfig, output_dir, max_tokens_per_micro_batch=400, **(options | changes))
    trainer = GAGPOTrainer(
        str(model), args=args, train_dataset=tasks(), environment_factory=Corridor, peft_config=adapter
    )
    before = parameters(trainer)
    trainer.train()
    return before, parameters(trainer), trainer


def lora(**options: Any) -> Any:
    peft = pytest.importorskip("peft", reason="needs the `peft` extra")
    return peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM", **options)


@pytest.mark.parametrize("beta", [0.0, 0.1])
def test_lora_changes_the_adapter_alone(beta: float, tiny_model_dir: Model, tmp_path: Path):
    """The reference model, if there is one, is the base model without the adapter: no copy, no divergence at first."""
    before, after, trainer = trained(tiny_model_dir(), tmp_path, lora(), beta=beta)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {name for name in before if "lora_" in name} != set()
    assert trainer.ref_model is None
    if beta:
        kl = history(trainer, "kl")
        assert kl[0] == pytest.approx(0, abs=1e-7) and kl[2] > 1e-7
    assert all(history(trainer, "grad_norm"))


@pytest.mark.parametrize("beta", [0.0, 0.1])
def test_full_fine_tuning_changes_the_policy_alone(beta: float, tiny_model_dir: Model, tmp_path: Path):
    before, after, trainer = trained(tiny_model_dir(), tmp_path, beta=beta)
    assert not any(torch.equal(before[name], after[name]) for name in before)
    if beta == 0:
        assert trainer.ref_model is None
        return
    reference = trainer.accelerator.unwrap_model(trainer.ref_model).named_parameters()
    assert all(torch.equal(parameter, before[name]) for name, parameter in reference)


@pytest.mark.parametrize("adapter", [False, True])
def test_gradient_checkpointing_changes_nothing(adapter: bool, tiny_model_dir: Model, tmp_path: Path):
    """Layers are computed twice, gradients are the same."""
    runs = []
    for recompute in (False, True):
        options = {"init_lora_weights": False} if adapter else {}
        torch.manual_seed(0)
        _, after, trainer = trained(
            tiny_model_dir(), tmp_path, lora(**options) if adapter else None, gradient_checkpointing=recompute,
            optim="sgd", beta=0.1, num_iterations=2, max_steps=2,
        )  # fmt: skip
        layers = trainer.accelerator.unwrap_model(trainer.model).get_base_model() if adapter else trainer.model
        assert layers.model.layers[0].gradient_checkpointing is recompute
        runs.append((history(trainer, "loss"), history(trainer, "grad_norm"), after))
    assert runs[1][0] == pytest.approx(runs[0][0], rel=1e-4, abs=1e-7)
    assert runs[1][1] == pytest.approx(runs[0][1], rel=1e-4)
    for name, parameter in runs[0][2].items():
        torch.testing.assert_close(runs[1][2][name], parameter, rtol=1e-5, atol=1e-6)
