"""The soak benchmark in small: nothing is lost and nothing is left behind."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.slow
def test_faults_lose_nothing():
    command = [sys.executable, "benchmarks/soak.py", "--quick"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    lines = [line.split("|") for line in done.stdout.splitlines() if line.startswith("|")]
    rows = {cells[1].strip(): cells[2:4] for cells in lines}
    assert int(rows["faults that struck"][0]) == 0 < int(rows["faults that struck"][1])
    assert [int(cell) for cell in rows["finished + errors - started"]] == [0, 0]
