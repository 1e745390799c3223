"""Success rates of finished rollouts by task type, with their intervals."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from trl_agentic.types import Trajectory


@dataclass(frozen=True, slots=True)
class SuccessRate:
    """Successes among finished rollouts.

    Attributes:
        wins: rollouts whose environment reported success.
        rollouts: rollouts counted.
    """

    wins: int
    rollouts: int

    @property
    def rate(self) -> float:
        """Share of wins in [0, 1], NaN for no rollouts."""
        return self.wins / self.rollouts if self.rollouts else float("nan")

    def __str__(self) -> str:
        return f"{100 * self.rate:.1f}% ({self.wins}/{self.rollouts})"


def wilson_interval(rate: float, count: int, z: float = 1.959964) -> tuple[float, float]:
    """Wilson's score interval of a probability (JASA 22, 1927).

    Args:
        rate: share of successes, in [0, 1].
        count: independent trials, at least 1.
        z: quantile of the normal distribution; the default gives 95%.

    Returns:
        Lower and upper bound, in [0, 1].

    Raises:
        ValueError: `count` is below 1.
    """
    if count < 1:
        raise ValueError(f"`count` must be at least 1, got {count}.")
    centre = rate + z * z / (2 * count)
    reach = z * math.sqrt(rate * (1 - rate) / count + z * z / (4 * count * count))
    scale = 1 + z * z / count
    return max(0.0, (centre - reach) / scale), min(1.0, (centre + reach) / scale)


def success_by_task_type(trajectories: Sequence[Trajectory]) -> dict[str, SuccessRate]:
    """Success rate of each task type, and of all of them under `"All"`.

    A rollout that a budget cut counts as not solved, and so does one that failed with an error: leaving failed
    rollouts out would raise the rate.

    Args:
        trajectories: finished rollouts.

    Returns:
        `dict[str, SuccessRate]`: types in alphabetical order, `"All"` last.
    """
    counts: dict[str, list[bool]] = defaultdict(list)
    for trajectory in trajectories:
        counts[trajectory.task_type or "unknown"].append(bool(trajectory.success))
    rates = {name: SuccessRate(sum(wins), len(wins)) for name, wins in sorted(counts.items())}
    rates["All"] = SuccessRate(sum(r.wins for r in rates.values()), sum(r.rollouts for r in rates.values()))
    return rates


def markdown_table(columns: dict[str, dict[str, SuccessRate]]) -> str:
    """A Markdown table of success rates.

    Args:
        columns: column name -> rates, as from [`success_by_task_type`].

    Returns:
        `str`: one line per task type.
    """
    names = list(dict.fromkeys(name for rates in columns.values() for name in rates if name != "All")) + ["All"]
    lines = ["| task type | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for name in names:
        cells = [str(rates[name]) if name in rates else "-" for rates in columns.values()]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)
