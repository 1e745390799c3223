"""Report on the rows of `credit_rules.py`: a table with intervals over seeds, and curves with bands."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure


LEVELS = (0.5, 0.75, 0.9)
GRID = 201
RESAMPLES = 10_000

Rows = Sequence[dict[str, Any]]


def curves(rows: Rows, metric: str = "success") -> dict[str, dict[int, tuple[np.ndarray, np.ndarray]]]:
    """Environment steps and values of every algorithm and seed, ordered by steps."""
    points: dict[str, dict[int, list[tuple[float, float]]]] = {}
    for row in rows:
        runs = points.setdefault(row["rule"], {})
        runs.setdefault(int(row["seed"]), []).append((float(row["environment_steps"]), float(row[metric])))
    return {
        algorithm: {
            seed: tuple(np.array(column) for column in zip(*sorted(run), strict=True)) for seed, run in runs.items()
        }
        for algorithm, runs in points.items()
    }


def area(steps: np.ndarray, values: np.ndarray, budget: float) -> float:
    """Mean of the curve over [0, budget]. Beyond its last point the curve is constant."""
    return float(np.interp(np.linspace(0, budget, GRID), steps, values).mean())


def steps_to(steps: np.ndarray, values: np.ndarray, level: float) -> float:
    """Environment steps after which the curve first reaches a level, infinite if it does not reach it."""
    reached = np.flatnonzero(values >= level)
    if not reached.size:
        return math.inf
    after = int(reached[0])
    if after == 0:
        return float(steps[0])
    before = after - 1
    share = (level - values[before]) / (values[after] - values[before])
    return float(steps[before] + share * (steps[after] - steps[before]))


def bootstrap_interval(
    values: Sequence[float], statistic: Callable[..., np.ndarray] = np.mean, level: float = 0.95
) -> tuple[float, float] | None:
    """Percentile interval of a statistic over seeds; `None` for fewer than two seeds.

    Args:
        values: one number per seed.
        statistic: `np.mean` or `np.median`.
        level: probability that the interval covers.
    """
    if len(values) < 2:
        return None
    draws = np.random.default_rng(0).integers(len(values), size=(RESAMPLES, len(values)))
    resampled = np.sort(statistic(np.asarray(values, dtype=float)[draws], axis=1))
    low, high = (1 - level) / 2 * (RESAMPLES - 1), (1 + level) / 2 * (RESAMPLES - 1)
    return float(resampled[round(low)]), float(resampled[round(high)])


def results_table(rows: Rows, budget: float, baseline: str = "grpo") -> str:
    """One line per algorithm, in Markdown. Intervals are 95% bootstrap intervals over seeds.

    The area is the mean success over the budget, and its difference from the baseline's is taken seed by seed. Steps
    to a level are medians; a seed that never reaches it counts as infinite.
    """
    by_algorithm = curves(rows)
    areas = {
        algorithm: {seed: area(*run, budget) for seed, run in sorted(runs.items())}
        for algorithm, runs in by_algorithm.items()
    }
    header = ["algorithm", "seeds", "area", f"area - {baseline}", "success at the end"]
    header += [f"steps to {level:.0%}" for level in LEVELS]
    header += ["mean abs. advantage", "abs. above 1", "clipped", "seconds / 1,000 steps"]
    lines = ["| " + " | ".join(header) + " |", "|---" * len(header) + "|"]
    for algorithm, runs in by_algorithm.items():
        ends = [float(np.interp(budget, *run)) for run in runs.values()]
        pairs = [
            value - areas[baseline][seed]
            for seed, value in areas[algorithm].items()
            if seed in areas.get(baseline, {})
        ]
        cells = [algorithm, str(len(runs)), _percent(list(areas[algorithm].values()))]
        cells += [_percent(pairs) if pairs and algorithm != baseline else "-", _percent(ends)]
        cells += [_steps([steps_to(*run, level) for run in runs.values()]) for level in LEVELS]
        own = [row for row in rows if row["rule"] == algorithm and float(row["environment_steps"]) > 0]
        for name, form in (("advantage_abs_mean", "{:.2f}"), ("advantage_abs_gt_1", "{:.2f}"), ("clipped", "{:.3f}")):
            cells.append(form.format(np.mean([float(row[name]) for row in own])) if own else "-")
        cells.append(f"{_seconds_per_thousand(own):.1f}" if own else "-")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _percent(values: Sequence[float]) -> str:
    interval = bootstrap_interval(values)
    mean = f"{100 * np.mean(values):.1f}%"
    return mean if interval is None else f"{mean} ({100 * interval[0]:.1f} to {100 * interval[1]:.1f})"


def _steps(values: Sequence[float]) -> str:
    def shown(value: float) -> str:
        return f"{value:,.0f}" if math.isfinite(value) else "never"

    middle, interval = float(_median(np.array(values), 0)), bootstrap_interval(values, _median)
    return shown(middle) if interval is None else f"{shown(middle)} ({shown(interval[0])} to {shown(interval[1])})"


def _median(values: np.ndarray, axis: int) -> np.ndarray:
    """The median of values that may be infinite: of an even number of values the upper one of the middle two."""
    return np.quantile(values, 0.5, axis=axis, method="higher")


def _seconds_per_thousand(rows: Rows) -> float:
    last: dict[int, tuple[float, float]] = {}
    for row in rows:
        point = float(row["environment_steps"]), float(row["wall_seconds"])
        last[int(row["seed"])] = max(last.get(int(row["seed"]), point), point)
    return float(np.mean([1000 * seconds / steps for steps, seconds in last.values()]))


def plot_curves(rows: Rows, budget: float, path: Path, title: str) -> None:
    """Success and turns of the held-out tasks over environment steps: mean over seeds with its 95% interval."""
    figure = Figure(figsize=(7, 6), layout="constrained")
    panels = figure.subplots(2, 1, sharex=True)
    grid = np.linspace(0, budget, GRID)
    for axes, metric, label in zip(panels, ("success", "turns"), ("success", "turns of a rollout"), strict=True):
        for number, (algorithm, runs) in enumerate(curves(rows, metric).items()):
            values = np.stack([np.interp(grid, *run) for run in runs.values()])
            axes.plot(grid, values.mean(0), color=f"C{number}", label=f"{algorithm} ({len(runs)} seeds)")
            if len(runs) > 1:
                bands = [bootstrap_interval(column) or (0.0, 0.0) for column in values.T]
                axes.fill_between(grid, *zip(*bands, strict=True), color=f"C{number}", alpha=0.15, linewidth=0)
        axes.set_ylabel(label)
        axes.grid(alpha=0.3)
    panels[0].legend()
    panels[0].set_title(title)
    panels[1].set_xlabel("environment steps")
    figure.savefig(path, dpi=120)
