"""Evaluation of a policy: rollouts over a split, success by task type, and the rollouts on disk."""

from trl_agentic.records import (
    load_records,
    recorded_trajectory,
    save_records,
    save_trajectories,
    trajectory_record,
)

from .rates import SuccessRate, markdown_table, success_by_task_type, wilson_interval
from .report import report_markdown, summarize_records


__all__ = [
    "SuccessRate",
    "load_records",
    "markdown_table",
    "recorded_trajectory",
    "report_markdown",
    "save_records",
    "save_trajectories",
    "success_by_task_type",
    "summarize_records",
    "trajectory_record",
    "wilson_interval",
]
