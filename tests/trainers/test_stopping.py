"""Signals, disks and numbers that end a run: with a checkpoint, before it begins, or with the rollouts at fault."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.toys import Corridor
from tests.trainers.small import history, parameters, small_config, tasks
from trl_agentic import GAGPOConfig, GAGPOTrainer, StepResult
from trl_agentic.trainers.callbacks.nonfinite import MAX_SKIPPED
from trl_agentic.trainers.checkpoints import check_output_dir


Model = Callable[..., Path]


def trainer(model: Path, output_dir: Path, environment: Any = Corridor, **changes: Any) -> GAGPOTrainer:
    args = small_config(GAGPOConfig, output_dir, **changes)
    return GAGPOTrainer(str(model), args=args, train_dataset=tasks(), environment_factory=environment)


# Signals


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_a_checkpoint_and_ends_the_run(
    number: signal.Signals, tiny_model_dir: Model, tmp_path: Path, capfd: Any
):
    steps = 0

    class Signalled(Corridor):
        def step(self, action: str) -> StepResult:
            nonlocal steps
            steps += 1
            if steps == 20:  # in the first or second of three steps
                os.kill(os.getpid(), number)
            return super().step(action)

    before = signal.getsignal(number)
    run = trainer(tiny_model_dir(), tmp_path / "stopped", Signalled)  # with save_strategy="no"
    with pytest.raises(SystemExit) as stop:
        run.train()
    assert stop.value.code == 0 and signal.getsignal(number) is before
    reached = run.state.global_step
    assert reached < 3 and (tmp_path / "stopped" / f"checkpoint-{reached}" / "model.safetensors").is_file()
    printed = capfd.readouterr().err
    assert f"{number.name}: stopping" in printed
    assert f"checkpoint-{reached}. To continue" in printed and "resume_from_checkpoint='" in printed

    resumed = trainer(tiny_model_dir(), tmp_path / "stopped")
    resumed.train(resume_from_checkpoint=True)
    whole = trainer(tiny_model_dir(), tmp_path / "whole")
    whole.train()
    for name, parameter in parameters(whole).items():
        assert torch.equal(parameter, parameters(resumed)[name]), name


class Falling(GAGPOTrainer):
    """Every evaluation is worse than the one before; a signal comes in the second step."""

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        return {"eval_worth": -float(self.state.global_step)}

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        if self.state.global_step == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return super().training_step(*args, **kwargs)


@pytest.mark.parametrize(
    "changes",
    [
        {"save_strategy": "steps", "save_steps": 1, "save_total_limit": 1, "load_best_model_at_end": True},
        {"save_strategy": "best"},
    ],
    ids=["a limit of one", "the best alone"],
)
def test_the_last_step_is_saved_even_if_it_is_not_the_best(
    changes: dict[str, Any], tiny_model_dir: Model, tmp_path: Path
):
    best = {
        "eval_strategy": "steps",
        "eval_steps": 1,
        "metric_for_best_model": "eval_worth",
        "greater_is_better": True,
    }
    args = small_config(GAGPOConfig, tmp_path, num_generations_eval=1, **best, **changes)
    run = Falling(
        str(tiny_model_dir()), args=args, train_dataset=tasks(), eval_dataset=tasks(2), environment_factory=Corridor
    )
    with pytest.raises(SystemExit):
        run.train()
    assert run.state.global_step == 2 and run.state.best_global_step == 1
    assert (tmp_path / "checkpoint-2" / "trainer_state.json").is_file()
    assert (args.save_strategy, args.save_total_limit) == (changes["save_strategy"], changes.get("save_total_limit"))


# Disks


def test_an_output_dir_that_cannot_be_made_is_found_at_start(tiny_model_dir: Model, tmp_path: Path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OSError, match="`output_dir` .*file/run' cannot be written"):
        trainer(tiny_model_dir(), tmp_path / "file" / "run")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_an_output_dir_without_permission(tmp_path: Path):
    tmp_path.chmod(0o500)
    with pytest.raises(PermissionError, match="`output_dir` .* cannot be written"):
        check_output_dir(tmp_path / "run")


def test_a_disk_too_small_for_a_checkpoint(tiny_model_dir: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=2 * 2**20 // 16))
    with pytest.raises(OSError, match=r"A checkpoint takes about 0\.00 GB, .* has only 0\.00 GB free"):
        trainer(tiny_model_dir(), tmp_path, save_strategy="steps")


def test_a_disk_that_is_full(tmp_path: Path):
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(small)], capture_output=True)
    if mounted.returncode != 0:
        pytest.skip("a small file system needs the right to mount one")
    try:
        with pytest.raises(OSError, match="`output_dir` .* cannot be written .*No space left"):
            check_output_dir(small / "run")
        assert list(small.iterdir()) == []
    finally:
        subprocess.run(["umount", str(small)], check=True)


# Numbers


def break_gradient(run: GAGPOTrainer, steps: range) -> None:
    """The gradient of a weight is NaN in some updates."""
    weight = run.model.model.norm.weight
    weight.register_hook(lambda grad: grad * torch.nan if run.state.global_step in steps else grad)


def break_row(run: GAGPOTrainer, row: int) -> None:
    """In the second update, the model is broken for one row."""

    def corrupt(module: Any, args: Any, output: Any) -> Any:
        if run.model.training and torch.is_grad_enabled() and run.state.global_step == 1:
            output.last_hidden_state = output.last_hidden_state.index_fill(0, torch.tensor([row]), torch.nan)
        return output

    run.model.model.register_forward_hook(corrupt)


def test_a_gradient_that_is_not_finite_stops_the_run_before_the_weights_change(tiny_model_dir: Model, tmp_path: Path):
    run = trainer(tiny_model_dir(), tmp_path)
    break_gradient(run, range(1, 2))
    with pytest.raises(FloatingPointError, match=r"The gradient of update 2 is not finite.*those of step 1"):
        run.train()
    assert all(torch.isfinite(parameter).all() for parameter in parameters(run).values())


@pytest.mark.parametrize("level", ["token", "turn"])
def test_a_broken_log_probability_names_its_rollout(level: str, tiny_model_dir: Model, tmp_path: Path):
    seen: list[Tensor] = []

    class Watched(GAGPOTrainer):
        def _compute_loss(self, model: Any, inputs: dict[str, Tensor]) -> Tensor:
            seen.append(inputs["rollout_ids"])
            return super()._compute_loss(model, inputs)

    loss = {"loss_type": "dapo"} if level == "token" else {}
    args = small_config(GAGPOConfig, tmp_path, importance_sampling_level=level, shuffle_dataset=False, **loss)
    run = Watched(str(tiny_model_dir()), args=args, train_dataset=tasks(), environment_factory=Corridor)
    break_row(run, 2)
    with pytest.raises(FloatingPointError) as stop:
        run.train()
    broken = int(seen[-1][2])
    length = 3 if broken < 4 else 1  # tasks 2 and 3 of 1, 2, 3, 1, 2, 3
    expected = f"rollout {broken} of the batch (task {{'length': {length}}})."
    assert str(stop.value).startswith(f"The loss or a log-probability of update 2 is not finite: {expected}")


def test_skipped_updates_change_nothing_and_are_counted(tiny_model_dir: Model, tmp_path: Path):
    run = trainer(tiny_model_dir(), tmp_path, nonfinite_update="skip", max_steps=2)
    break_gradient(run, range(1, 2))
    run.train()
    whole = trainer(tiny_model_dir(), tmp_path, max_steps=1)
    whole.train()
    for name, parameter in parameters(whole).items():
        assert torch.equal(parameter, parameters(run)[name]), name
    assert history(run, "update/skipped") == [1]


def test_skipping_for_ever_stops(tiny_model_dir: Model, tmp_path: Path):
    sizes = {"per_device_train_batch_size": 2, "num_generations": 2, "max_turns": 1}
    run = trainer(tiny_model_dir(), tmp_path, nonfinite_update="skip", max_steps=MAX_SKIPPED + 5, **sizes)
    break_gradient(run, range(2, 99))
    with pytest.raises(FloatingPointError, match=f"{MAX_SKIPPED} updates before it were skipped"):
        run.train()
    assert run.state.global_step == 2 + MAX_SKIPPED
