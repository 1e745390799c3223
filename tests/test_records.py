"""Records of rollouts: nothing is lost on the way to a file and back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet

from trl_agentic.records import (
    CREDIT_COLUMNS,
    SCHEMA,
    load_records,
    recorded_trajectory,
    save_records,
    save_trajectories,
    trajectory_files,
    trajectory_record,
)
from trl_agentic.types import StopReason, Trajectory, Turn


def trajectory(action: str = "go") -> Trajectory:
    turns = [
        Turn([1], [2, 3], None, action, "a room", "room", reward=0.5, info={"is_action_valid": False}),
        Turn([], [], None, "stop", "a hall", "hall", cut=True, info={"action_tokens": 7, "score": 0.75}),
    ]
    return Trajectory({"game": 4, "task_type": "Pick"}, turns, StopReason.TERMINATED, "the end", success=True)


def test_a_file_holds_the_played_turns_and_null_for_the_rest(tmp_path: Path):
    save_trajectories(tmp_path / "a.parquet", [trajectory()])
    (record,) = load_records(tmp_path / "a.parquet")
    nothing = dict.fromkeys(CREDIT_COLUMNS)
    assert record == {
        "step": None,
        "group": None,
        "sample": None,
        "task": '{"game": 4, "task_type": "Pick"}',
        "task_type": "Pick",
        "success": True,
        "score": 0.75,
        "return": 0.5,
        "stop_reason": "terminated",
        "error": None,
        "final_observation": "the end",
        "seconds": None,
        "turns": [
            {"observation": "a room", "action": "go", "reward": 0.5, "anchor_state": "room", "is_action_valid": False,
             "action_tokens": 2, "cut": False} | nothing,
            {"observation": "a hall", "action": "stop", "reward": 0.0, "anchor_state": "hall", "is_action_valid": None,
             "action_tokens": 7, "cut": True} | nothing,
        ],
    }  # fmt: skip


def test_a_trajectory_is_restored_from_its_record(tmp_path: Path):
    failed = Trajectory({"game": 5}, [], StopReason.ERROR, error="the corridor collapsed")
    save_trajectories(tmp_path / "a.parquet", [trajectory(), failed])
    records = load_records(tmp_path / "a.parquet")
    again = [recorded_trajectory(record) for record in records]
    assert [trajectory_record(played) for played in again] == records
    assert (again[0].success, again[0].score, again[0].task_type) == (True, 0.75, "Pick")


def test_credit_has_a_value_per_turn_and_nan_is_none(tmp_path: Path):
    credit = {"advantage": [1.5, -0.5], "information_gain": [float("nan"), 0.25]}
    save_records(tmp_path / "a.parquet", [trajectory_record(trajectory(), credit, step=3, group=1, sample=0)])
    (record,) = load_records(tmp_path)
    assert [turn["advantage"] for turn in record["turns"]] == [1.5, -0.5]
    assert [turn["information_gain"] for turn in record["turns"]] == [None, 0.25]
    assert (record["step"], record["group"], record["sample"]) == (3, 1, 0)


@pytest.mark.parametrize("text", ["<script>alert(1)</script>", "\ud800 lone", "\u2028\0", "日本"])
def test_any_text_can_be_saved(text: str, tmp_path: Path):
    save_trajectories(tmp_path / "a.parquet", [trajectory(text)])
    (record,) = load_records(tmp_path / "a.parquet")
    assert record["turns"][0]["action"] == text.replace("\ud800", "?")


def test_a_folder_is_read_in_the_order_of_its_names(tmp_path: Path):
    for step in (20, 3):
        save_records(tmp_path / f"step_{step:06d}.parquet", [trajectory_record(trajectory(), step=step)])
    assert [record["step"] for record in load_records(tmp_path)] == [3, 20]


def test_an_unknown_column_is_refused():
    with pytest.raises(ValueError, match="has no advantages"):
        trajectory_record(trajectory(), {"advantages": [0.0, 0.0]})


def test_the_completions_that_trl_logs_are_left_out(tmp_path: Path):
    (tmp_path / "completions").mkdir()
    parquet.write_table(pyarrow.table({"prompt": ["x"]}), tmp_path / "completions" / "completions_00001.parquet")
    save_records(tmp_path / "after.parquet", [])
    assert trajectory_files(tmp_path) == [tmp_path / "after.parquet"]


def test_errors_name_the_file(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match="No trajectories .* in .*nowhere"):
        load_records(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="No trajectories"):
        load_records(tmp_path)
    parquet.write_table(pyarrow.table({"task": ["x"]}), tmp_path / "other.parquet")
    with pytest.raises(ValueError, match="other.parquet holds no trajectories: it has no column stop_reason, turns"):
        load_records(tmp_path / "other.parquet")


def test_columns_that_an_older_file_lacks_are_none(tmp_path: Path):
    old: list[dict[str, Any]] = [{"task": json.dumps({}), "stop_reason": "terminated", "turns": [{"action": "go"}]}]
    parquet.write_table(pyarrow.Table.from_pylist(old), tmp_path / "old.parquet")
    (record,) = load_records(tmp_path / "old.parquet")
    assert list(record) == SCHEMA.names
    assert record["turns"] == [{"action": "go"}]
