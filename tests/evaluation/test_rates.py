"""Figures of an evaluation, computed by hand."""

from __future__ import annotations

from typing import Any

import pytest

from trl_agentic.evaluation import report_markdown, summarize_records, wilson_interval


@pytest.mark.parametrize(
    ("rate", "count", "low", "high"),
    [
        # Newcombe, Statistics in Medicine 17 (1998), table I: Wilson without continuity correction.
        (81 / 263, 263, 0.2553, 0.3662),
        (15 / 148, 148, 0.0624, 0.1605),
        (0 / 20, 20, 0.0, 0.1611),
        (1 / 29, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_intervals_are_those_of_the_literature(rate: float, count: int, low: float, high: float):
    assert wilson_interval(rate, count) == pytest.approx((low, high), abs=5e-5)
    assert wilson_interval(1 - rate, count) == pytest.approx((1 - high, 1 - low), abs=5e-5)


def test_an_interval_needs_a_trial():
    with pytest.raises(ValueError, match="at least 1"):
        wilson_interval(0.0, 0)


def record(group: int, task_type: str | None, success: bool | None, **changes: Any) -> dict[str, Any]:
    turn = {"is_action_valid": True, "action_tokens": 3}
    return {
        "group": group,
        "task_type": task_type,
        "success": success,
        "score": None,
        "return": 1.0 if success else 0.0,
        "stop_reason": "terminated",
        "error": None,
        "seconds": 0.5,
        "turns": [turn, {**turn, "is_action_valid": False}],
    } | changes


def test_mean_counts_rollouts_and_pass_counts_tasks():
    records = [record(0, "Pick", True), record(0, "Pick", False), record(1, "Heat", False), record(1, "Heat", None),
               record(2, "Heat", True), record(2, "Heat", True)]  # fmt: skip
    summary = summarize_records(records)
    assert list(summary["success"]) == ["Heat", "Pick", "All"]
    everything = summary["success"]["All"]
    assert (everything["tasks"], everything["rollouts"], everything["wins"]) == (3, 6, 3)
    assert everything["mean_at_k"] == 3 / 6
    assert everything["pass_at_k"] == 2 / 3
    assert everything["mean_at_k_interval"] == list(wilson_interval(0.5, 3))  # 3 tasks, not 6 rollouts
    assert summary["success"]["Heat"]["pass_at_k"] == 1 / 2
    assert summary["samples"] == 2


def test_the_other_figures():
    crashed = record(1, None, None, turns=[], error="Traceback", stop_reason="error")
    summary = summarize_records([record(0, "Pick", True), crashed])
    assert summary["errors"] == 1
    assert summary["success"]["unknown"]["mean_at_k"] == 0.0  # a crash is no success
    assert summary["mean_turns"] == 1.0
    assert summary["invalid_action_rate"] == 1 / 2
    assert summary["stop_reasons"] == {"terminated": 1, "error": 1}
    assert (summary["action_tokens"], summary["seconds"]) == (6, 1.0)


def test_a_score_is_a_mean_over_rollouts():
    crashed = record(2, None, None, turns=[], error="Traceback", stop_reason="error")
    graded = [record(0, "Pick", True, score=1.0), record(1, "Pick", False, score=0.25), crashed]
    summary = summarize_records(graded)
    assert summary["success"]["Pick"]["score"] == (1 + 0.25) / 2
    assert summary["success"]["All"]["score"] == (1 + 0.25 + 0) / 3
    page = report_markdown(summary, {"policy": "expert", "environment": "here"})
    assert "| Pick | 2 | 1 / 2 | 50.0% (9.5 to 90.5) | 0.625 |" in page
    assert "score" not in report_markdown(
        summarize_records([record(0, "Pick", True)]), {"policy": "", "environment": ""}
    )


def test_figures_that_are_not_reported_are_none():
    silent = [{"is_action_valid": None, "action_tokens": None}]
    summary = summarize_records([record(0, "Pick", True, turns=silent)])
    assert summary["invalid_action_rate"] is None
    assert summary["action_tokens"] is None
    assert "- invalid actions: not reported" in report_markdown(summary, {"policy": "", "environment": ""})
    with pytest.raises(ValueError, match="no rollouts"):
        summarize_records([])


def test_the_page_names_policy_environment_and_settings():
    page = report_markdown(summarize_records([record(0, "Pick", True)]), {"policy": "expert", "environment": "here"})
    assert page.startswith("# expert on here\n")
    assert "| Pick | 1 | 1 / 1 | 100.0% (20.7 to 100.0) |" in page
    assert "pass@1" not in page  # it is mean@1
    assert "| environment | here |" in page
