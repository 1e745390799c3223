"""The small policy that ships with the package."""

from __future__ import annotations

from pathlib import Path


def small_policy() -> Path:
    """Folder of a Qwen3 checkpoint of a million parameters that has imitated a hasty player of the generated world.

    It answers in the plain format (`action_format="plain"`, no system prompt, `top_k=1`, `max_searches=4`), and knows
    questions of one and two hops. `warm_start.json` beside it says which script made it, with what seed, and how well
    it plays.
    """
    return Path(__file__).parent / "data" / "small_policy"
