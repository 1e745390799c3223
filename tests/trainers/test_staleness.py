"""The next generation is sampled while the current one is trained on. Servers are in tests/vllm.

A copy of the model, which gets the weights when they are sent, takes the place of a server.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainerCallback

from tests.toys import Corridor
from tests.trainers.small import history, small_config, tasks
from tests.trainers.test_vllm_path import Reporting
from tests.waiting import wait_until
from trl_agentic import AgenticConfig, GAGPOConfig, GAGPOTrainer
from trl_agentic.rollout.engine_source import VLLMSource
from trl_agentic.rollout.engines import Request, Sample, Sampling
from trl_agentic.types import StepResult, Trajectory


Model = Callable[..., Path]


class Server:
    """Server with a copy of the policy; it also keeps vLLM at the current weights, as a `WeightSync`."""

    def __init__(self, trainer: GAGPOTrainer):
        self.trainer = trainer
        self.model = copy.deepcopy(trainer.model).eval()
        self.sampling = threading.Event()
        self.sent: list[int] = []
        self.is_current = False

    @contextmanager
    def current(self) -> Iterator[None]:
        step = self.trainer.state.global_step
        if not self.is_current or self.sent[-1] != step:
            assert not self.sampling.is_set(), "weights were sent during rollouts"
            self.sent.append(step)
            self.model.load_state_dict(self.trainer.model.state_dict())
            self.is_current = True
        yield

    def invalidate(self) -> None:
        self.is_current = False

    def check(self) -> None:
        """It is never restarted."""


class Copied(Reporting):
    """Samples from the copy, and reports which step its weights are of."""

    def __init__(self, server: Server, sampling: Sampling):
        super().__init__(server.model, server.trainer, sampling, shift=0.0, policy_step=server.sent[-1])
        self.server, self.closed = server, threading.Event()

    def generate(self, requests: list[Request]) -> list[Sample]:
        if self.closed.is_set():
            raise RuntimeError("closed")
        self.server.sampling.set()
        samples = super().generate(requests)
        self.server.sampling.clear()
        return samples

    def close(self) -> None:
        self.closed.set()


class Run:
    """A trainer with a server, and its rollouts by generation."""

    def __init__(self, trainer: GAGPOTrainer, engine: type[Copied]):
        self.trainer, self.server = trainer, Server(trainer)
        self.batches: list[list[Trajectory]] = []
        self.evaluated: list[list[Trajectory]] = []
        pipeline, scored = trainer.generation, trainer.generation.scored_rollouts

        def record(rows: list[dict[str, Any]]) -> Any:
            played = scored(rows)
            (self.batches if trainer.model.training else self.evaluated).append(played[0])
            return played

        pipeline.scored_rollouts = record
        pipeline.engines = VLLMSource(self.server, lambda sampling: engine(self.server, sampling))
        trainer.use_vllm, trainer.args.max_staleness = True, 1


def prepared(
    model: Path,
    output_dir: Path,
    environment: Any = Corridor,
    engine: type[Copied] = Copied,
    kind: type[GAGPOTrainer] = GAGPOTrainer,
    **changes: Any,
) -> Run:
    callbacks = changes.pop("callbacks", None)
    args = small_config(GAGPOConfig, output_dir, **{"learning_rate": 1e-2, "gradient_checkpointing": False, **changes})
    trainer = kind(
        str(model), args=args, train_dataset=tasks(40), eval_dataset=tasks(2), environment_factory=environment,
        callbacks=callbacks,
    )  # fmt: skip
    return Run(trainer, engine)


def steps_of(batches: list[list[Trajectory]]) -> list[set[int | None]]:
    """Steps of the weights that sampled each batch."""
    return [{turn.policy_step for trajectory in played for turn in trajectory.turns} for played in batches]


def test_a_batch_is_sampled_by_the_weights_of_one_before_and_corrected(tiny_model_dir: Model, tmp_path: Path):
    run = prepared(tiny_model_dir(), tmp_path, max_steps=4, save_strategy="steps", save_steps=2)
    run.trainer.train()
    assert steps_of(run.batches) == [{0}, {0}, {1}, {2}] and run.server.sent == [0, 1, 2]
    gaps = history(run.trainer, "sampling/sampling_logp_difference/max")
    assert gaps[0] < 1e-4 and min(gaps[1:]) > 1e-3
    # The ratio begins at 1: it is relative to the weights that are trained, not to those that sampled.
    assert history(run.trainer, "clip_ratio/region_mean") == [0.0] * 4
    [last] = run.trainer._buffered_inputs[0]
    mask = last["tool_mask"].bool()
    gap = last["old_per_token_logps"] - last["sampling_per_token_logps"]
    torch.testing.assert_close(last["importance_sampling_ratio"][mask], gap.exp().clamp(max=2.0)[mask])
    assert (last["importance_sampling_ratio"][mask] - 1).abs().max() > 1e-3
    # A resumed run begins with rollouts of its own weights.
    resumed = prepared(tiny_model_dir(), tmp_path, max_steps=4)
    resumed.trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert steps_of(resumed.batches) == [{2}, {2}] and resumed.server.sent == [2]


def test_tasks_and_seeds_are_those_of_a_run_without(tiny_model_dir: Model, tmp_path: Path):
    """With a learning rate of 0 the weights of a step are those of the one before."""
    shape = {"per_device_train_batch_size": 4, "steps_per_generation": 2, "gradient_accumulation_steps": 1}
    played = []
    for staleness in (0, 1):
        run = prepared(tiny_model_dir(), tmp_path, learning_rate=0.0, max_steps=8, num_iterations=2, **shape)
        run.trainer.args.max_staleness = staleness
        run.trainer.train()
        played.append([[[turn.action_ids for turn in t.turns] for t in batch] for batch in run.batches])
    assert len(played[0]) == 2 and played[0] == played[1]


def test_rollouts_and_update_overlap(tiny_model_dir: Model, tmp_path: Path):
    """The second batch is not complete before the update on the first has begun, nor does the update wait for it."""
    begun, training = threading.Event(), threading.Event()

    class Waiting(Corridor):
        def step(self, action: str) -> StepResult:
            if begun.is_set():
                assert training.wait(timeout=60)
            return super().step(action)

    class Overlapping(GAGPOTrainer):
        def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
            training.set()
            return super().compute_loss(*args, **kwargs)

    run = prepared(tiny_model_dir(), tmp_path, Waiting, kind=Overlapping, max_steps=2)
    prefetcher = run.trainer.generation.prefetcher
    peek = prefetcher.peek
    prefetcher.peek = lambda distance: (begun.set(), peek(distance))[1]  # the first batch is complete
    run.trainer.train()
    first, second = history(run.trainer, "rollout/ahead_seconds")
    assert first == 0.0 < second <= history(run.trainer, "rollout/seconds")[1]


def test_an_evaluation_waits_and_has_the_current_weights(tiny_model_dir: Model, tmp_path: Path):
    run = prepared(tiny_model_dir(), tmp_path, max_steps=3, eval_strategy="steps", eval_steps=1)
    run.trainer.train()
    assert steps_of(run.evaluated) == [{1}, {2}, {3}]
    assert steps_of(run.batches) == [{0}, {0}, {1}] and run.server.sent == [0, 1, 2, 3]


def test_an_error_is_raised_in_the_step_that_needs_the_rollouts(tiny_model_dir: Model, tmp_path: Path):
    class Failing(Copied):
        def generate(self, requests: list[Request]) -> list[Sample]:
            if threading.current_thread() is not threading.main_thread():
                raise ConnectionError("the server is gone")
            return super().generate(requests)

    run = prepared(tiny_model_dir(), tmp_path, engine=Failing)
    with pytest.raises(ConnectionError, match="the server is gone"):
        run.trainer.train()
    assert run.trainer.state.global_step == 1 and not run.trainer.generation.prefetcher.wait()


def test_a_restart_during_prefetched_rollouts_stops_the_run(tiny_model_dir: Model, tmp_path: Path):
    run = prepared(tiny_model_dir(), tmp_path)

    def check() -> None:
        if threading.current_thread() is not threading.main_thread():
            raise RuntimeError("the server was restarted")

    run.server.check = check
    with pytest.raises(RuntimeError, match="the server was restarted"):
        run.trainer.train()
    assert run.trainer.state.global_step == 1


class StopAfterOne(TrainerCallback):
    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        control.should_training_stop = True


def test_a_run_that_ends_early_cancels_prefetched_rollouts(tiny_model_dir: Model, tmp_path: Path):
    run = prepared(tiny_model_dir(), tmp_path, callbacks=[StopAfterOne()])
    run.trainer.train()
    assert run.trainer.state.global_step == 1 and not run.trainer.generation.prefetcher.wait()
    wait_until(lambda: not [thread for thread in threading.enumerate() if thread.name == "prefetched rollouts"])
    assert len(run.trainer.rollout([{"length": 1}] * 3)) == 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_staleness": 2}, "`max_staleness` must be one of 0, 1, got 2"),
        ({"max_staleness": 1}, "only a vLLM server can do: set `use_vllm=True` and `vllm_mode='server'`"),
        ({"max_staleness": 1, "use_vllm": True, "vllm_mode": "colocate"}, "only a vLLM server can"),
        (
            {
                "max_staleness": 1, "use_vllm": True, "vllm_mode": "server",
                "vllm_importance_sampling_correction": False,
            },
            "needs `vllm_importance_sampling_correction=True`",
        ),
    ],
)  # fmt: skip
def test_configurations_without_it(changes: dict[str, Any], message: str, tmp_path: Path):
    with pytest.raises(ValueError, match=message):
        small_config(AgenticConfig, tmp_path, **changes)


def test_the_old_name_of_the_option_is_deprecated(tmp_path: Path):
    server = {"use_vllm": True, "vllm_mode": "server"}
    with pytest.warns(FutureWarning, match="`rollout_ahead` is deprecated .* use `max_staleness`"):
        args = small_config(AgenticConfig, tmp_path, rollout_ahead=1, **server)
    assert args.max_staleness == 1
    with pytest.warns(FutureWarning), pytest.raises(ValueError, match="`max_staleness` must be one of 0, 1, got 2"):
        small_config(AgenticConfig, tmp_path, rollout_ahead=2, **server)
    with pytest.raises(ValueError, match="`rollout_ahead`, not both"):
        small_config(AgenticConfig, tmp_path, rollout_ahead=0, max_staleness=1, **server)
