"""DeepSpeed, where it is installed, does what one process does."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.distributed.corridor import RUNS, run
from tests.distributed.launch import launch
from tests.distributed.test_two_processes import assert_equal_logs, assert_equal_runs, assert_resumed


pytestmark = [pytest.mark.distributed, pytest.mark.filterwarnings("default")]  # DeepSpeed has warnings of its own


@pytest.mark.parametrize("stage", ["2", "3"])
def test_zero_trains_as_one_process_does(
    stage: str, tiny_model_dir: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    pytest.importorskip("deepspeed")
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    ranks = launch("zero.py", tiny_model_dir(), stage, out=tmp_path)
    for name in ("turn", "window", "idle_gain"):
        expected = run(str(tiny_model_dir()), tmp_path / name, 1, **RUNS[name])
        for rank in ranks:
            assert_equal_runs(rank[name], expected, name)
        assert_equal_logs(ranks[0][name], expected, name)
    assert_resumed(ranks[0]["resumed"], ranks[0]["whole"])
    for rank in ranks:
        assert "`nonfinite_update='skip'` cannot reset DeepSpeed's gradients" in rank["skip"]
