"""Table of a quickstart's seeds, computed by hand, and its commands."""

from __future__ import annotations

import json
import runpy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest


SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "quickstart.py"


@pytest.fixture
def quickstart() -> SimpleNamespace:
    return SimpleNamespace(**runpy.run_path(str(SCRIPT)))


def finished(out: Path, before: int, after: int) -> Path:
    """Writes the files of a run on two task types with 10 tasks each. All successes are of the first type."""
    out.mkdir()
    rates = {
        moment: {"one": [wins, 10], "two": [0, 10], "All": [wins, 20]}
        for moment, wins in (("before", before), ("after", after))
    }
    (out / "results.json").write_text(json.dumps(rates))
    (out / "seconds.json").write_text("90")
    log = [{"step": step, "episode/success": step / 10} for step in range(1, 8)]
    (out / "trainer_state.json").write_text(json.dumps({"log_history": [*log, {"step": 7, "train_loss": 0.1}]}))
    return out


def test_tables_and_plot(quickstart: SimpleNamespace, tmp_path: Path):
    runs = {0: finished(tmp_path / "a", 2, 6), 1: finished(tmp_path / "b", 4, 6)}
    assert quickstart.table(runs).splitlines()[2:] == [
        "| 0 | 10.0% (2/20) | 30.0% (6/20) | +20.0 | 1.5 |",
        "| 1 | 20.0% (4/20) | 30.0% (6/20) | +10.0 | 1.5 |",
        "| mean | | | +15.0 | |",
    ]
    assert quickstart.type_table(runs).splitlines()[2:] == [
        "| one | 30.0% (6/20) | 60.0% (12/20) |",
        "| two | 0.0% (0/20) | 0.0% (0/20) |",
        "| All | 15.0% (6/40) | 30.0% (12/40) |",
    ]
    quickstart.plot(runs, tmp_path / "curve.png")
    assert (tmp_path / "curve.png").read_bytes()[1:4] == b"PNG"


def test_a_finished_seed_is_not_run_again(
    quickstart: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    commands: list[list[str]] = []

    def run(command: list[str], cwd: Path, check: bool) -> Any:
        commands.append(command)
        (tmp_path / "new").mkdir()

    monkeypatch.setattr("subprocess.run", run)
    quickstart.run("search_a2tgpo", 3, finished(tmp_path / "done", 1, 2), [])
    assert commands == []
    quickstart.run("search_a2tgpo", 3, tmp_path / "new", ["--max_steps", "2"])
    (command,) = commands
    assert command[-7:] == [
        "recipes/search_a2tgpo.py", "--seed", "3", "--output_dir", str(tmp_path / "new"), "--max_steps", "2",
    ]  # fmt: skip
    assert float((tmp_path / "new" / "seconds.json").read_text()) >= 0
