"""Training with vLLM: ids and log-probabilities of another engine are used, and the mismatch is corrected.

An engine that samples from the same model takes vLLM's place. It can report wrong log-probabilities, which the real
one, in tests/vllm, cannot.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.toys import Corridor
from tests.trainers.small import history, small_config, tasks
from trl_agentic import AgenticGRPOConfig, AgenticGRPOTrainer, AgenticTrainer, GAGPOConfig, GAGPOTrainer
from trl_agentic.loss import turn_lengths
from trl_agentic.rollout.engine_source import VLLMSource
from trl_agentic.rollout.engines import GenerateEngine, Request, Sample, Sampling
from trl_agentic.rollout.weight_sync import ColocateWeightSync


class Reporting(GenerateEngine):
    """Reports log-probabilities of a model plus `shift`."""

    def __init__(
        self, model: Any, trainer: AgenticTrainer, sampling: Sampling, shift: float, policy_step: int | None = None
    ):
        pad_token_id = trainer.processing_class.pad_token_id
        super().__init__(model, trainer.eos_token_ids, pad_token_id, sampling, policy_step=policy_step)
        self.shift = shift

    @torch.no_grad()
    def generate(self, requests: list[Request]) -> list[Sample]:
        samples = super().generate(requests)
        return [
            replace(sample, logprobs=self._logprobs(request.prompt_ids, sample.ids))
            for request, sample in zip(requests, samples, strict=True)
        ]

    def _logprobs(self, prompt: list[int], ids: list[int]) -> list[float]:
        logits = self._model(torch.tensor([prompt + ids])).logits[0, len(prompt) - 1 : -1]
        reported = torch.log_softmax(logits.float(), -1).gather(1, torch.tensor(ids)[:, None])[:, 0] + self.shift
        return reported.tolist()

    def close(self) -> None:
        """It has nothing to close."""


class Generation:
    """The part of TRL's vLLM generation that sends the weights."""

    def __init__(self) -> None:
        self.syncs = 0

    def sync_weights(self) -> None:
        self.syncs += 1


@contextmanager
def unmeasured(name: str) -> Iterator[None]:
    yield


def trained(
    model: Path, output_dir: Path, shift: float = 0.0, pair: Any = (GAGPOTrainer, GAGPOConfig), **changes: Any
) -> tuple[AgenticTrainer, Generation, list[float]]:
    """Trains; returns the trainer, the count of weights sent and the temperatures of the engines."""
    trainer_class, config_class = pair
    temperatures: list[float] = []
    eval_dataset = changes.pop("eval_dataset", None)
    args = small_config(config_class, output_dir, **changes)
    trainer = trainer_class(
        str(model), args=args, train_dataset=tasks(), eval_dataset=eval_dataset, environment_factory=Corridor
    )

    def engine(sampling: Sampling) -> Any:
        temperatures.append(sampling.temperature)
        return Reporting(trainer.model, trainer, sampling, shift)

    generation = Generation()
    sync = ColocateWeightSync(generation, lambda: trainer.state.global_step, sleeps=False, profile=unmeasured)
    trainer.use_vllm, trainer.generation.engines = True, VLLMSource(sync, engine)
    trainer.train()
    return trainer, generation, temperatures


@pytest.mark.parametrize(
    "pair", [(GAGPOTrainer, GAGPOConfig), (AgenticGRPOTrainer, AgenticGRPOConfig)], ids=["gagpo", "grpo"]
)
def test_weights_are_sent_once_a_step_and_the_same_model_needs_no_correction(
    pair: Any, tiny_model_dir: Callable[..., Path], tmp_path: Path
):
    trainer, generation, temperatures = trained(tiny_model_dir(), tmp_path, pair=pair)
    assert generation.syncs == 3
    assert temperatures == [1.0] * 3
    assert max(history(trainer, "sampling/sampling_logp_difference/max")) < 1e-4
    assert history(trainer, "sampling/importance_sampling_ratio/mean") == pytest.approx([1.0] * 3, abs=1e-4)
    assert all(math.isfinite(loss) for loss in history(trainer, "loss"))


def test_a_mismatch_is_measured_and_corrected(tiny_model_dir: Callable[..., Path], tmp_path: Path):
    plain, *_ = trained(tiny_model_dir(), tmp_path, max_steps=1, max_grad_norm=0.0, beta=0.0)
    shifted, *_ = trained(tiny_model_dir(), tmp_path, shift=-0.2, max_steps=1, max_grad_norm=0.0, beta=0.0)
    assert history(shifted, "sampling/sampling_logp_difference/max") == pytest.approx([0.2], abs=1e-4)
    assert history(shifted, "sampling/importance_sampling_ratio/mean") == pytest.approx([math.exp(0.2)], rel=1e-4)
    # Every sampled token has the weight exp(0.2), and so has the gradient.
    norms = history(plain, "grad_norm")[0], history(shifted, "grad_norm")[0]
    assert norms[1] == pytest.approx(math.exp(0.2) * norms[0], rel=1e-3)


def test_an_unknown_log_probability_is_not_corrected(tiny_model_dir: Callable[..., Path], tmp_path: Path):
    trainer, *_ = trained(tiny_model_dir(), tmp_path, shift=math.nan)
    assert history(trainer, "sampling/sampling_logp_difference/max") == [0.0] * 3
    assert history(trainer, "sampling/importance_sampling_ratio/mean") == [1.0] * 3
    assert all(math.isfinite(norm) and norm > 0 for norm in history(trainer, "grad_norm"))


def test_evaluation_has_its_own_temperature(tiny_model_dir: Callable[..., Path], tmp_path: Path):
    trainer, _, temperatures = trained(tiny_model_dir(), tmp_path, max_steps=1, eval_temperature=0.5)
    trainer.rollout([{"length": 1}] * 3)
    assert temperatures == [1.0, 0.5]


def test_weights_that_did_not_change_are_not_sent_again(tiny_model_dir: Callable[..., Path], tmp_path: Path):
    trainer, generation, _ = trained(tiny_model_dir(), tmp_path)
    for _ in range(3):  # the weights after the last step, once
        trainer.rollout([{"length": 1}] * 2)
        assert generation.syncs == 4


def test_the_best_weights_are_sent_when_they_are_loaded(tiny_model_dir: Callable[..., Path], tmp_path: Path):
    """They are those of an earlier step than the step counter shows."""
    changes = {
        "eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1, "max_steps": 2,
        "load_best_model_at_end": True, "metric_for_best_model": "eval_loss", "num_generations_eval": 1,
    }  # fmt: skip
    trainer, generation, _ = trained(tiny_model_dir(), tmp_path, eval_dataset=tasks(2), **changes)
    before = generation.syncs
    trainer.rollout([{"length": 1}] * 2)
    assert generation.syncs == before + 1


def test_a_second_training_begins_with_its_own_weights(tiny_model_dir: Callable[..., Path], tmp_path: Path):
    trainer, generation, _ = trained(tiny_model_dir(), tmp_path, max_steps=1)
    trainer.train()
    assert generation.syncs == 2


def test_a_turn_has_one_correction(tiny_model_dir: Callable[..., Path], tmp_path: Path):
    """Reported log-probabilities are 0.01 too low each, so a turn of n tokens has the weight exp(0.01 n)."""
    changes = {"vllm_importance_sampling_mode": "turn_truncate", "num_iterations": 2}
    trainer, *_ = trained(tiny_model_dir(), tmp_path, shift=-0.01, max_steps=1, **changes)
    for batch in trainer._buffered_inputs[0]:
        mask = batch["tool_mask"].bool()
        expected = (0.01 * turn_lengths(mask, batch["turn_ids"])).exp()
        torch.testing.assert_close(batch["importance_sampling_ratio"][mask], expected[mask], rtol=1e-3, atol=0)
        assert expected.max() > 1.05
