"""Comparison of algorithms: figures by hand, refused arguments, and that a finished run is not run again."""

from __future__ import annotations

import csv
import math
import runpy
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest


FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(FOLDER))
    module = ModuleType("credit_rules")
    vars(module).update(runpy.run_path(str(FOLDER / "credit_rules.py")))
    return module


@pytest.fixture
def report(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(FOLDER))
    import credit_rules_report

    return credit_rules_report


def row(algorithm: str, seed: int, steps: int, success: float, **changes: Any) -> dict[str, str]:
    values = {"rule": algorithm, "seed": seed, "environment_steps": steps, "success": success, "turns": 5.0,
              "wall_seconds": steps / 100, "advantage_abs_mean": 0.5, "advantage_abs_gt_1": 0.25,
              "clipped": 0.1}  # fmt: skip
    return {name: str(value) for name, value in (values | changes).items()}


def test_area_and_steps_to_a_level_by_hand(report: Any):
    steps, values = np.array([0.0, 100.0, 300.0]), np.array([0.2, 0.6, 0.4])
    # Trapezoids: 100 * 0.4 + 200 * 0.5 = 140 over 300 steps.
    assert report.area(steps, values, 300) == pytest.approx(140 / 300, abs=1e-3)
    assert report.area(steps, values, 100) == pytest.approx(0.4, abs=1e-3)
    assert report.area(steps, values, 400) == pytest.approx(
        (140 + 40) / 400, abs=2e-3
    )  # constant after its last point
    assert report.steps_to(steps, values, 0.5) == pytest.approx(75)
    assert report.steps_to(steps, values, 0.2) == 0.0
    assert report.steps_to(steps, values, 0.7) == math.inf


def test_an_interval_has_its_nominal_width(report: Any):
    assert report.bootstrap_interval([0.5]) is None
    assert report.bootstrap_interval([0.5, 0.5, 0.5]) == (0.5, 0.5)
    low, high = report.bootstrap_interval([0.0, 1.0] * 50)
    # Standard error of a mean of 100 coins: 0.05.
    assert (low, high) == pytest.approx((0.5 - 1.96 * 0.05, 0.5 + 1.96 * 0.05), abs=0.015)


def test_the_table(report: Any, tmp_path: Path):
    rows = []
    for seed, ends in enumerate((0.6, 0.8)):
        rows += [row("grpo", seed, 0, 0.2), row("grpo", seed, 1000, 0.2)]
        rows += [row("gagpo", seed, 0, 0.2), row("gagpo", seed, 1000, ends, turns=4.0)]
    table = report.results_table(rows, budget=1000)
    lines = {line.split(" | ")[0].strip("| "): line.strip("| ").split(" | ") for line in table.splitlines()[2:]}
    assert lines["grpo"][1:4] == ["2", "20.0% (20.0 to 20.0)", "-"]
    # Areas 0.4 and 0.5; over GRPO's 0.2 seed by seed 0.2 and 0.3.
    assert lines["gagpo"][2:5] == ["45.0% (40.0 to 50.0)", "25.0% (20.0 to 30.0)", "70.0% (60.0 to 80.0)"]
    # 50% after 750 of 1,000 steps to 60%, and after 500 of those to 80%; 75% by one seed of two, 90% by none.
    assert lines["gagpo"][5:8] == ["750 (500 to 750)", "never (917 to never)", "never (never to never)"]
    assert lines["gagpo"][8:] == ["0.50", "0.25", "0.100", "10.0"]
    report.plot_curves(rows, 1000, tmp_path / "curves.png", "here")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rules", "grpo", "grop"], "there is no algorithm 'grop'. Choose from: grpo, gspo"),
        (
            ["--rules", "a2tgpo"],
            "a2tgpo measures the likelihood of a ground-truth answer, which the tasks of alfworld",
        ),
        (["--environment", "alfworld", "--rules", "igpo"], "igpo measures"),
        (["--set", "num_generations=1"], "num_generations must be at least 2, got 1"),
        (["--set", "num_generations"], "'num_generations' is not KEY=VALUE"),
        (["--seeds", "0"], "--seeds must be at least 1"),
        (["--preset", "nowhere.yaml"], "nowhere.yaml"),
    ],
)
def test_bad_input_is_refused_before_anything_is_loaded(
    benchmark: Any, arguments: list[str], message: str, tmp_path: Path
):
    with pytest.raises(SystemExit) as ended:
        benchmark.main([*arguments, "--output_dir", str(tmp_path / "out")])
    assert message in str(ended.value)
    assert not (tmp_path / "out").exists()


def test_a_folder_holds_runs_of_one_setting(benchmark: Any, tmp_path: Path):
    benchmark.claim(tmp_path / "out", {"budget": 10, "beta": 0.0})
    benchmark.claim(tmp_path / "out", {"budget": 10, "beta": 0.0})
    with pytest.raises(ValueError, match="runs with another beta, seeds"):
        benchmark.claim(tmp_path / "out", {"budget": 10, "beta": 0.1, "seeds": 1})


def read(file: Path) -> list[dict[str, str]]:
    with open(file, newline="") as lines:
        return list(csv.DictReader(lines))


@pytest.mark.slow
def test_algorithms_start_alike_and_a_finished_run_is_not_run_again(benchmark: Any, tmp_path: Path):
    # No rollout wins within the six steps of a quick game: only the penalty distinguishes rollouts.
    settings = ["--budget", "90", "--set", "invalid_action_penalty=0.3"]
    arguments = ["--quick", "--rules", "grpo", "gagpo", *settings, "--output_dir", str(tmp_path)]
    benchmark.main(arguments)
    rows = read(tmp_path / "rows.csv")
    first, second = ({name: [r for r in rows if (r["rule"], r["seed"]) == (name, seed)] for name in ("grpo", "gagpo")}
                     for seed in "01")  # fmt: skip
    for runs in (first, second):
        assert [len(run) for run in runs.values()] == [3, 3]
        for column in ("environment_steps", "success", "turns"):
            assert runs["grpo"][0][column] == runs["gagpo"][0][column]
        # The first rollouts are the same: they took the same steps.
        assert runs["grpo"][1]["environment_steps"] == runs["gagpo"][1]["environment_steps"]
        assert float(runs["grpo"][1]["advantage_abs_mean"]) != float(runs["gagpo"][1]["advantage_abs_mean"])
        assert all(float(run[-1]["environment_steps"]) >= 90 for run in runs.values())
    assert (tmp_path / "table.md").read_text().count("\n") == 4
    (tmp_path / "gagpo-1.csv").unlink()
    kept = (tmp_path / "grpo-0.csv").stat().st_mtime_ns
    benchmark.main(arguments)
    assert (tmp_path / "grpo-0.csv").stat().st_mtime_ns == kept
    assert [{**r, "wall_seconds": 0} for r in read(tmp_path / "rows.csv")] == [{**r, "wall_seconds": 0} for r in rows]
