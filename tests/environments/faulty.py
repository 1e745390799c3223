"""An environment that fails as it is told to, a given number of times however many workers play it."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import time
from pathlib import Path
from typing import Any

from tests.toys import Corridor
from trl_agentic.types import StepResult


class Faulty(Corridor):
    """A corridor whose row may say: `fault` (what happens), `at` (0 in `reset`, k in the k-th step), `times`, `count`
    (a file that counts the faults so far)."""

    def __init__(self, closed: str | None = None):
        self.closed = closed
        self.episodes = 0

    def reset(self, **row: Any) -> str:
        self.row, self.episodes = row, self.episodes + 1
        first = super().reset(**row)
        self._maybe_fail()
        return f"{first} Episode {self.episodes}." if row.get("tells_episode") else first

    def step(self, action: str) -> StepResult:
        result = super().step(action)
        self._maybe_fail()
        return result

    def close(self) -> None:
        super().close()
        if self.closed is not None:
            with Path(self.closed).open("a") as file:
                file.write(f"{os.getpid()}\n")

    def pid(self) -> int:
        return os.getpid()

    def _maybe_fail(self) -> None:
        fault, count = self.row.get("fault"), Path(self.row.get("count") or os.devnull)
        if fault is None or self.steps != self.row.get("at", 0):
            return
        with count.open("a+") as file:
            fcntl.flock(file, fcntl.LOCK_EX)  # workers fail at the same time
            file.seek(0)
            if len(file.read()) >= self.row.get("times", 1):
                return
            file.write("x")
        if fault == "raise":
            raise RuntimeError("the corridor collapsed")
        if fault == "hang":
            time.sleep(60)
        if fault == "exit":
            raise SystemExit(3)
        if fault == "kill":
            os.kill(os.getpid(), signal.SIGKILL)


class Unmakeable(Corridor):
    """Cannot be made."""

    def __init__(self) -> None:
        raise OSError("no catalogue here")


class Grandchild(Corridor):
    """Starts a process of its own."""

    def reset(self, **row: Any) -> str:
        import subprocess

        return str(subprocess.Popen(["sleep", "60"]).pid)

    def step(self, action: str) -> StepResult:
        os.kill(os.getpid(), signal.SIGKILL)
        return super().step(action)


class Echo(Corridor):
    """Says what row it was given."""

    def reset(self, **row: Any) -> str:
        return json.dumps(row)
