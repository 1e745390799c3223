"""Learning curves, drawn from the files that a trainer writes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from trl_agentic import cli
from trl_agentic.viewer import plot_learning_curve, plot_runs, read_log


LOG = [{"step": step, "episode/success": step / 20, "episode/return": float(step)} for step in range(1, 21)]


def write_state(folder: Path, log: Any) -> None:
    folder.mkdir(parents=True)
    (folder / "trainer_state.json").write_text(json.dumps({"log_history": log}))


def test_a_log_is_found_in_a_run_its_last_checkpoint_or_by_its_file_name(tmp_path: Path):
    for step in (9, 10):
        write_state(tmp_path / "run" / f"checkpoint-{step}", LOG[:step])
    (tmp_path / "run" / "checkpoint-last").mkdir()
    assert read_log(tmp_path / "run") == LOG[:10]
    assert read_log(tmp_path / "run" / "checkpoint-9") == LOG[:9]
    assert read_log(tmp_path / "run" / "checkpoint-9" / "trainer_state.json") == LOG[:9]
    write_state(tmp_path / "done", LOG)
    assert read_log(tmp_path / "done") == LOG


def test_a_folder_without_a_log_is_reported(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match="No trainer_state.json in .*nowhere"):
        read_log(tmp_path / "nowhere")
    for text in ("{}", "[1]", "nonsense"):
        (tmp_path / "trainer_state.json").write_text(text)
        with pytest.raises(ValueError, match="trainer_state.json holds no log"):
            read_log(tmp_path)


def test_the_command_draws_every_run_in_every_panel(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    write_state(tmp_path / "first", LOG)
    write_state(tmp_path / "second", [{**entry, "kl": 0.1} for entry in LOG[:5]])
    output = tmp_path / "pictures" / "curves.svg"
    cli.main(["plot", str(tmp_path / "first"), str(tmp_path / "second"), "--output", str(output), "--metrics",
              "episode/success", "kl"])  # fmt: skip
    assert "episode/success, kl of 2 runs in" in capsys.readouterr().out
    picture = output.read_text()
    # A comment of the picture names each text that was drawn; the run without `kl` is in one legend only.
    assert picture.count(f"<!-- {tmp_path / 'first'} (mean of 2) -->") == 1
    assert picture.count(f"<!-- {tmp_path / 'second'} (mean of 1) -->") == 2
    assert "<!-- kl -->" in picture and "<!-- optimizer step -->" in picture


def test_the_message_about_an_unknown_metric_names_the_available_ones(tmp_path: Path):
    with pytest.raises(ValueError, match="No run logs 'loss'. Available: episode/return, episode/success, step"):
        plot_runs({"run": LOG}, tmp_path / "curves.png", ["loss"])
    write_state(tmp_path / "run", LOG)
    with pytest.raises(SystemExit) as ended:
        cli.main(["plot", str(tmp_path / "run"), "--metrics", "loss", "--output", str(tmp_path / "curves.png")])
    assert ended.value.code == 1


def test_the_curve_of_a_recipe_is_drawn(tmp_path: Path):
    plot_learning_curve(LOG, tmp_path / "curve.png", evaluations={0: 0.1, 20: 0.9}, title="a run")
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ValueError, match="no 'loss'"):
        plot_learning_curve(LOG, tmp_path / "curve.png", metric="loss")
