"""Evaluation run: plays every task once or k times and keeps finished rollouts on disk."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from hashlib import blake2b
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import parse_flag_from_env
from tqdm.auto import tqdm

from trl_agentic.environments.base import Environment, check_environment
from trl_agentic.evaluation.players import Player
from trl_agentic.evaluation.report import report_markdown, summarize_records
from trl_agentic.records import save_records, trajectory_record
from trl_agentic.rollout.loop import Episode, derived_seed


def evaluate(
    player: Player,
    factory: Callable[[], Environment],
    tasks: list[dict[str, Any]],
    output_dir: str | Path,
    settings: dict[str, Any],
    samples: int = 1,
    seed: int = 0,
    batch_size: int = 32,
    ceiling: dict[str, float] | None = None,
) -> dict[str, Any]:
    """Plays tasks and writes the figures and the rollouts.

    Finished batches are kept in `output_dir/rollouts`; called again with the same settings, it plays the rest. Under
    `accelerate launch` the processes share the rollouts; each has a copy of the policy.

    Args:
        player: the policy.
        factory: makes an environment.
        tasks: dataset rows to reset it with.
        output_dir: folder for `results.json`, `results.md` and `trajectories.parquet`.
        settings: what the figures depend on, `policy` and `environment` included; written next to the figures.
        samples: rollouts of each task.
        seed: seed of the policy's sampling.
        batch_size: rollouts that a process plays at a time.
        ceiling: the highest `success` and mean `score` that the tasks allow, where it is known to be below 1.

    Returns:
        `dict`: the figures of [`summarize_records`], and `ceiling`, on every process.

    Raises:
        ValueError: there are no tasks, or `output_dir` holds an evaluation with other settings. The message names
            them.
        RuntimeError: all rollouts of a batch failed, or the only rollout that was played. The message has the first
            error.
    """
    if not tasks:
        raise ValueError("There are no tasks to evaluate on.")
    state = process_state()
    out = Path(output_dir)
    settings = {**settings, "samples": samples, "seed": seed, "tasks": len(tasks), "tasks_hash": _hash(tasks)}
    _claim(out, settings, state)
    errors = {(record["group"], record["sample"]): record["error"] for record in _finished(out)}
    state.wait_for_everyone()  # every process has read the files before one of them writes again
    if not errors:
        _check(factory, tasks)
    jobs = [(group, sample) for group in range(len(tasks)) for sample in range(samples)]
    open_jobs = [job for job in jobs if job not in errors]
    own = open_jobs[state.process_index :: state.num_processes]
    batches = [own[start : start + batch_size] for start in range(0, len(own), batch_size)]
    with (
        _Journal(_own_file(out, state), has_played=None in errors.values()) as journal,
        tqdm(total=len(own), desc="Rollouts", unit="rollout", disable=not state.is_main_process) as bar,
    ):
        for number, records in enumerate(_played(player, factory, tasks, batches, seed), start=1):
            journal.add(records, is_last=number == len(batches))
            bar.update(len(records))
    state.wait_for_everyone()
    return _write_results(out, settings, ceiling, state)


def _played(
    player: Player,
    factory: Callable[[], Environment],
    tasks: list[dict[str, Any]],
    batches: list[list[tuple[int, int]]],
    seed: int,
) -> Iterator[list[dict[str, Any]]]:
    """The records of each batch of jobs `(group, sample)`, all batches on the same environments."""
    environments = [factory() for _ in range(max(map(len, batches), default=0))]
    for batch in batches:
        episodes = [
            Episode(environment, tasks[group], derived_seed(seed, group, sample))
            for environment, (group, sample) in zip(environments, batch, strict=False)
        ]
        yield _play(player, episodes, batch)
    for environment in environments:
        environment.close()


class _Journal:
    """The file of finished rollouts of one process.

    Failed rollouts are held back until one has succeeded: an environment that always fails ends the evaluation and
    leaves nothing on disk.

    Args:
        file: the file to append to.
        has_played: whether an earlier run finished a rollout without an error.
    """

    def __init__(self, file: Path, has_played: bool):
        self._file = file
        self._has_played = has_played
        self._held: list[dict[str, Any]] = []

    def __enter__(self) -> _Journal:
        self._lines = open(self._file, "a", encoding="utf-8")
        return self

    def __exit__(self, *exception: object) -> None:
        self._lines.close()

    def add(self, records: list[dict[str, Any]], is_last: bool) -> None:
        """Writes the records of a batch, or holds them back.

        Raises:
            RuntimeError: all rollouts of a batch failed, or the only rollout that was played.
        """
        records = [*self._held, *records]
        failed = [record for record in records if record["error"] is not None]
        self._has_played = self._has_played or len(failed) < len(records)
        if len(failed) == len(records) and (len(records) > 1 or (is_last and not self._has_played)):
            raise RuntimeError(f"All {len(failed)} rollouts of a batch failed. The first error:\n{failed[0]['error']}")
        self._held = [] if self._has_played else records
        if self._has_played:
            self._lines.writelines(json.dumps(record) + "\n" for record in records)
            self._lines.flush()


def _write_results(
    out: Path, settings: dict[str, Any], ceiling: dict[str, float] | None, state: PartialState
) -> dict[str, Any]:
    """The figures of all finished rollouts, which the main process writes."""
    records = sorted(_finished(out), key=lambda record: (record["group"], record["sample"]))
    summary = summarize_records(records) | ({"ceiling": ceiling} if ceiling else {})
    if state.is_main_process:
        save_records(out / "trajectories.parquet", records)
        (out / "results.json").write_text(json.dumps(summary | {"settings": settings}, indent=2) + "\n")
        (out / "results.md").write_text(report_markdown(summary, settings))
    state.wait_for_everyone()
    return summary


def process_state() -> PartialState:
    """The processes of this evaluation. One may wait hours for another: the timeout is a day."""
    cpu = parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available()
    return PartialState(cpu=cpu, timeout=timedelta(days=1))


def _check(factory: Callable[[], Environment], tasks: list[dict[str, Any]]) -> None:
    """Checks the environment on the first task and, if that fails, on the second: the task alone may be at fault."""
    try:
        check_environment(factory, tasks[0])
    except Exception:  # a faulty task fails again in its rollout; a faulty environment fails the next check
        if len(tasks) == 1:
            raise
        check_environment(factory, tasks[1])


def _play(player: Player, episodes: list[Episode], batch: list[tuple[int, int]]) -> list[dict[str, Any]]:
    started = time.perf_counter()
    trajectories = player.play(episodes)
    seconds = (time.perf_counter() - started) / len(batch)
    return [
        trajectory_record(trajectory, group=group, sample=sample, seconds=seconds)
        for trajectory, (group, sample) in zip(trajectories, batch, strict=True)
    ]


def _claim(out: Path, settings: dict[str, Any], state: PartialState) -> None:
    """Writes the settings to the folder, or compares them with those that it holds.

    Raises:
        ValueError: the folder holds an evaluation with other settings.
    """
    file = out / "settings.json"
    if state.is_main_process and not file.exists():
        (out / "rollouts").mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(settings, indent=2) + "\n")
    state.wait_for_everyone()
    held = json.loads(file.read_text())
    settings = json.loads(json.dumps(settings))
    different = [name for name in {**held, **settings} if held.get(name) != settings.get(name)]
    if different:
        listed = "; ".join(f"{name}: {held.get(name)!r} there, {settings.get(name)!r} here" for name in different)
        raise ValueError(f"{out} holds an evaluation with other settings ({listed}). Choose another folder.")


def _own_file(out: Path, state: PartialState) -> Path:
    """The file that this process appends to. A line that a killed run left unfinished is removed."""
    file = out / "rollouts" / f"{state.process_index}.jsonl"
    if file.exists():
        whole, newline, _ = file.read_bytes().rpartition(b"\n")
        file.write_bytes(whole + newline)
    return file


def _finished(out: Path) -> Iterator[dict[str, Any]]:
    for file in sorted((out / "rollouts").glob("*.jsonl")):
        with open(file, encoding="utf-8") as lines:
            for line in lines:
                if line.endswith("\n"):
                    yield json.loads(line)


def _hash(tasks: list[dict[str, Any]]) -> str:
    return blake2b(json.dumps(tasks, sort_keys=True, default=str).encode(), digest_size=8).hexdigest()
