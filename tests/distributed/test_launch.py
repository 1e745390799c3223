"""No process of a launched run outlives the test that started it."""

from __future__ import annotations

import subprocess
from pathlib import Path

import psutil
import pytest

from tests.distributed.launch import torchrun
from tests.waiting import wait_until


pytestmark = pytest.mark.distributed


def running(marker: Path) -> list[int]:
    """Processes with this path among their arguments."""
    found = []
    for process in psutil.process_iter(["pid", "cmdline", "status"]):
        if str(marker) in (process.info["cmdline"] or []) and process.info["status"] != psutil.STATUS_ZOMBIE:
            found.append(process.info["pid"])
    return found


def test_a_run_that_takes_too_long_is_killed_with_its_processes(tmp_path: Path):
    script = tmp_path / "hang.py"
    script.write_text("import time\ntime.sleep(600)\n")
    with pytest.raises(subprocess.TimeoutExpired):
        torchrun(script, timeout=10)
    wait_until(lambda: not running(script))


def test_a_run_of_which_one_process_fails_is_an_error_and_ends(tmp_path: Path):
    script = tmp_path / "fail.py"
    script.write_text("import os, time\nassert os.environ['RANK'] == '0', 'rank 1 fails'\ntime.sleep(600)\n")
    with pytest.raises(AssertionError, match="rank 1 fails"):
        torchrun(script, timeout=60)
    wait_until(lambda: not running(script))
