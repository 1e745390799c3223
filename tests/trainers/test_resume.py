"""A run that was stopped continues exactly as if it had not been stopped."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.toys import Corridor
from tests.trainers.small import parameters, small_config, tasks
from trl_agentic import GAGPOConfig, GAGPOTrainer


Model = Callable[..., Path]

# An epoch has three generations. Accumulation steps, and how often a generation is used.
SHAPES: dict[str, dict[str, Any]] = {
    "one generation a step": {"max_steps": 5},
    "a generation for two steps, used twice": {
        "per_device_train_batch_size": 4, "gradient_accumulation_steps": 1, "steps_per_generation": 2,
        "num_iterations": 2, "max_steps": 7, "beta": 0.1,
    },
    "a generation for two steps of two": {
        "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "steps_per_generation": 4, "max_steps": 4,
    },
}  # fmt: skip
STOPS = [
    ("one generation a step", 2),
    ("one generation a step", 3),  # the end of an epoch
    ("one generation a step", 4),
    ("a generation for two steps, used twice", 5),
    ("a generation for two steps of two", 1),
]


def trainer(model: Path, output_dir: Path, environment: Any = Corridor, **changes: Any) -> GAGPOTrainer:
    args = small_config(GAGPOConfig, output_dir, **{"save_strategy": "steps", "save_steps": 1, **changes})
    return GAGPOTrainer(str(model), args=args, train_dataset=tasks(), environment_factory=environment)


@pytest.fixture(scope="module")
def uninterrupted(tiny_model_dir: Model, tmp_path_factory: Any) -> Callable[[str], tuple[Path, dict[str, Any]]]:
    """A run of each shape that saved a checkpoint after every step, and the weights it ended with."""

    @cache
    def run(shape: str) -> tuple[Path, dict[str, Any]]:
        whole = trainer(tiny_model_dir(), tmp_path_factory.mktemp("run"), **SHAPES[shape])
        whole.train()
        return Path(whole.args.output_dir), parameters(whole)

    return run


@pytest.mark.parametrize(("shape", "step"), STOPS)
def test_a_resumed_run_ends_with_the_same_weights(
    shape: str, step: int, uninterrupted: Any, tiny_model_dir: Model, tmp_path: Path
):
    output_dir, expected = uninterrupted(shape)
    resumed = trainer(tiny_model_dir(), tmp_path, **SHAPES[shape])
    torch.manual_seed(1234)  # random numbers may have been drawn in the meantime
    resumed.train(resume_from_checkpoint=str(output_dir / f"checkpoint-{step}"))
    assert resumed.state.global_step == SHAPES[shape]["max_steps"]
    for name, parameter in parameters(resumed).items():
        assert torch.equal(parameter, expected[name]), name


@pytest.mark.parametrize(
    ("shape", "step", "changes"),
    [
        ("one generation a step", 3, {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}),
        (
            "a generation for two steps, used twice",
            5,
            {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "steps_per_generation": 4},
        ),
    ],
)
def test_other_batch_sizes_begin_a_generation(
    shape: str,
    step: int,
    changes: dict[str, Any],
    uninterrupted: Any,
    tiny_model_dir: Model,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
):
    """For example after running out of memory. No update then mixes the rollouts of two policies."""
    resumed = trainer(tiny_model_dir(), tmp_path, **SHAPES[shape] | changes)
    resumed.train(resume_from_checkpoint=str(uninterrupted(shape)[0] / f"checkpoint-{step}"))
    assert resumed.state.global_step == SHAPES[shape]["max_steps"]
    assert resumed._step == 2 * resumed.state.global_step
    assert "or with other batch sizes" in caplog.text


def test_a_checkpoint_of_other_processes_begins_a_generation(
    uninterrupted: Any, tiny_model_dir: Model, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    shape = "a generation for two steps of two"
    checkpoint = tmp_path / "checkpoint-1"
    shutil.copytree(uninterrupted(shape)[0] / checkpoint.name, checkpoint)
    (checkpoint / "generation_0.pt").rename(checkpoint / "generation_1.pt")
    resumed = trainer(tiny_model_dir(), tmp_path, **SHAPES[shape] | {"max_steps": 2})
    resumed.train(resume_from_checkpoint=str(checkpoint))
    assert resumed.state.global_step == 2 and resumed._step == 4
    assert "The next step starts with new rollouts" in caplog.text
