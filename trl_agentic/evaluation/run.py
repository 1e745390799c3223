"""Plays every task of an evaluation once or k times, and keeps what is finished on disk."""

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
    """Plays tasks and writes what they amount to.

    Finished batches are kept in `output_dir/rollouts`; called again with the same settings, it plays the rest. Under
    `accelerate launch` the processes share the rollouts; each has a copy of the policy.

    Args:
        player: the policy.
        factory: makes an environment.
        tasks: dataset rows to reset it with.
        output_dir: folder for `results.json`, `results.md` and `trajectories.parquet`.
        settings: what the figures depend on, with `policy` and `environment` among it; written beside the figures.
        samples: rollouts of each task.
        seed: seed of the policy's sampling.
        batch_size: rollouts at a time and process.
        ceiling: the highest `success` and mean `score` that the tasks allow, where it is known to be below 1.

    Returns:
        `dict`: the figures of [`summarize_records`], and `ceiling`, on every process.

    Raises:
        ValueError: there are no tasks, or `output_dir` holds an evaluation with other settings. The message names
            them.
        RuntimeError: all rollouts of a batch failed; of a single one, if no other was played. The message has the
            first error.
    """
    if not tasks:
        raise ValueError("There are no tasks to evaluate on.")
    state = process_state()
    out = Path(output_dir)
    settings = {**settings, "samples": samples, "seed": seed, "tasks": len(tasks), "tasks_hash": _hash(tasks)}
    _claim(out, settings, state)
    errors = {(record["group"], record["sample"]): record["error"] for record in _finished(out)}
    state.wait_for_everyone()  # all have read before any goes on writing
    jobs = [(group, sample) for group in range(len(tasks)) for sample in range(samples)]
    open_jobs = [job for job in jobs if job not in errors]
    has_played = None in errors.values()
    if not errors:
        _check(factory, tasks)
    own = open_jobs[state.process_index :: state.num_processes]
    environments = [factory() for _ in range(min(batch_size, len(own)))]
    held: list[dict[str, Any]] = []
    with (
        open(_own_file(out, state), "a", encoding="utf-8") as file,
        tqdm(total=len(own), desc="Rollouts", unit="rollout", disable=not state.is_main_process) as bar,
    ):
        for start in range(0, len(own), batch_size):
            batch = own[start : start + batch_size]
            episodes = [
                Episode(environment, tasks[group], derived_seed(seed, group, sample))
                for environment, (group, sample) in zip(environments, batch, strict=False)
            ]
            records = [*held, *_play(player, episodes, batch)]
            failed = [record for record in records if record["error"] is not None]
            has_played = has_played or len(failed) < len(records)
            last = start + batch_size >= len(own)
            if len(failed) == len(records) and (len(records) > 1 or (last and not has_played)):
                raise RuntimeError(
                    f"All {len(failed)} rollouts of a batch failed. The first error:\n{failed[0]['error']}"
                )
            if has_played:
                file.writelines(json.dumps(record) + "\n" for record in records)
                held = []
            else:
                held = records  # one failure after another, and nothing else, is no evaluation
            file.flush()
            bar.update(len(batch))
    for environment in environments:
        environment.close()
    state.wait_for_everyone()
    records = sorted(_finished(out), key=lambda record: (record["group"], record["sample"]))
    summary = summarize_records(records) | ({"ceiling": ceiling} if ceiling else {})
    if state.is_main_process:
        save_records(out / "trajectories.parquet", records)
        (out / "results.json").write_text(json.dumps(summary | {"settings": settings}, indent=2) + "\n")
        (out / "results.md").write_text(report_markdown(summary, settings))
    state.wait_for_everyone()
    return summary


def process_state() -> PartialState:
    """The processes of this evaluation, which may be hours apart when they meet."""
    cpu = parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available()
    return PartialState(cpu=cpu, timeout=timedelta(days=1))


def _check(factory: Callable[[], Environment], tasks: list[dict[str, Any]]) -> None:
    """Checks the environment on a task, and on another one if that task alone is at fault."""
    try:
        check_environment(factory, tasks[0])
    except Exception:  # if the task is at fault, its rollout tells; if it is the environment, the next check does
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
    """Makes the folder this evaluation's, or fails if it is another's."""
    file = out / "settings.json"
    if state.is_main_process and not file.exists():
        (out / "rollouts").mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(settings, indent=2) + "\n")
    state.wait_for_everyone()
    held = json.loads(file.read_text())
    settings = json.loads(json.dumps(settings))
    different = [name for name in {**held, **settings} if held.get(name) != settings.get(name)]
    if different:
        told = "; ".join(f"{name}: {held.get(name)!r} there, {settings.get(name)!r} here" for name in different)
        raise ValueError(f"{out} holds an evaluation with other settings ({told}). Choose another folder.")


def _own_file(out: Path, state: PartialState) -> Path:
    """The file that this process appends to, without the line that a killed run left unfinished."""
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
