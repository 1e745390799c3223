"""The small policy that ships with the package, or the word that none does."""

from __future__ import annotations

from pathlib import Path

import pytest

from trl_agentic.environments.webshop import policy, small_policy


def test_where_none_ships_the_error_says_how_to_make_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(policy, "__file__", str(tmp_path / "policy.py"))
    with pytest.raises(FileNotFoundError, match=r"recipes/webshop_warm_start.py makes one.*--from_scratch true"):
        small_policy()
    (tmp_path / "data" / "small_policy").mkdir(parents=True)
    assert small_policy() == tmp_path / "data" / "small_policy"
