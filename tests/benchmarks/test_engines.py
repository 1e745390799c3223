"""Comparison of inference engines: its tables, computed by hand, and its commands."""

from __future__ import annotations

import json
import runpy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest


SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "engines.py"


@pytest.fixture
def engines() -> SimpleNamespace:
    return SimpleNamespace(**runpy.run_path(str(SCRIPT)))


def log(*successes: float, ratio: float | None = None) -> list[dict[str, Any]]:
    logged = {} if ratio is None else {
        "sampling/importance_sampling_ratio/mean": ratio, "sampling/sampling_logp_difference/max": 2e-6,
    }  # fmt: skip
    return [
        {"episode/success": success, "step_time": 10.0 + k, "grad_norm": 0.25 + k, **logged}
        for k, success in enumerate(successes)
    ]


def test_tables_and_plot(engines: SimpleNamespace, tmp_path: Path):
    logs = {
        ("transformers", 0): log(0.1, 0.2, 0.5),
        ("transformers", 1): log(0.3, 0.2, 0.7),
        ("server", 0): log(0.1, 0.25, ratio=1.0),
    }
    assert engines.curves(logs).splitlines()[2:] == [
        "| 1 | 10.0%, 0.2500 | 30.0%, 0.2500 | 10.0%, 0.2500 |",
        "| 2 | 20.0%, 1.2500 | 20.0%, 1.2500 | 25.0%, 1.2500 |",
        "| 3 | 50.0%, 2.2500 | 70.0%, 2.2500 |  |",
    ]
    assert engines.run_table(logs).splitlines()[2:] == [
        "| transformers, seed 0 | 3 | 26.7% |  |  | 10.0 |",
        "| transformers, seed 1 | 3 | 40.0% |  |  | 10.0 |",
        "| server, seed 0 | 2 | 17.5% | 1.000000 | 2.0e-06 | 10.0 |",
    ]
    # Same seed: 0 and 0.05. Same engine: 0.2, 0 and 0.2.
    assert engines.noise(logs) == pytest.approx((0.05 / 2, 0.4 / 3))
    engines.plot(logs, tmp_path / "engines.png")
    assert (tmp_path / "engines.png").read_bytes()[1:4] == b"PNG"


def test_the_log_entries_of_updates(engines: SimpleNamespace, tmp_path: Path):
    history = [{"step": 1, "episode/success": 0.5}, {"step": 1, "train_loss": 0.1}]
    (tmp_path / "trainer_state.json").write_text(json.dumps({"log_history": history}))
    assert engines.read_log(tmp_path) == history[:1]


def test_the_arguments_of_an_engine(engines: SimpleNamespace):
    assert engines.recipe_arguments("transformers", None) == []
    assert engines.recipe_arguments("colocate", None)[-1] == "colocate"
    assert engines.recipe_arguments("server", "http://a:1")[-2:] == ["--vllm_server_base_url", "http://a:1"]
