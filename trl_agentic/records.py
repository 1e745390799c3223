"""Finished rollouts as plain data, and as Parquet files."""

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
"""What a trainer knows of a turn beside what was played; null where it does not exist."""

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
"""Columns of a file of trajectories. `step`: the update that the rollout was sampled for. `group` and `sample`: which
rollouts belong to one task. `task`: the dataset row as JSON. `score`: the environment's own grade, where it gives one
beside success. `return`: undiscounted sum of rewards. `seconds`: its share of the wall-clock time of its batch."""


def trajectory_record(
    trajectory: Trajectory, credit: Mapping[str, Sequence[float]] | None = None, **columns: Any
) -> dict[str, Any]:
    """A trajectory as plain data.

    Args:
        trajectory: a finished rollout.
        credit: some of [`CREDIT_COLUMNS`], one value a turn; NaN stands for none.
        **columns: `step`, `group`, `sample` or `seconds`.

    Returns:
        `dict`: the columns of [`SCHEMA`], `None` where there is nothing to tell. `action_tokens` is
        `info["action_tokens"]` where the policy's ids are not known.

    Raises:
        ValueError: `credit` or `columns` has a name that is none of the above.
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
    """The trajectory of a record of [`trajectory_record`], without its tokens and what only the trainer knew."""
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
    """Writes trajectories to a Parquet file, one row each, columns as in [`SCHEMA`]."""
    save_records(path, [trajectory_record(trajectory) for trajectory in trajectories])


def save_records(path: str | PathLike[str], records: Sequence[dict[str, Any]]) -> None:
    """Writes records of [`trajectory_record`] to a Parquet file, one row each."""
    parquet.write_table(pyarrow.Table.from_pylist([_encodable(r) for r in records], schema=SCHEMA), path)


def trajectory_files(path: str | PathLike[str]) -> list[Path]:
    """A Parquet file itself, or all of a folder and the folders in it, in the order of their names.

    What TRL writes beside them with `log_completions`, in folders called `completions`, is left out.

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
    """Reads records from a Parquet file, or from all that [`trajectory_files`] finds in a folder.

    Raises:
        FileNotFoundError: there is no such file, or no Parquet file in the folder.
        ValueError: a file holds no trajectories. The message names it and the column that it lacks.
    """
    records = []
    for file in trajectory_files(path):
        try:
            table = parquet.read_table(file)
        except pyarrow.ArrowInvalid as error:
            raise ValueError(f"{file} is no Parquet file: {error}") from error
        lacking = [name for name in ("task", "stop_reason", "turns") if name not in table.column_names]
        if lacking:
            raise ValueError(f"{file} holds no trajectories: it has no column {', '.join(lacking)}.")
        records += [{name: row.get(name) for name in SCHEMA.names} for row in table.to_pylist()]
    return records


def _known(value: float) -> float | None:
    return None if math.isnan(value) else float(value)


def _encodable(value: Any) -> Any:
    """The value with lone surrogates, which no file takes, replaced."""
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode("utf-8")
    if isinstance(value, list):
        return [_encodable(item) for item in value]
    if isinstance(value, dict):
        return {name: _encodable(item) for name, item in value.items()}
    return value
