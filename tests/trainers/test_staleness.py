"""The next batch is sampled beside the training on this one. Servers are in tests/vllm.

A server's place is taken by a copy of the model that gets the weights when they are sent.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainerCallback

from tests.toys import Corridor
from tests.trainers.small import history, small_config, tasks
from tests.trainers.test_vllm_path import Telling
from trl_agentic import AgenticConfig, GAGPOConfig, GAGPOTrainer
from trl_agentic.rollout.engines import Request, Sample, Sampling
from trl_agentic.rollout.loop import RolloutClock
from trl_agentic.types import StepResult, Trajectory


Model = Callable[..., Path]


class Copied(Telling):
    """Samples from the copy, and says whose weights it has."""

    def __init__(self, trainer: Served, sampling: Sampling):
        super().__init__(trainer, sampling, shift=0.0)
        self._model, self._policy_step = trainer.copied, trainer.state.global_step
        self.trainer, self.closed = trainer, threading.Event()

    def generate(self, requests: list[Request]) -> list[Sample]:
        if self.closed.is_set():
            raise RuntimeError("closed")
        self.trainer.sampling.set()
        samples = super().generate(requests)
        self.trainer.sampling.clear()
        return samples

    def close(self) -> None:
        self.closed.set()


class Served(GAGPOTrainer):
    """Keeps what it trains on: for each batch, the rollouts and the weights that were sent for them."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.args.rollout_ahead = 1
        self.use_vllm, self.vllm_mode, self._last_loaded_step = True, "server", -1
        self.copied = copy.deepcopy(self.model).eval()
        self.sampling = threading.Event()
        self.sent: list[int] = []
        self.batches: list[tuple[list[Trajectory], RolloutClock]] = []

    def _send_weights(self) -> None:
        assert not self.sampling.is_set(), "weights were sent amid the rollouts"
        self.sent.append(self.state.global_step)
        self.copied.load_state_dict(self.model.state_dict())

    def _check_servers(self) -> None:
        pass

    def _vllm_engine(self, sampling: Sampling) -> Any:
        return Copied(self, sampling)

    def _next_rollouts(self, mode: str, rows: list[dict[str, Any]]) -> tuple[list[Trajectory], RolloutClock]:
        played = super()._next_rollouts(mode, rows)
        if mode == "train":
            self.batches.append(played)
        return played


def trainer(
    model: Path, output_dir: Path, environment: Any = Corridor, kind: type[Served] = Served, **changes: Any
) -> Served:
    callbacks = changes.pop("callbacks", None)
    args = small_config(GAGPOConfig, output_dir, **{"learning_rate": 1e-2, "gradient_checkpointing": False, **changes})
    return kind(
        str(model), args=args, train_dataset=tasks(40), eval_dataset=tasks(2), environment_factory=environment,
        callbacks=callbacks,
    )  # fmt: skip


def policy_steps(run: Served) -> list[set[int | None]]:
    return [{turn.policy_step for trajectory in played for turn in trajectory.turns} for played, _ in run.batches]


def test_a_batch_is_sampled_by_the_weights_of_one_before_and_corrected(tiny_model_dir: Model, tmp_path: Path):
    run = trainer(tiny_model_dir(), tmp_path, max_steps=4, save_strategy="steps", save_steps=2)
    run.train()
    assert policy_steps(run) == [{0}, {0}, {1}, {2}] and run.sent == [0, 1, 2]
    gaps = history(run, "sampling/sampling_logp_difference/max")
    assert gaps[0] < 1e-4 and min(gaps[1:]) > 1e-3
    # The ratio begins at 1, with the log-probabilities of the weights that are trained, not of those that sampled.
    assert history(run, "clip_ratio/region_mean") == [0.0] * 4
    [last] = run._buffered_inputs[0]
    mask = last["tool_mask"].bool()
    gap = last["old_per_token_logps"] - last["sampling_per_token_logps"]
    torch.testing.assert_close(last["importance_sampling_ratio"][mask], gap.exp().clamp(max=2.0)[mask])
    assert (last["importance_sampling_ratio"][mask] - 1).abs().max() > 1e-3
    # A resumed run begins with rollouts of its own weights.
    resumed = trainer(tiny_model_dir(), tmp_path, max_steps=4)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert policy_steps(resumed) == [{2}, {2}] and resumed.sent == [2]


def test_tasks_and_seeds_are_those_of_a_run_without(tiny_model_dir: Model, tmp_path: Path):
    """With a learning rate of 0 the weights of a step are those of the one before."""
    shape = {"per_device_train_batch_size": 4, "steps_per_generation": 2, "gradient_accumulation_steps": 1}
    played = []
    for ahead in (0, 1):
        run = trainer(tiny_model_dir(), tmp_path, learning_rate=0.0, max_steps=8, num_iterations=2, **shape)
        run.args.rollout_ahead = ahead
        run.train()
        played.append([[[turn.action_ids for turn in t.turns] for t in batch] for batch, _ in run.batches])
    assert len(played[0]) == 2 and played[0] == played[1]


def test_rollouts_and_update_overlap(tiny_model_dir: Model, tmp_path: Path):
    """The second batch is not over before the update on the first has begun, nor does that wait for it."""
    training = threading.Event()

    class Waiting(Corridor):
        def step(self, action: str) -> StepResult:
            if begun.is_set():
                assert training.wait(timeout=60)
            return super().step(action)

    begun = threading.Event()

    class Overlapping(Served):
        def _begin_next(self, generation_batch: Any) -> None:
            begun.set()
            super()._begin_next(generation_batch)

        def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
            training.set()
            return super().compute_loss(*args, **kwargs)

    run = trainer(tiny_model_dir(), tmp_path, Waiting, Overlapping, max_steps=2)
    run.train()
    first, second = history(run, "rollout/ahead_seconds")
    assert first == 0.0 < second <= history(run, "rollout/seconds")[1]


def test_an_evaluation_waits_and_has_the_current_weights(tiny_model_dir: Model, tmp_path: Path):
    run = trainer(tiny_model_dir(), tmp_path, max_steps=3, eval_strategy="steps", eval_steps=1)
    evaluated: list[set[int | None]] = []
    play = run._play

    def remember(*args: Any, **kwargs: Any) -> list[Trajectory]:
        played = play(*args, **kwargs)
        if not run.model.training:
            evaluated.append({turn.policy_step for trajectory in played for turn in trajectory.turns})
        return played

    run._play = remember
    run.train()
    assert evaluated == [{1}, {2}, {3}]
    assert policy_steps(run) == [{0}, {0}, {1}] and run.sent == [0, 1, 2, 3]


def test_an_error_surfaces_in_the_step_that_needs_the_rollouts(tiny_model_dir: Model, tmp_path: Path):
    class Failing(Copied):
        def generate(self, requests: list[Request]) -> list[Sample]:
            if threading.current_thread() is not threading.main_thread():
                raise ConnectionError("the server is gone")
            return super().generate(requests)

    class WithFailing(Served):
        def _vllm_engine(self, sampling: Sampling) -> Any:
            return Failing(self, sampling)

    run = trainer(tiny_model_dir(), tmp_path, kind=WithFailing)
    with pytest.raises(ConnectionError, match="the server is gone"):
        run.train()
    assert run.state.global_step == 1 and run._ahead is None


class StopAfterOne(TrainerCallback):
    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        control.should_training_stop = True


def test_a_run_that_ends_early_gives_up_what_was_begun(tiny_model_dir: Model, tmp_path: Path):
    run = trainer(tiny_model_dir(), tmp_path, callbacks=[StopAfterOne()])
    run.train()
    assert run.state.global_step == 1 and run._ahead is None
    assert not [thread for thread in threading.enumerate() if thread.name == "rollouts ahead"]
    assert len(run.rollout([{"length": 1}] * 3)) == 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rollout_ahead": 2}, "`rollout_ahead` must be 0 or 1, got 2"),
        ({"rollout_ahead": 1}, "only a vLLM server can: set `use_vllm=True` and `vllm_mode='server'`"),
        ({"rollout_ahead": 1, "use_vllm": True, "vllm_mode": "colocate"}, "only a vLLM server can"),
        (
            {
                "rollout_ahead": 1, "use_vllm": True, "vllm_mode": "server",
                "vllm_importance_sampling_correction": False,
            },
            "needs `vllm_importance_sampling_correction=True`",
        ),
    ],
)  # fmt: skip
def test_where_it_cannot_be(changes: dict[str, Any], message: str, tmp_path: Path):
    with pytest.raises(ValueError, match=message):
        small_config(AgenticConfig, tmp_path, **changes)
