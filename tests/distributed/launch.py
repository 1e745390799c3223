"""Starts a script of this folder, or a module, on two processes that communicate over gloo."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import torch


ROOT = Path(__file__).resolve().parents[2]


def torchrun(*arguments: str | Path, processes: int = 2, timeout: float = 600) -> str:
    """Runs `torchrun ARGUMENTS` on this machine and returns what it prints.

    torchrun chooses a port that is free at the moment it starts to listen. However the run ends, none of its processes
    outlives the call.

    Raises:
        AssertionError: it fails; the message ends with what it has printed.
        subprocess.TimeoutExpired: it takes longer than `timeout` seconds.
    """
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        environment.pop(name, None)
    with subprocess.Popen(
        [*command, *map(str, arguments)], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as run:
        try:
            out, errors = run.communicate(timeout=timeout)
        finally:
            end(run)
    assert run.returncode == 0, f"{out[-2000:]}\n{errors[-6000:]}"
    return out


def end(run: subprocess.Popen[str]) -> None:
    """Kills a process that is still running, and the processes that it has started (each has a session of its own)."""
    if run.poll() is not None:
        return  # torchrun ends its processes before itself
    root = psutil.Process(run.pid)
    for process in [root, *root.children(recursive=True)]:
        with suppress(psutil.NoSuchProcess):
            process.kill()


def launch(script: str, *arguments: str | Path, out: Path, processes: int = 2) -> list[Any]:
    """Runs a script as `script *arguments out` on every process, and returns what each saved to `out/rank<i>.pt`."""
    torchrun(ROOT / "tests" / "distributed" / script, *arguments, out, processes=processes)
    return [torch.load(out / f"rank{rank}.pt", weights_only=False) for rank in range(processes)]
