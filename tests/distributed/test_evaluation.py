"""Processes share an evaluation, and it does not matter how many there are or were."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.distributed.evaluation import SETTINGS, TASKS, Walking
from tests.distributed.launch import launch, torchrun
from tests.toys import Corridor
from trl_agentic.evaluation.run import evaluate
from trl_agentic.records import load_records


pytestmark = pytest.mark.distributed


def test_two_processes_share_the_rollouts_and_finish_what_one_began(tmp_path: Path):
    ranks = launch("evaluation.py", out=tmp_path)
    assert [rank["world"] for rank in ranks] == [2, 2]
    assert [rank["played"] for rank in ranks] == [9, 9]
    alone = evaluate(Walking(), Corridor, TASKS, tmp_path / "alone", SETTINGS, samples=2)
    for rank in ranks:
        assert {**rank["summary"], "seconds": 0} == {**alone, "seconds": 0}
    one, other = (load_records(tmp_path / name / "trajectories.parquet") for name in ("alone", "evaluation"))
    assert [record | {"seconds": 0} for record in one] == [record | {"seconds": 0} for record in other]

    # As if one process of an earlier run had been killed: its last rollouts are missing.
    file = tmp_path / "evaluation" / "rollouts" / "1.jsonl"
    file.write_text("".join(file.read_text().splitlines(keepends=True)[:4]))
    rest = Walking()
    resumed = evaluate(rest, Corridor, TASKS, tmp_path / "evaluation", SETTINGS, samples=2)
    assert rest.played == 5
    assert {**resumed, "seconds": 0} == {**alone, "seconds": 0}


def test_the_command_on_two_processes(tmp_path: Path):
    command = ["-m", "trl_agentic", "evaluate", "random", "--output_dir", tmp_path, "--environment", "alfworld"]
    out = torchrun(*command, "split=valid_unseen", "num_games=3", "max_steps=3", timeout=300)
    assert out.count("# random on alfworld") == 1
    assert len(load_records(tmp_path / "trajectories.parquet")) == 3
