"""The trainer's side of vLLM: weights sent once a step, ids and log-probabilities taken back, the mismatch corrected.

vLLM itself is played by an object with the interface of TRL's `VLLMGeneration` that samples from the same model.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.toys import Corridor
from tests.trainers.small import history, small_config, tasks
from trl_agentic import AgenticGRPOConfig, AgenticGRPOTrainer, AgenticTrainer, GAGPOConfig, GAGPOTrainer
from trl_agentic.loss import turn_lengths
from trl_agentic.rollout.engines import Request, Sampling, TransformersEngine


class LocalGeneration:
    """Samples from the trainer's model. `shift` is added to the log-probabilities that it tells; NaN counts."""

    def __init__(self, trainer: AgenticTrainer, shift: float = 0.0):
        self.trainer, self.shift = trainer, shift
        self.temperature, self.max_completion_length = trainer.temperature, trainer.budgets.max_turn_tokens
        self.syncs = self.calls = 0
        self.temperatures: set[float] = set()

    def sync_weights(self) -> None:
        self.syncs += 1

    @torch.no_grad()
    def generate(self, prompts: list[list[int]], images: None, num_generations: int) -> tuple[Any, ...]:
        assert num_generations == 1
        self.calls += 1
        self.temperatures.add(self.temperature)
        model, tokenizer = self.trainer.model, self.trainer.processing_class
        engine = TransformersEngine(
            model, self.trainer.eos_token_ids, tokenizer.pad_token_id, Sampling(self.temperature), keep_cache=False
        )
        requests = [Request(i, p, self.max_completion_length, 100 * self.calls + i) for i, p in enumerate(prompts)]
        ids = [sample.ids for sample in engine.generate(requests)]
        logprobs = [self._logprobs(p, sampled) for p, sampled in zip(prompts, ids, strict=True)]
        return prompts, ids, logprobs, None

    def _logprobs(self, prompt: list[int], ids: list[int]) -> list[list[float | None]]:
        logits = self.trainer.model(torch.tensor([prompt + ids])).logits[0, len(prompt) - 1 : -1]
        told = torch.log_softmax(logits.float(), -1).gather(1, torch.tensor(ids)[:, None])[:, 0] + self.shift
        return [[None if math.isnan(value) else value] for value in told.tolist()]


def trained(
    model: Path, output_dir: Path, shift: float = 0.0, pair: Any = (GAGPOTrainer, GAGPOConfig), **changes: Any
) -> tuple[AgenticTrainer, LocalGeneration]:
    trainer_class, config_class = pair
    args = small_config(config_class, output_dir, **changes)
    trainer = trainer_class(str(model), args=args, train_dataset=tasks(), environment_factory=Corridor)
    trainer.use_vllm, trainer._last_loaded_step = True, -1
    trainer.vllm_generation = generation = LocalGeneration(trainer, shift)
    trainer.train()
    return trainer, generation


@pytest.mark.parametrize(
    "pair", [(GAGPOTrainer, GAGPOConfig), (AgenticGRPOTrainer, AgenticGRPOConfig)], ids=["gagpo", "grpo"]
)
def test_weights_are_sent_once_a_step_and_the_same_model_needs_no_correction(
    pair: Any, tiny_model_dir: Callable[..., Path], tmp_path: Path
):
    trainer, generation = trained(tiny_model_dir(), tmp_path, pair=pair)
    assert generation.syncs == 3 < generation.calls  # a call for each turn
    assert generation.temperatures == {1.0}
    assert max(history(trainer, "sampling/sampling_logp_difference/max")) < 1e-4
    assert history(trainer, "sampling/importance_sampling_ratio/mean") == pytest.approx([1.0] * 3, abs=1e-4)
    assert all(math.isfinite(loss) for loss in history(trainer, "loss"))


def test_a_mismatch_is_measured_and_corrected(tiny_model_dir: Callable[..., Path], tmp_path: Path):
    plain, _ = trained(tiny_model_dir(), tmp_path, max_steps=1, max_grad_norm=0.0, beta=0.0)
    shifted, _ = trained(tiny_model_dir(), tmp_path, shift=-0.2, max_steps=1, max_grad_norm=0.0, beta=0.0)
    assert history(shifted, "sampling/sampling_logp_difference/max") == pytest.approx([0.2], abs=1e-4)
    assert history(shifted, "sampling/importance_sampling_ratio/mean") == pytest.approx([math.exp(0.2)], rel=1e-4)
    # Every sampled token weighs exp(0.2), so the gradient does.
    norms = history(plain, "grad_norm")[0], history(shifted, "grad_norm")[0]
    assert norms[1] == pytest.approx(math.exp(0.2) * norms[0], rel=1e-3)


def test_an_unknown_log_probability_is_not_corrected(tiny_model_dir: Callable[..., Path], tmp_path: Path):
    trainer, _ = trained(tiny_model_dir(), tmp_path, shift=math.nan)
    assert history(trainer, "sampling/sampling_logp_difference/max") == [0.0] * 3
    assert history(trainer, "sampling/importance_sampling_ratio/mean") == [1.0] * 3
    assert all(math.isfinite(norm) and norm > 0 for norm in history(trainer, "grad_norm"))


def test_evaluation_has_a_temperature_of_its_own(tiny_model_dir: Callable[..., Path], tmp_path: Path):
    trainer, generation = trained(tiny_model_dir(), tmp_path, max_steps=1, eval_temperature=0.5)
    generation.temperatures.clear()
    trainer.rollout([{"length": 1}] * 3)
    assert generation.temperatures == {0.5} and generation.temperature == 1.0


def test_weights_that_did_not_change_are_not_sent_again(tiny_model_dir: Callable[..., Path], tmp_path: Path):
    trainer, generation = trained(tiny_model_dir(), tmp_path)
    for _ in range(3):  # the weights after the last step, once
        trainer.rollout([{"length": 1}] * 2)
        assert generation.syncs == 4


def test_a_turn_has_one_correction(tiny_model_dir: Callable[..., Path], tmp_path: Path):
    """Told log-probabilities are 0.01 too low each, so a turn of n tokens weighs exp(0.01 n)."""
    changes = {"vllm_importance_sampling_mode": "turn_truncate", "num_iterations": 2}
    trainer, _ = trained(tiny_model_dir(), tmp_path, shift=-0.01, max_steps=1, **changes)
    for batch in trainer._buffered_inputs[0]:
        mask = batch["tool_mask"].bool()
        expected = (0.01 * turn_lengths(mask, batch["turn_ids"])).exp()
        torch.testing.assert_close(batch["importance_sampling_ratio"][mask], expected[mask], rtol=1e-3, atol=0)
        assert expected.max() > 1.05
