"""Viewer page: one HTML file with the records of rollouts, which opens from disk and loads nothing."""

from __future__ import annotations

import html
import json
import re
from base64 import b64encode
from collections.abc import Mapping, Sequence
from hashlib import sha256
from importlib import resources
from typing import Any

from trl_agentic.records import CREDIT_COLUMNS


_TURN_TEXTS = ("observation", "action", "anchor_state")
_TURN_FIELDS = (*_TURN_TEXTS, "reward", "is_action_valid", "action_tokens", "cut", *CREDIT_COLUMNS)
_TEXTS = ("source", "task", "task_type", "stop_reason", "error", "final_observation")
_FIELDS = (*_TEXTS, "step", "group", "success", "return", "turns")


def render_page(sources: Mapping[str, Sequence[dict[str, Any]]], title: str = "Trajectories") -> str:
    """Renders the page that shows rollouts.

    The texts of rollouts are embedded as JSON without any `<`, and the page's script puts them into text nodes. The
    content-security policy allows that script alone and no network address.

    Args:
        sources: name of a file -> its records, as from [`~trl_agentic.records.load_records`]. Records of one file and
            step with the same `group` (or, without a group, the same task) are shown as a group.
        title: title of the page.

    Returns:
        HTML.

    Raises:
        ValueError: there are no records.
    """
    if not any(sources.values()):
        raise ValueError("There are no rollouts to show.")
    folder = resources.files("trl_agentic.viewer") / "data"
    script = (folder / "page.js").read_text(encoding="utf-8")
    parts = {
        "title": html.escape(title),
        "style": (folder / "page.css").read_text(encoding="utf-8"),
        "script": script,
        "script_hash": b64encode(sha256(script.encode()).digest()).decode(),
        "data": json.dumps(_pack(sources), ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c"),
    }
    template = (folder / "page.html").read_text(encoding="utf-8")
    return re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], template)


def _pack(sources: Mapping[str, Sequence[dict[str, Any]]]) -> dict[str, Any]:
    """Rollouts as lists of values. A text is stored once in `strings` and referred to by its number."""
    strings: dict[str, int] = {}
    groups: dict[tuple[str, int | None, Any], int] = {}

    def index(text: str | None) -> int | None:
        return None if text is None else strings.setdefault(text, len(strings))

    rollouts = []
    for source, records in sources.items():
        for record in records:
            turns = [
                [index(turn.get(name)) for name in _TURN_TEXTS]
                + [_short(turn.get(name)) for name in _TURN_FIELDS[len(_TURN_TEXTS) :]]
                for turn in record["turns"]
            ]
            key = (source, record["step"], record["task"] if record["group"] is None else record["group"])
            known = record | {
                "source": source,
                "group": groups.setdefault(key, len(groups)),
                "return": _short(record["return"] or 0.0),
                "turns": turns,
            }
            rollouts.append([index(known[name]) for name in _TEXTS] + [known[name] for name in _FIELDS[len(_TEXTS) :]])
    return {
        "strings": list(strings),
        "groups": [_label(number, *key, several=len(sources) > 1) for key, number in groups.items()],
        "rollout_fields": _FIELDS,
        "turn_fields": _TURN_FIELDS,
        "rollouts": rollouts,
    }


def _label(number: int, source: str, step: int | None, group: Any, several: bool) -> str:
    name = str(group) if isinstance(group, int) else f"task {number}"
    if step is not None:
        return f"{step}.{name}"
    return f"{source} {name}" if several else name


def _short(value: Any) -> Any:
    return float(f"{value:.6g}") if isinstance(value, float) else value
