"""Two processes do what one does with twice the batch: same advantages, weights, rollouts and metrics."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.distributed.corridor import ROLLOUTS, RUNS, run
from tests.distributed.launch import launch
from trl_agentic.records import load_records


pytestmark = pytest.mark.distributed

# What is measured, and what a process counts for itself.
OWN = ("rollout/", "step_time", "train_", "total_flos", "information_gain/seconds")


def assert_equal_runs(actual: dict[str, Any], expected: dict[str, Any], name: str) -> None:
    # An untrained model's gains are so small that other batches, in one process too, move them by a thousandth.
    atol = 2e-3 if "gain" in name else 1e-5
    for left, right in zip(actual["advantages"], expected["advantages"], strict=True):
        assert right.shape[0] == ROLLOUTS and right.abs().max() > 0.5
        torch.testing.assert_close(left, right, rtol=0, atol=atol, msg=lambda text: f"{name}, advantages: {text}")
    for key, parameter in expected["parameters"].items():
        torch.testing.assert_close(
            actual["parameters"][key], parameter, rtol=0, atol=1e-5, msg=lambda text, key=key: f"{name}, {key}: {text}"
        )


def assert_equal_logs(actual: dict[str, Any], expected: dict[str, Any], name: str) -> None:
    for left, right in zip(actual["log"], expected["log"], strict=True):
        assert left.keys() == right.keys()
        for key in right:
            if not key.startswith(OWN):
                assert left[key] == pytest.approx(right[key], rel=1e-3, abs=1e-5), f"{name}, {key}"


def assert_resumed(resumed: dict[str, Any], whole: dict[str, Any]) -> None:
    """A run of four steps that went on from the second ends as the one that did not stop, bit for bit."""
    assert (whole["parameters"]["model.norm.weight"] - 1).abs().max() > 1e-3
    for name, parameter in whole["parameters"].items():
        assert torch.equal(resumed["parameters"][name], parameter), name
    assert [entry["step"] for entry in resumed["log"]][:5] == [1, 2, 3, 4, 4]
    assert_equal_logs(resumed, whole, "resumed")


def saved_ratios(folder: Path) -> list[list[float]]:
    """Importance ratios of the turns in the trajectories that a run saved."""
    return [[turn["ratio"] for turn in record["turns"]] for record in load_records(folder / "trajectories")]


def test_two_processes_train_as_one_does(tiny_model_dir: Callable[..., Path], tmp_path: Path):
    two = launch("corridor.py", tiny_model_dir(), out=tmp_path)
    ratios = saved_ratios(tmp_path / "idle")  # rows were computed by another process than the one that sampled them
    for name, changes in RUNS.items():
        expected = run(str(tiny_model_dir()), tmp_path / name, 1, **changes)
        assert len(expected["advantages"]) == (2 if "num_iterations" in changes else 3)
        assert (expected["parameters"]["model.norm.weight"] - 1).abs().max() > 1e-4
        for rank in two:
            assert rank[name]["world"] == 2
            assert_equal_runs(rank[name], expected, name)
            assert rank[name]["rollouts"] == expected["rollouts"]
            assert len(expected["evaluated"]) > 10
            assert rank[name]["evaluated"] == pytest.approx(expected["evaluated"], abs=1e-6)  # each row once
        assert_equal_logs(two[0][name], expected, name)
        tokens = [rank[name]["tokens"] for rank in two]
        assert sum(tokens) == expected["tokens"]
        if name == "idle":
            assert len(ratios) == 3 * ROLLOUTS and all(ratios)
            for two_say, one_says in zip(ratios, saved_ratios(tmp_path / name), strict=True):
                assert two_say == pytest.approx(one_says, abs=1e-5)
        if name in ("idle", "window"):  # with a budget of tokens, each process has half of them
            assert max(tokens) < 0.55 * sum(tokens), (name, tokens)


@pytest.mark.parametrize("version", ["1", "2"])
def test_sharded_parameters_train_as_whole_ones_do(version: str, tiny_model_dir: Callable[..., Path], tmp_path: Path):
    """FSDP, where the second process is idle from the second turn on and still takes part in every forward pass."""
    ranks = launch("sharded.py", tiny_model_dir(), version, out=tmp_path)
    for name in ranks[0]:
        expected = run(str(tiny_model_dir()), tmp_path / name, 1, **RUNS[name])
        assert [entry["episode/turns"] for entry in expected["log"][:3]] == [2.0] * 3
        whole = ranks[0][name]["parameters"]
        for number, rank in enumerate(ranks):
            assert_equal_runs({**rank[name], "parameters": whole}, expected, f"{name}, rank {number}")
        assert_equal_logs(ranks[0][name], expected, name)


def test_a_sharded_run_that_resumes_is_the_run_that_did_not_stop(tiny_model_dir: Callable[..., Path], tmp_path: Path):
    """FSDP2 on two processes, from the second of four steps: same weights, same metrics."""
    rank, _ = launch("sharded_resume.py", tiny_model_dir(), out=tmp_path)
    assert_resumed(rank["resumed"], rank["whole"])
