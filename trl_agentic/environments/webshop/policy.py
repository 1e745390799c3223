"""The small policy that ships with the package."""

from __future__ import annotations

from pathlib import Path


def small_policy() -> Path:
    """Folder of a Qwen3 checkpoint of 0.8 million parameters that has imitated [`QuickShopper`].

    It knows no other text than the generated shop's and answers with the action alone (`action_format="plain"`, no
    list of admissible actions, `instructions=""`). It knows which options to choose and leaves choices out: that
    habit is left to training. `warm_start.json` in the same folder records the script that made it, its seed
    and its success rates.
    """
    return Path(__file__).parent / "data" / "small_policy"
