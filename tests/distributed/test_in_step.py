"""Where every forward pass is a collective operation, processes with unequal work stay in step."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.distributed.launch import launch


pytestmark = pytest.mark.distributed


@pytest.mark.parametrize("kind", ["tokens", "generate"])
def test_an_engine_waits_for_the_other(kind: str, tiny_model_dir: Callable[..., Path], tmp_path: Path):
    ranks = launch("engine_in_step.py", kind, tiny_model_dir(), out=tmp_path)
    assert ranks[0]["forwards"] == ranks[1]["forwards"] > 4
    for rank in ranks:
        assert rank["together"] == rank["alone"]  # forward passes for the other process do not change the cache
