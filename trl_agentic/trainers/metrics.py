"""What a batch of trajectories says about itself, as numbers to log."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from statistics import fmean

from accelerate.utils import gather_object

from trl_agentic.rollout.loop import RolloutClock
from trl_agentic.types import StopReason, Trajectory


@dataclass(frozen=True, slots=True)
class EpisodeSummary:
    """One finished rollout in numbers, cheap to send between processes.

    Attributes:
        episode_return: undiscounted sum of rewards, penalties of the trainer not included.
        success: what the environment said, `None` if it never did.
        score: the environment's grade, `None` if it gives none.
        turns: turns played.
        invalid_turns: turns whose action the environment called invalid.
        action_tokens: tokens sampled.
        stop_reason: why it ended.
        task_type: `task_type` of the row, or else of the last turn's `info` that has one.
    """

    episode_return: float
    success: bool | None
    score: float | None
    turns: int
    invalid_turns: int
    action_tokens: int
    stop_reason: StopReason
    task_type: str | None


def summarize(trajectory: Trajectory) -> EpisodeSummary:
    """Reduces a trajectory to its summary."""
    return EpisodeSummary(
        episode_return=trajectory.episode_return,
        success=trajectory.success,
        score=trajectory.score,
        turns=len(trajectory.turns),
        invalid_turns=sum(turn.info.get("is_action_valid") is False for turn in trajectory.turns),
        action_tokens=sum(len(turn.action_ids) for turn in trajectory.turns),
        stop_reason=trajectory.stop_reason,
        task_type=trajectory.task_type,
    )


def episode_metrics(summaries: list[EpisodeSummary]) -> dict[str, float]:
    """Means over rollouts. Failed rollouts count in `episode/stop_error` and nowhere else.

    Returns:
        `episode/return`, `episode/turns`, `episode/tokens`, `episode/invalid_frac`, `episode/stop_<reason>` (shares),
        and, if any rollout's environment told, `episode/success` and `episode/success_<task type>`, where a rollout
        that was cut before its environment told is no success; `episode/score` likewise.
    """
    metrics: dict[str, float] = {}
    for reason in StopReason:
        metrics[f"episode/stop_{reason}"] = sum(s.stop_reason is reason for s in summaries) / max(len(summaries), 1)
    played = [s for s in summaries if s.stop_reason is not StopReason.ERROR]
    if not played:
        return metrics
    metrics["episode/return"] = fmean(s.episode_return for s in played)
    metrics["episode/turns"] = fmean(s.turns for s in played)
    metrics["episode/tokens"] = fmean(s.action_tokens for s in played)
    metrics["episode/invalid_frac"] = sum(s.invalid_turns for s in played) / max(sum(s.turns for s in played), 1)
    told = played if any(s.success is not None for s in played) else []
    if told:
        metrics["episode/success"] = fmean(float(bool(s.success)) for s in told)
    if any(s.score is not None for s in played):
        metrics["episode/score"] = fmean(s.score or 0.0 for s in played)
    by_type: dict[str, list[float]] = defaultdict(list)
    for s in told:
        if s.task_type is not None:
            by_type[s.task_type].append(float(bool(s.success)))
    for task_type, successes in sorted(by_type.items()):
        metrics[f"episode/success_{task_type}"] = fmean(successes)
    return metrics


def rollout_metrics(trajectories: list[Trajectory], clock: RolloutClock) -> dict[str, float]:
    """Where the time of a generation went, over all processes. To be called by every process.

    Args:
        trajectories: rollouts of this process.
        clock: seconds, waits and tokens of this process.
    """
    times = ("seconds", "engine_seconds", "env_seconds", "ahead_seconds")
    own: dict[str, float] = {name: getattr(clock, name) for name in times} | {
        "turns": sum(len(trajectory.turns) for trajectory in trajectories),
        "retries": sum(trajectory.retries for trajectory in trajectories),
        "engine_wait": clock.engine_waits,
        "env_wait": clock.env_waits,
        "env_wait_saved": clock.env_saved,
        "cached": clock.cached_tokens,
        "prompt": clock.prompt_tokens,
    }
    processes: list[dict[str, float]] = gather_object([own])
    total = {name: sum(process[name] for process in processes) for name in own}
    longest = {name: max(process[name] for process in processes) for name in times}
    waits = {name: total[name] / max(total["turns"], 1) for name in ("engine_wait", "env_wait", "env_wait_saved")}
    rates = {
        "retries": total["retries"],
        "turns_per_second": total["turns"] / max(longest["seconds"], 1e-9),
        "cache_hit_rate": total["cached"] / max(total["prompt"], 1),
    }
    return {f"rollout/{name}": value for name, value in (longest | waits | rates).items()}
