"""Learning curves, drawn from a trainer's log."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any


def read_log(run: str | PathLike[str]) -> list[dict[str, Any]]:
    """The log of a run.

    Args:
        run: `trainer_state.json`, the folder that holds it, or the folder of a run with checkpoints, of which the last
            one is read.

    Returns:
        `list[dict]`: `trainer.state.log_history`.

    Raises:
        FileNotFoundError: there is no `trainer_state.json`.
        ValueError: the file holds no log.
    """
    path = Path(run)
    found = [path] if path.is_file() else [path / "trainer_state.json"]
    if not found[0].is_file():
        checkpoints = [folder for folder in path.glob("checkpoint-*") if folder.name.rpartition("-")[2].isdigit()]
        checkpoints.sort(key=lambda folder: int(folder.name.rpartition("-")[2]))
        found = [folder / "trainer_state.json" for folder in checkpoints if (folder / "trainer_state.json").is_file()]
    if not found:
        raise FileNotFoundError(
            f"No trainer_state.json in {path} or in a checkpoint-* folder of it. A trainer writes one with every "
            "checkpoint, and with `trainer.save_state()`."
        )
    try:
        return json.loads(found[-1].read_text(encoding="utf-8"))["log_history"]
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"{found[-1]} holds no log of a trainer: {error!r}.") from error


def plot_runs(
    logs: Mapping[str, Sequence[Mapping[str, Any]]], path: str | PathLike[str], metrics: Sequence[str]
) -> None:
    """Draws metrics of several runs over optimizer steps, each with its running mean.

    Args:
        logs: name of a run -> its `log_history`.
        path: image to write; the suffix selects the format.
        metrics: keys of the logs, one panel per key; a run without the key is left out of its panel.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: no run has one of the metrics. The message names the available ones.
    """
    figure = _figure(height=3.2 * len(metrics))
    panels = figure.subplots(len(metrics), 1, squeeze=False, sharex=True)[:, 0]
    for axes, metric in zip(panels, metrics, strict=True):
        drawn = {name: points for name, log in logs.items() if (points := _points(log, metric))}
        if not drawn:
            known = sorted({key for log in logs.values() for entry in log for key in entry})
            raise ValueError(f"No run logs {metric!r}. Available: {', '.join(known)}.")
        for number, (name, points) in enumerate(drawn.items()):
            _draw(axes, points, f"C{number}", f"{name} (mean of {_window(points)})")
        _finish(axes, metric)
    panels[-1].set_xlabel("optimizer step")
    figure.savefig(path, dpi=150)


def plot_learning_curve(
    log_history: Sequence[Mapping[str, Any]],
    path: str | PathLike[str],
    metric: str = "episode/success",
    evaluations: Mapping[int, float] | None = None,
    title: str = "",
) -> None:
    """Draws a metric over optimizer steps, with its running mean, and evaluations as dots.

    Args:
        log_history: `trainer.state.log_history`.
        path: image to write; the suffix selects the format.
        metric: key of the log to draw.
        evaluations: step -> value of separate evaluations, in the metric's unit.
        title: title of the figure.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: the log has no such metric.
    """
    points = _points(log_history, metric)
    if not points:
        raise ValueError(f"The log has no {metric!r}: nothing to draw.")
    figure = _figure(height=4)
    axes = figure.subplots()
    _draw(axes, points, "tab:blue", f"training rollouts (mean of {_window(points)})")
    if evaluations:
        axes.plot(list(evaluations), list(evaluations.values()), "o--", color="tab:red", label="held-out tasks")
    axes.set_xlabel("optimizer step")
    axes.set_title(title)
    _finish(axes, metric)
    figure.savefig(path, dpi=150)


def _figure(height: float) -> Any:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("Plots need matplotlib: pip install trl-agentic[viewer]") from error
    return Figure(figsize=(7, height), layout="constrained")


def _points(log: Sequence[Mapping[str, Any]], metric: str) -> list[tuple[int, float]]:
    return [(entry["step"], entry[metric]) for entry in log if entry.get(metric) is not None]


def _window(points: Sequence[tuple[int, float]]) -> int:
    return max(1, len(points) // 10)


def _draw(axes: Any, points: Sequence[tuple[int, float]], color: str, label: str) -> None:
    """Draws the values, faint, and their running mean."""
    steps, values = zip(*points, strict=True)
    window = _window(points)
    parts = [values[max(0, i - window + 1) : i + 1] for i in range(len(values))]
    axes.plot(steps, values, color=color, alpha=0.3, linewidth=1)
    axes.plot(steps, [sum(part) / len(part) for part in parts], color=color, linewidth=2, label=label)


def _finish(axes: Any, metric: str) -> None:
    axes.set_ylabel(metric)
    axes.grid(alpha=0.3)
    axes.legend()
    if metric.startswith("episode/success"):
        axes.set_ylim(0, 1)
