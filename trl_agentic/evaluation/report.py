"""Report of an evaluation: figures from its records, and a page of Markdown."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from statistics import fmean
from typing import Any

from trl_agentic.evaluation.rates import wilson_interval


def summarize_records(records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Figures of an evaluation.

    Args:
        records: finished rollouts as from [`~trl_agentic.records.trajectory_record`], the same number per `group`.

    Returns:
        `dict`:

        - `success`: for each task type and `"All"`, `tasks`, `rollouts`, `wins`, `mean_at_k` (share of the rollouts
          that succeeded) and `pass_at_k` (share of the tasks that one of their k rollouts solved), each with its 95%
          Wilson interval. Both intervals count tasks: more rollouts of one task do not narrow them. `score` is the
          mean of the environment's own grade, `None` if the environment reports none; a failed rollout counts as 0.
        - `samples`: k; `errors`: rollouts whose environment failed, which count as not solved.
        - `mean_turns`, `mean_return`; `invalid_action_rate` (share of the turns whose action the environment reported
          as invalid, `None` if it never reports validity); `stop_reasons` (count of each).
        - `action_tokens` (sum, `None` if not known) and `seconds` (sum over the rollouts).

    Raises:
        ValueError: there are no records.
    """
    if not records:
        raise ValueError("There are no rollouts to summarise.")
    by_type: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for record in records:
        by_type[record["task_type"] or "unknown"].append(record)
    graded = any(record["score"] is not None for record in records)
    success = {name: _success(own, graded) for name, own in [*sorted(by_type.items()), ("All", records)]}
    turns = [turn for record in records for turn in record["turns"]]
    judged = [turn["is_action_valid"] for turn in turns if turn["is_action_valid"] is not None]
    tokens = [turn["action_tokens"] for turn in turns if turn["action_tokens"] is not None]
    return {
        "success": success,
        "samples": len(records) // success["All"]["tasks"],
        "errors": sum(record["error"] is not None for record in records),
        "mean_turns": fmean(len(record["turns"]) for record in records),
        "mean_return": fmean(record["return"] for record in records),
        "invalid_action_rate": judged.count(False) / len(judged) if judged else None,
        "stop_reasons": dict(Counter(record["stop_reason"] for record in records).most_common()),
        "action_tokens": sum(tokens) if tokens else None,
        "seconds": sum(record["seconds"] or 0.0 for record in records),
    }


def _success(records: Sequence[dict[str, Any]], graded: bool) -> dict[str, Any]:
    outcomes: dict[int, list[bool]] = defaultdict(list)
    for record in records:
        outcomes[record["group"]].append(bool(record["success"]))
    tasks, rollouts = outcomes.values(), len(records)
    wins = sum(sum(wins) for wins in tasks)
    mean, solved = wins / rollouts, sum(any(wins) for wins in tasks) / len(tasks)
    return {
        "tasks": len(tasks),
        "rollouts": rollouts,
        "wins": wins,
        "mean_at_k": mean,
        "mean_at_k_interval": list(wilson_interval(mean, len(tasks))),
        "pass_at_k": solved,
        "pass_at_k_interval": list(wilson_interval(solved, len(tasks))),
        "score": sum(record["score"] or 0.0 for record in records) / rollouts if graded else None,
    }


def report_markdown(summary: dict[str, Any], settings: dict[str, Any]) -> str:
    """The figures of [`summarize_records`] and the settings of the evaluation, as a page of Markdown."""
    k = summary["samples"]
    graded = summary["success"]["All"]["score"] is not None
    lines = [f"# {settings['policy']} on {settings['environment']}", ""]
    header = ["task type", "tasks", "wins / rollouts", f"mean@{k} (95%)", *([f"pass@{k} (95%)"] if k > 1 else [])]
    header += ["score"] if graded else []
    lines += ["| " + " | ".join(header) + " |", "|---" * len(header) + "|"]
    for name, success in summary["success"].items():
        cells = [name, str(success["tasks"]), f"{success['wins']} / {success['rollouts']}"]
        cells += [_percent(success, "mean_at_k")] + ([_percent(success, "pass_at_k")] if k > 1 else [])
        cells += [f"{success['score']:.3f}"] if graded else []
        lines.append("| " + " | ".join(cells) + " |")
    invalid = summary["invalid_action_rate"]
    stops = ", ".join(f"{reason} {count}" for reason, count in summary["stop_reasons"].items())
    ceiling = summary.get("ceiling")
    lines += [
        "",
        *([f"- attainable: success {100 * ceiling['success']:.1f}%, score {ceiling['score']:.3f}"] if ceiling else []),
        f"- turns of a rollout: {summary['mean_turns']:.1f}",
        f"- invalid actions: {'not reported' if invalid is None else f'{100 * invalid:.1f}% of the turns'}",
        f"- stop reasons: {stops}",
        f"- failed environments: {summary['errors']}",
        f"- sampled tokens: {'not known' if summary['action_tokens'] is None else summary['action_tokens']}",
        f"- seconds: {summary['seconds']:.1f}",
        "",
        "| setting | value |",
        "|---|---|",
        *(f"| {name} | {value} |" for name, value in settings.items()),
    ]
    return "\n".join(lines) + "\n"


def _percent(success: dict[str, Any], name: str) -> str:
    low, high = success[f"{name}_interval"]
    return f"{100 * success[name]:.1f}% ({100 * low:.1f} to {100 * high:.1f})"
