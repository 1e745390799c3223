"""The small policy that ships with the package."""

from __future__ import annotations

from pathlib import Path


def small_policy() -> Path:
    """Folder of a Qwen3 checkpoint of 1.9 million parameters that has imitated the scripted expert.

    In the end the expert hesitated: six in ten moves only looked around, a habit for training to remove.

    It knows no other text than ALFWorld's and answers with the command alone (`action_format="plain"`, no list of
    admissible actions). `warm_start.json` beside it says which script made it, with what seed, and how well it plays.
    """
    return Path(__file__).parent / "data" / "small_policy"
