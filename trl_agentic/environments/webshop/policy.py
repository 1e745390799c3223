"""The small policy that ships with the package."""

from __future__ import annotations

from pathlib import Path


def small_policy() -> Path:
    """Folder of a Qwen3 checkpoint of 0.8 million parameters that has imitated [`QuickShopper`] for a while.

    It knows no other text than the generated shop's and answers with the action alone (`action_format="plain"`, no
    list of admissible actions, `instructions=""`). What it imitated last forgets to choose options, which is what
    training can mend quickly. `warm_start.json` beside it says which script made it, with what seed, and how well it
    plays.

    Raises:
        FileNotFoundError: this version of the package ships none.
    """
    path = Path(__file__).parent / "data" / "small_policy"
    if not path.is_dir():
        raise FileNotFoundError(
            "This version of trl-agentic ships no small policy for WebShop. recipes/webshop_warm_start.py makes one, "
            "and so does recipes/webshop_gagpo.py with `--from_scratch true`; or name a model with "
            "`--model_name_or_path`."
        )
    return path
