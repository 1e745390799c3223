"""Records of finished rollouts: plain data, and Parquet files."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import pyarrow
from pyarrow import parquet

from trl_agentic.types import StopReason, Trajectory, Turn


CREDIT_COLUMNS = (
    "return",
    "value",
    "information_gain",
    "advantage",
    "ratio",
    "clip_low",
    "clip_high",
    "clipped",
)
"""A trainer's figures of a turn, in addition to what was played; null where they do not exist."""

_TURN = pyarrow.struct(
    [
        ("observation", pyarrow.string()),
        ("action", pyarrow.string()),
        ("reward", pyarrow.float64()),
        ("anchor_state", pyarrow.string()),
        ("is_action_valid", pyarrow.bool_()),
        ("action_tokens", pyarrow.int64()),
        ("cut", pyarrow.bool_()),
        *((name, pyarrow.float64()) for name in CREDIT_COLUMNS),
    ]
)
SCHEMA = pyarrow.schema(
    [
        ("step", pyarrow.int64()),
        ("group", pyarrow.int64()),
        ("sample", pyarrow.int64()),
        ("task", pyarrow.string()),
        ("task_type", pyarrow.string()),
        ("success", pyarrow.bool_()),
        ("score", pyarrow.float64()),
        ("return", pyarrow.float64()),
        ("stop_reason", pyarrow.string()),
        ("error", pyarrow.string()),
        ("final_observation", pyarrow.string()),
        ("seconds", pyarrow.float64()),
        ("turns", pyarrow.list_(_TURN)),
    ]
)
"""Columns of a file of trajectories. `step`: the update that the rollout was sampled for. `group` and `sample`: the
task of the rollout, and its number among the rollouts of that task. `task`: the dataset row as JSON. `score`: the
environment's own grade, if it reports one in addition to success. `return`: undiscounted sum of rewards. `seconds`:
the rollout's share of the wall-clock time of its batch."""


def trajectory_record(
    trajectory: Trajectory, credit: Mapping[str, Sequence[float]] | None = None, **columns: Any
) -> dict[str, Any]:
    """A trajectory as plain data.

    Args:
        trajectory: a finished rollout.
        credit: some of [`CREDIT_COLUMNS`], one value per turn; NaN stands for no value.
        **columns: `step`, `group`, `sample` or `seconds`.

    Returns:
        `dict`: the columns of [`SCHEMA`], `None` where there is no value. `action_tokens` is `info["action_tokens"]`
        if the policy's token ids are not known.

    Raises:
        ValueError: `credit` or `columns` has another name.
    """
    credit = credit or {}
    unknown = {*credit} - {*CREDIT_COLUMNS} | {*columns} - {"step", "group", "sample", "seconds"}
    if unknown:
        raise ValueError(f"A record of a trajectory has no {', '.join(sorted(unknown))}.")
    turns = [
        {
            "observation": turn.observation,
            "action": turn.action,
            "reward": turn.reward,
            "anchor_state": turn.anchor_state,
            "is_action_valid": turn.info.get("is_action_valid"),
            "action_tokens": len(turn.action_ids) or turn.info.get("action_tokens"),
            "cut": turn.cut,
            **{name: _known(credit[name][k]) if name in credit else None for name in CREDIT_COLUMNS},
        }
        for k, turn in enumerate(trajectory.turns)
    ]
    known = {
        "task": json.dumps(trajectory.task, ensure_ascii=False, default=str),
        "task_type": None if trajectory.task_type is None else str(trajectory.task_type),
        "success": trajectory.success,
        "score": trajectory.score,
        "return": trajectory.episode_return,
        "stop_reason": str(trajectory.stop_reason),
        "error": trajectory.error,
        "final_observation": trajectory.final_observation,
        "turns": turns,
        **columns,
    }
    return {name: known.get(name) for name in SCHEMA.names}


def recorded_trajectory(record: Mapping[str, Any]) -> Trajectory:
    """The trajectory of a record of [`trajectory_record`], without its tokens and the trainer's figures."""
    turns = [
        Turn(
            [],
            [],
            None,
            turn["action"],
            turn["observation"],
            turn["anchor_state"],
            reward=turn["reward"],
            cut=turn["cut"],
            info={name: turn[name] for name in ("is_action_valid", "action_tokens") if turn[name] is not None},
        )
        for turn in record["turns"]
    ]
    if turns:
        turns[-1].info |= {name: record[name] for name in ("score", "task_type") if record[name] is not None}
    return Trajectory(
        task=json.loads(record["task"]),
        turns=turns,
        stop_reason=StopReason(record["stop_reason"]),
        final_observation=record["final_observation"],
        success=record["success"],
        error=record["error"],
    )


def save_trajectories(path: str | PathLike[str], trajectories: Sequence[Trajectory]) -> None:
    """Writes trajectories to a Parquet file, one row per trajectory, columns as in [`SCHEMA`]."""
    save_records(path, [trajectory_record(trajectory) for trajectory in trajectories])


def save_records(path: str | PathLike[str], records: Sequence[dict[str, Any]]) -> None:
    """Writes records of [`trajectory_record`] to a Parquet file, one row per record."""
    parquet.write_table(pyarrow.Table.from_pylist([_encodable(r) for r in records], schema=SCHEMA), path)


def trajectory_files(path: str | PathLike[str]) -> list[Path]:
    """The given Parquet file, or all Parquet files of a folder and its subfolders, ordered by name.

    The files that TRL writes with `log_completions`, in folders called `completions`, are left out.

    Raises:
        FileNotFoundError: there is no such file, or no Parquet file in the folder.
    """
    path = Path(path)
    files = [path]
    if path.is_dir():
        files = sorted(file for file in path.rglob("*.parquet") if file.parent.name != "completions")
    if not files or not path.exists():
        raise FileNotFoundError(f"No trajectories (*.parquet) in {path}.")
    return files


def load_records(path: str | PathLike[str]) -> list[dict[str, Any]]:
    """Reads records from a Parquet file, or from all files that [`trajectory_files`] finds in a folder.

    Raises:
        FileNotFoundError: there is no such file, or no Parquet file in the folder.
        ValueError: a file holds no trajectories. The message names the file and the missing columns.
    """
    records = []
    for file in trajectory_files(path):
        try:
            table = parquet.read_table(file)
        except pyarrow.ArrowInvalid as error:
            raise ValueError(f"{file} is not a Parquet file: {error}") from error
        lacking = [name for name in ("task", "stop_reason", "turns") if name not in table.column_names]
        if lacking:
            raise ValueError(f"{file} holds no trajectories: it has no column {', '.join(lacking)}.")
        records += [{name: row.get(name) for name in SCHEMA.names} for row in table.to_pylist()]
    return records


def _known(value: float) -> float | None:
    return None if math.isnan(value) else float(value)


def _encodable(value: Any) -> Any:
    """The value with lone surrogates replaced, which UTF-8 cannot encode."""
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode("utf-8")
    if isinstance(value, list):
        return [_encodable(item) for item in value]
    if isinstance(value, dict):
        return {name: _encodable(item) for name, item in value.items()}
    return value
