"""The small policy that ships with the package."""

from __future__ import annotations

from pathlib import Path


def small_policy() -> Path:
    """Folder of a Qwen3 checkpoint of 0.9 million parameters that has imitated the scripted [`Oracle`].

    In the end the oracle was in haste: it answered with what it found first, a habit for training to remove.

    It knows no other text than that of generated worlds, one passage a search, and answers with the search or the
    answer alone (`action_format="plain"`, `top_k=1`, `instructions=""`). `warm_start.json` in the same folder records
    the script that made it, its seed and how well it answers.
    """
    return Path(__file__).parent / "data" / "small_policy"
