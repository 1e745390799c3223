"""The trainer's side of vLLM: weights sent once a step, ids and log-probabilities taken back, the mismatch corrected.

vLLM's place is taken by an engine that samples from the same model and can be made to tell wrong log-probabilities,
which the real one, in tests/vllm, cannot.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from threading import Lock
from typing import Any

import pytest
import torch

from tests.toys import Corridor
from tests.trainers.small import history, small_config, tasks
from trl_agentic import AgenticGRPOConfig, AgenticGRPOTrainer, AgenticTrainer, GAGPOConfig, GAGPOTrainer
from trl_agentic.loss import turn_lengths
from trl_agentic.rollout.engines import GenerateEngine, Request, Sample, Sampling


class Telling(GenerateEngine):
    """Tells log-probabilities of the trainer's model plus `shift`."""

    def __init__(self, trainer: AgenticTrainer, sampling: Sampling, shift: float):
        super().__init__(trainer.model, trainer.eos_token_ids, trainer.processing_class.pad_token_id, sampling)
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
        told = torch.log_softmax(logits.float(), -1).gather(1, torch.tensor(ids)[:, None])[:, 0] + self.shift
        return told.tolist()

    def close(self) -> None:
        pass


class Generation:
    """The part of TRL's vLLM generation that the trainer uses: it sends the weights."""

    def __init__(self) -> None:
        self.syncs = 0

    def sync_weights(self) -> None:
        self.syncs += 1


def trained(
    model: Path, output_dir: Path, shift: float = 0.0, pair: Any = (GAGPOTrainer, GAGPOConfig), **changes: Any
) -> tuple[AgenticTrainer, Generation, list[float]]:
    """Trains; returns the trainer, the count of weights sent and the temperatures sampled at."""
    trainer_class, config_class = pair
    temperatures: list[float] = []
    eval_dataset = changes.pop("eval_dataset", None)

    class WithEngine(trainer_class):  # type: ignore[misc, valid-type]
        def _vllm_engine(self, sampling: Sampling) -> Any:
            temperatures.append(sampling.temperature)
            return Telling(self, sampling, shift)

    args = small_config(config_class, output_dir, **changes)
    trainer = WithEngine(
        str(model), args=args, train_dataset=tasks(), eval_dataset=eval_dataset, environment_factory=Corridor
    )
    trainer.use_vllm, trainer._last_loaded_step = True, -1
    trainer.vllm_generation = generation = Generation()
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
    # Every sampled token weighs exp(0.2), so the gradient does.
    norms = history(plain, "grad_norm")[0], history(shifted, "grad_norm")[0]
    assert norms[1] == pytest.approx(math.exp(0.2) * norms[0], rel=1e-3)


def test_an_unknown_log_probability_is_not_corrected(tiny_model_dir: Callable[..., Path], tmp_path: Path):
    trainer, *_ = trained(tiny_model_dir(), tmp_path, shift=math.nan)
    assert history(trainer, "sampling/sampling_logp_difference/max") == [0.0] * 3
    assert history(trainer, "sampling/importance_sampling_ratio/mean") == [1.0] * 3
    assert all(math.isfinite(norm) and norm > 0 for norm in history(trainer, "grad_norm"))


def test_evaluation_has_a_temperature_of_its_own(tiny_model_dir: Callable[..., Path], tmp_path: Path):
    trainer, _, temperatures = trained(tiny_model_dir(), tmp_path, max_steps=1, eval_temperature=0.5)
    trainer.rollout([{"length": 1}] * 3)
    assert temperatures == [1.0, 0.5]


def test_weights_that_did_not_change_are_not_sent_again(tiny_model_dir: Callable[..., Path], tmp_path: Path):
    trainer, generation, _ = trained(tiny_model_dir(), tmp_path)
    for _ in range(3):  # the weights after the last step, once
        trainer.rollout([{"length": 1}] * 2)
        assert generation.syncs == 4


def test_the_best_weights_are_sent_when_they_are_loaded(tiny_model_dir: Callable[..., Path], tmp_path: Path):
    """They are those of another step than the counter says."""
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
    """Told log-probabilities are 0.01 too low each, so a turn of n tokens weighs exp(0.01 n)."""
    changes = {"vllm_importance_sampling_mode": "turn_truncate", "num_iterations": 2}
    trainer, *_ = trained(tiny_model_dir(), tmp_path, shift=-0.01, max_steps=1, **changes)
    for batch in trainer._buffered_inputs[0]:
        mask = batch["tool_mask"].bool()
        expected = (0.01 * turn_lengths(mask, batch["turn_ids"])).exp()
        torch.testing.assert_close(batch["importance_sampling_ratio"][mask], expected[mask], rtol=1e-3, atol=0)
        assert expected.max() > 1.05


def test_asleep_vllm_gets_its_weights_at_every_use(tiny_model_dir: Callable[..., Path], tmp_path: Path):
    """Once a batch of rollouts, however many turns it takes."""
    calls: list[str] = []

    class Sleeper(Generation):
        @property
        def llm(self) -> Any:
            return self

        def wake_up(self, tags: list[str]) -> None:
            calls.append(f"wake {tags}")

        def sleep(self, level: int) -> None:
            calls.append(f"sleep {level}")

        def sync_weights(self) -> None:
            calls.append("weights")

    trainer, *_ = trained(tiny_model_dir(), tmp_path, max_steps=1)
    trainer.args.vllm_enable_sleep_mode, trainer.vllm_generation = True, Sleeper()
    for _ in range(2):
        trainer.rollout([{"length": 1}] * 2)
    assert calls == ["weights", "wake ['kv_cache']", "sleep 2"] * 2


def test_servers_that_come_back_together_get_the_weights_one_after_the_other(
    tiny_model_dir: Callable[..., Path], tmp_path: Path
):
    sending: list[int] = []

    class Restarted(GAGPOTrainer):
        def _server_start(self, url: str) -> float:
            return 2.0

        def _send_weights_to(self, i: int) -> None:
            sending.append(i)
            time.sleep(0.1)
            assert sending[-1] == i, "another server was begun with"
            self._server_starts[i] = 2.0

    args = small_config(GAGPOConfig, tmp_path)
    trainer = Restarted(str(tiny_model_dir()), args=args, train_dataset=tasks(), environment_factory=Corridor)
    trainer.args.vllm_server_base_urls = urls = ["http://a:1", "http://b:2"]
    trainer.vllm_generation = Generation()
    trainer._server_starts, trainer._vllm_clients, trainer._sending = [1.0, 1.0], ["a", "b"], Lock()
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(trainer._welcome_back, urls * 2))
    assert sorted(sending) == [0, 1]  # each once
    assert trainer.vllm_generation.vllm_client == "a"  # TRL's own
