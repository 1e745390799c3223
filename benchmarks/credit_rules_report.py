"""What the rows of `credit_rules.py` amount to: a table with intervals over seeds, and curves with their bands."""

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
    """Environment steps and values of every rule and seed, in the order of the steps."""
    points: dict[str, dict[int, list[tuple[float, float]]]] = {}
    for row in rows:
        runs = points.setdefault(row["rule"], {})
        runs.setdefault(int(row["seed"]), []).append((float(row["environment_steps"]), float(row[metric])))
    return {
        rule: {
            seed: tuple(np.array(column) for column in zip(*sorted(run), strict=True)) for seed, run in runs.items()
        }
        for rule, runs in points.items()
    }


def area(steps: np.ndarray, values: np.ndarray, budget: float) -> float:
    """Mean of the curve over [0, budget]: what the policy was worth while it was trained."""
    return float(np.interp(np.linspace(0, budget, GRID), steps, values).mean())


def steps_to(steps: np.ndarray, values: np.ndarray, level: float) -> float:
    """Environment steps after which the curve first reaches a level, infinite if it never does."""
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
    """Percentile interval of a statistic over seeds; `None` for fewer than two of them.

    Args:
        values: one number a seed.
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
    """One line a rule, in Markdown. Intervals are 95% bootstrap intervals over seeds.

    The area is the mean success over the budget, and its difference from the baseline's is taken seed by seed. Steps
    to a level are medians; a seed that never reaches it counts as infinite.
    """
    by_rule = curves(rows)
    areas = {rule: {seed: area(*run, budget) for seed, run in sorted(runs.items())} for rule, runs in by_rule.items()}
    header = ["rule", "seeds", "area", f"area - {baseline}", "success at the end"]
    header += [f"steps to {level:.0%}" for level in LEVELS]
    header += ["mean abs. advantage", "abs. above 1", "clipped", "seconds / 1,000 steps"]
    lines = ["| " + " | ".join(header) + " |", "|---" * len(header) + "|"]
    for rule, runs in by_rule.items():
        ends = [float(np.interp(budget, *run)) for run in runs.values()]
        pairs = [
            value - areas[baseline][seed] for seed, value in areas[rule].items() if seed in areas.get(baseline, {})
        ]
        cells = [rule, str(len(runs)), _percent(list(areas[rule].values()))]
        cells += [_percent(pairs) if pairs and rule != baseline else "-", _percent(ends)]
        cells += [_steps([steps_to(*run, level) for run in runs.values()]) for level in LEVELS]
        own = [row for row in rows if row["rule"] == rule and float(row["environment_steps"]) > 0]
        for name, form in (("advantage_abs_mean", "{:.2f}"), ("advantage_abs_gt_1", "{:.2f}"), ("clipped", "{:.3f}")):
            cells.append(form.format(np.mean([float(row[name]) for row in own])) if own else "-")
        cells.append(f"{_seconds_per_thousand(own):.1f}" if own else "-")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _percent(values: Sequence[float]) -> str:
    interval = bootstrap_interval(values)
    told = f"{100 * np.mean(values):.1f}%"
    return told if interval is None else f"{told} ({100 * interval[0]:.1f} to {100 * interval[1]:.1f})"


def _steps(values: Sequence[float]) -> str:
    def told(value: float) -> str:
        return f"{value:,.0f}" if math.isfinite(value) else "never"

    middle, interval = float(_median(np.array(values), 0)), bootstrap_interval(values, _median)
    return told(middle) if interval is None else f"{told(middle)} ({told(interval[0])} to {told(interval[1])})"


def _median(values: np.ndarray, axis: int) -> np.ndarray:
    """The median, where a number may be infinite: that of an even number of values is the upper one of the two."""
    return np.quantile(values, 0.5, axis=axis, method="higher")


def _seconds_per_thousand(rows: Rows) -> float:
    last: dict[int, tuple[float, float]] = {}
    for row in rows:
        point = float(row["environment_steps"]), float(row["wall_seconds"])
        last[int(row["seed"])] = max(last.get(int(row["seed"]), point), point)
    return float(np.mean([1000 * seconds / steps for steps, seconds in last.values()]))


def plot_curves(rows: Rows, budget: float, path: Path, title: str) -> None:
    """Success and turns of the held-out tasks over environment steps: mean over seeds, and its 95% interval."""
    figure = Figure(figsize=(7, 6), layout="constrained")
    panels = figure.subplots(2, 1, sharex=True)
    grid = np.linspace(0, budget, GRID)
    for axes, metric, label in zip(panels, ("success", "turns"), ("success", "turns of a rollout"), strict=True):
        for number, (rule, runs) in enumerate(curves(rows, metric).items()):
            values = np.stack([np.interp(grid, *run) for run in runs.values()])
            axes.plot(grid, values.mean(0), color=f"C{number}", label=f"{rule} ({len(runs)} seeds)")
            if len(runs) > 1:
                bands = [bootstrap_interval(column) or (0.0, 0.0) for column in values.T]
                axes.fill_between(grid, *zip(*bands, strict=True), color=f"C{number}", alpha=0.15, linewidth=0)
        axes.set_ylabel(label)
        axes.grid(alpha=0.3)
    panels[0].legend()
    panels[0].set_title(title)
    panels[1].set_xlabel("environment steps")
    figure.savefig(path, dpi=120)
