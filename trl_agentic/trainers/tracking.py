"""Metrics of episodes, rollouts and trained tokens."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import torch
from accelerate.utils import gather_object, reduce
from torch import Tensor

from trl_agentic.rollout.loop import RolloutClock
from trl_agentic.types import StopReason, Trajectory


@dataclass(frozen=True, slots=True)
class EpisodeSummary:
    """Numbers of one finished rollout, cheap to send between processes.

    Attributes:
        episode_return: undiscounted sum of rewards, penalties of the trainer not included.
        success: success as the environment reports it, `None` if it does not.
        score: the environment's grade, `None` if there is none.
        turns: number of turns.
        invalid_turns: turns whose action the environment reports as invalid.
        action_tokens: sampled tokens.
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
        and, if the environment of any rollout reports it, `episode/success` and `episode/success_<task type>`, where a
        rollout that was cut before such a report is no success; `episode/score` likewise.
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
    graded = played if any(s.success is not None for s in played) else []
    if graded:
        metrics["episode/success"] = fmean(float(bool(s.success)) for s in graded)
    if any(s.score is not None for s in played):
        metrics["episode/score"] = fmean(s.score or 0.0 for s in played)
    by_type: dict[str, list[float]] = defaultdict(list)
    for s in graded:
        if s.task_type is not None:
            by_type[s.task_type].append(float(bool(s.success)))
    for task_type, successes in sorted(by_type.items()):
        metrics[f"episode/success_{task_type}"] = fmean(successes)
    return metrics


def rollout_metrics(trajectories: list[Trajectory], clock: RolloutClock) -> dict[str, float]:
    """Computes where the time of a generation went, over all processes. Every process calls it together.

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


def advantage_metrics(advantages: Tensor) -> dict[str, float]:
    """Spread and size of the advantages (N,) of turns; empty without turns."""
    if advantages.numel() == 0:
        return {}
    return {
        "turns/advantage_std": advantages.std(correction=0).item(),
        "turns/advantage_abs_mean": advantages.abs().mean().item(),
        "turns/advantage_abs_gt_1": (advantages.abs() > 1).float().mean().item(),
    }


class EpisodeTracker:
    """Owner of the metrics of episodes and tokens since the last log, on top of TRL's own containers.

    Args:
        metrics: TRL's `_metrics`: lists of values by mode and name, of which TRL logs the means.
        logs: TRL's `_logs`: prompts, completions, rewards and advantages of the last batch.
        pending_columns: TRL's `_pending_extra_logs`, which reward functions fill through `log_extra`.
        pending_metrics: TRL's `_pending_metrics`, which they fill through `log_metric`.
    """

    def __init__(
        self,
        metrics: dict[str, dict[str, list[float]]],
        logs: dict[str, Any],
        pending_columns: dict[str, list[Any]],
        pending_metrics: dict[str, list[float]],
    ):
        self.metrics, self._logs = metrics, logs
        self._pending_columns, self._pending_metrics = pending_columns, pending_metrics
        self._episodes: dict[str, list[EpisodeSummary]] = {"train": [], "eval": []}
        self._token_sums: dict[str, dict[str, tuple[float, float]]] = {"train": {}, "eval": {}}

    def record(self, mode: str, metrics: dict[str, float]) -> None:
        """Adds a value to each of these metrics."""
        for name, value in metrics.items():
            self.metrics[mode][name].append(value)

    def record_rewards(self, mode: str, scores: dict[str, Tensor], total: Tensor) -> None:
        """Records the scores of reward functions.

        Args:
            mode: `"train"` or `"eval"`.
            scores: of each function, scores (B,) of all processes, NaN for a failed rollout.
            total (`Tensor` of shape (B',)): weighted sums of the rollouts that did not fail.
        """
        for name, values in scores.items():
            self.metrics[mode][f"rewards/{name}/mean"].append(torch.nanmean(values).item())
            self._logs["rewards"][name].extend(values.tolist())
        self.record(mode, {"reward": total.mean().item(), "reward_std": total.std(correction=0).item()})

    def record_completions(self, mode: str, prompts: list[Any], completions: list[Any]) -> None:
        """Records the messages of this process's rollouts, and what reward functions logged about them."""
        self._logs["prompt"].extend(gather_object(prompts))
        self._logs["completion"].extend(gather_object(completions))
        for column in sorted(set(gather_object(list(self._pending_columns)))):
            values = self._pending_columns.get(column, [None] * len(prompts))
            self._logs["extra"][column].extend(gather_object(values))
        self._pending_columns.clear()
        for name in sorted(set(gather_object(list(self._pending_metrics)))):
            values = gather_object(self._pending_metrics.get(name, []))
            self.metrics[mode][name].append(sum(values) / max(len(values), 1))
        self._pending_metrics.clear()

    def record_episodes(
        self, mode: str, trajectories: list[Trajectory], advantages: Tensor, turn_mask: Tensor
    ) -> None:
        """Records the rollouts of this process, and the advantages (B, K) of all processes."""
        self._episodes[mode] += gather_object([summarize(trajectory) for trajectory in trajectories])
        means = (advantages * turn_mask).sum(1) / turn_mask.sum(1).clamp(min=1)
        self._logs["advantages"].extend(means.tolist())

    def record_tokens(self, mode: str, values: dict[str, Tensor], mask: Tensor) -> None:
        """Adds values (n, c) of the tokens under the mask, summed over all processes in one reduction."""
        sums = [(value.detach() * mask).sum().float() for value in values.values()]
        totals: list[float] = reduce(torch.stack([*sums, mask.sum().float()]), reduction="sum").tolist()
        for name, total in zip(values, totals[:-1], strict=True):
            known, tokens = self._token_sums[mode].get(name, (0.0, 0.0))
            self._token_sums[mode][name] = known + total, tokens + totals[-1]

    def record_engine_mismatch(self, mode: str, mismatch: tuple[float, float, float] | None) -> None:
        """Records the importance correction of a generation, as `add_importance_correction` returns it."""
        if mismatch is None:
            return
        processes = gather_object([mismatch])
        mean = sum(process[1] for process in processes) / max(sum(process[2] for process in processes), 1.0)
        self.record(
            mode,
            {
                "sampling/sampling_logp_difference/max": max(process[0] for process in processes),
                "sampling/importance_sampling_ratio/mean": mean,
            },
        )

    def evaluated_episodes(self, count: int | None) -> list[EpisodeSummary]:
        """Summaries of the evaluation that has just ended, without the rollouts that only filled its last batches.

        Args:
            count: rollouts that the dataset asks for, `None` if it has no length.
        """
        if count is not None:
            del self._episodes["eval"][count:]
        return list(self._episodes["eval"])

    def summarise(self, mode: str) -> dict[str, list[float]]:
        """Turns everything recorded since the last call into metrics that are means over all of it."""
        for name, (total, tokens) in self._token_sums[mode].items():
            self.metrics[mode][name] = [total / max(tokens, 1.0)]
        self._token_sums[mode].clear()
        if self._episodes[mode]:
            for name, value in episode_metrics(self._episodes[mode]).items():
                self.metrics[mode][name] = [value]
            self._episodes[mode].clear()
        return self.metrics[mode]
