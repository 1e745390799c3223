"""Records to show: two groups whose rollouts share states, with all figures that a trainer may save of a turn."""

from __future__ import annotations

from typing import Any

from trl_agentic.records import trajectory_record
from trl_agentic.types import StopReason, Trajectory, Turn


def record(group: int = 0, sample: int = 0, actions: tuple[str, ...] = ("go", "take"), **changes: Any) -> Any:
    """A rollout of turns in the states `start`, `after <first action>`, ...; the last rewards sample 0 with 1."""
    states = ["start", *(f"after {action}" for action in actions)]
    turns = [
        Turn([], [1, 2], None, action, f"You are {state}.", state, info={"is_action_valid": action != "oops"})
        for action, state in zip(actions, states, strict=False)
    ]
    success = sample == 0
    turns[-1].reward = float(success)
    task_type = ("Pick", "Heat")[group]
    trajectory = Trajectory({"game": group, "task_type": task_type}, turns, StopReason.TERMINATED, "the end")
    trajectory.success = success
    trajectory.stop_reason = StopReason.TERMINATED if success else StopReason.MAX_TURNS
    count = len(turns)
    credit = {
        "return": [float(success)] * count,
        "value": [0.5] * count,
        "advantage": [0.5 - sample] * count,
        "ratio": [1.0] * (count - 1) + [1.5],
        "clip_low": [0.8] * count,
        "clip_high": [1.25] * count,
        "clipped": [0.0] * (count - 1) + [1.0],
    }
    return trajectory_record(trajectory, credit, step=1, group=group, sample=sample) | changes


def records() -> list[Any]:
    """Two groups of two rollouts: 0 and 1 share their first state and their second, 2 and 3 the first alone."""
    return [
        record(0, 0, ("go", "take")),
        record(0, 1, ("go", "oops", "look")),
        record(1, 0, ("left", "take")),
        record(1, 1, ("right", "take")),
    ]
