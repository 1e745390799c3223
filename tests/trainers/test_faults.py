"""Training continues when environments fail, and stops if too many do."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset

from tests.environments.faulty import Faulty
from tests.toys import Corridor
from tests.trainers.small import history, parameters, small_config, tasks
from trl_agentic import AgenticConfig, GAGPOConfig, GAGPOTrainer


Model = Callable[..., Path]


def train(model: Path, output_dir: Path, rows: Dataset, environment: Any = Faulty, **changes: Any) -> GAGPOTrainer:
    args = small_config(GAGPOConfig, output_dir, **{"shuffle_dataset": False, "max_steps": 1, **changes})
    trainer = GAGPOTrainer(str(model), args=args, train_dataset=rows, environment_factory=environment)
    trainer.train()
    return trainer


@pytest.mark.parametrize(("kind", "fault"), [("thread", "raise"), ("thread", "hang"), ("process", "kill")])
def test_a_step_with_faults_is_the_step_without(kind: str, fault: str, tiny_model_dir: Model, tmp_path: Path):
    rows = [{"length": 3}, {"length": 3, "fault": fault, "at": 1, "times": 2, "count": str(tmp_path / "count")}]
    columns = {key: [row.get(key) for row in rows] for key in rows[1]}
    timeout = 3.0 if fault == "hang" else 30.0  # the start of a process counts
    faulty = train(
        tiny_model_dir(), tmp_path, Dataset.from_dict(columns), environment_workers=kind, environment_timeout=timeout
    )
    healthy = train(tiny_model_dir(), tmp_path, Dataset.from_list([{"length": 3}] * 2), Corridor)
    assert history(faulty, "rollout/retries") == [2.0] and history(healthy, "rollout/retries") == [0.0]
    assert history(faulty, "episode/stop_error") == [0.0]
    for name, parameter in parameters(healthy).items():
        assert torch.equal(parameters(faulty)[name], parameter), name


def broken_rows(tmp_path: Path) -> Dataset:
    """The second task always fails."""
    return Dataset.from_dict(
        {
            "length": [2, 2],
            "fault": [None, "raise"],
            "at": [1, 1],
            "times": [99, 99],
            "count": [str(tmp_path / "count")] * 2,
        }
    )


def test_failed_rollouts_are_counted_and_left_out(tiny_model_dir: Model, tmp_path: Path, caplog: Any):
    trainer = train(tiny_model_dir(), tmp_path, broken_rows(tmp_path), environment_retries=1)
    assert history(trainer, "episode/stop_error") == [0.5]
    assert history(trainer, "rollout/retries") == [4.0]
    assert len((tmp_path / "count").read_text()) == 8
    assert "the corridor collapsed" in caplog.text


def test_a_step_in_which_too_many_fail_stops_the_run(tiny_model_dir: Model, tmp_path: Path):
    with pytest.raises(RuntimeError, match=r"4 of 8 rollouts failed.*\(0\.4\)[\s\S]*the corridor collapsed"):
        train(tiny_model_dir(), tmp_path, broken_rows(tmp_path), environment_retries=0, max_failed_rollouts=0.4)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("environment_workers", "fiber"),
        ("environment_timeout", 0.0),
        ("environment_retries", -1),
        ("environment_max_episodes", 0),
        ("max_failed_rollouts", 1.5),
    ],
)
def test_fields_out_of_range(name: str, value: Any, tmp_path: Path):
    with pytest.raises(ValueError, match=f"`{name}` must"):
        small_config(AgenticConfig, tmp_path, **{name: value})


def test_tool_style_environments_stay_in_this_process(tiny_model_dir: Model, tmp_path: Path):
    class Tool:
        def reset(self, **row: Any) -> None:
            """Nothing to see."""

        def look(self) -> str:
            """Looks around."""
            return "A room."

    with pytest.raises(ValueError, match="`environment_workers='process'` is not for tool-style environments"):
        train(tiny_model_dir(), tmp_path, tasks(), Tool, environment_workers="process")
