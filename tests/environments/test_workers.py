"""Workers: what goes wrong in an environment is told, and nothing of it is left behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.environments.faulty import Echo, Faulty, Grandchild, Unmakeable
from tests.waiting import wait_until
from trl_agentic.environments.workers import (
    EnvironmentFailed,
    EnvironmentTimeout,
    ProcessWorker,
    ThreadWorker,
    WorkerDied,
)


ROOT = Path(__file__).resolve().parents[2]
KINDS = pytest.mark.parametrize("kind", [ThreadWorker, ProcessWorker])


def is_alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@KINDS
def test_calls_are_answered_until_it_is_closed(kind: type[Any], tmp_path: Path):
    worker = kind(partial(Faulty, str(tmp_path / "closed")), 30.0)
    assert worker.call("reset", length=1) == "You stand in cell 0. The exit is cell 1."
    assert worker.call("step", "no").terminated
    assert (worker.call("pid") == os.getpid()) == (kind is ThreadWorker)
    worker.close()
    worker.close()
    assert len((tmp_path / "closed").read_text().split()) == 1


@KINDS
@pytest.mark.parametrize("fault", ["raise", "exit"])
def test_an_error_is_raised_here_with_its_traceback(kind: type[Any], fault: str, tmp_path: Path):
    worker = kind(Faulty, 30.0)
    told = {"raise": "the corridor collapsed", "exit": "SystemExit"}[fault]
    with pytest.raises(RuntimeError, match=told):
        worker.call("reset", fault=fault, count=str(tmp_path / "count"))
    if kind is ProcessWorker:
        with pytest.raises(EnvironmentFailed, match=r"faulty\.py.*in _maybe_fail"):
            worker.call("reset", fault=fault, count=str(tmp_path / "other"))
    worker.close()


@KINDS
def test_an_environment_that_cannot_be_made(kind: type[Any]):
    threads = threading.active_count()
    with pytest.raises((OSError, EnvironmentFailed), match="no catalogue here"):
        kind(Unmakeable, 30.0)
    wait_until(lambda: threading.active_count() == threads)


def test_a_process_that_hangs_is_killed(tmp_path: Path):
    worker = ProcessWorker(Faulty, 30.0)
    worker._timeout = 0.3
    with pytest.raises(EnvironmentTimeout, match=r"within 0\.3 s in `reset`. Its process was killed"):
        worker.call("reset", fault="hang", count=str(tmp_path / "count"))
    assert not is_alive(worker.pid)
    worker.close()


def test_a_thread_that_hangs_is_left_behind_and_nobody_waits_for_it(tmp_path: Path):
    worker = ThreadWorker(Faulty, 0.3)
    with pytest.raises(EnvironmentTimeout, match=r"within 0\.3 s in `reset`. Its thread is abandoned"):
        worker.call("reset", fault="hang", count=str(tmp_path / "count"))
    started = time.monotonic()
    worker.close()
    assert time.monotonic() - started < 30  # the thread hangs for 60 s


def test_a_killed_process_is_noticed(tmp_path: Path):
    worker = ProcessWorker(Faulty, 30.0)
    with pytest.raises(WorkerDied, match=r"ended in `reset` \(signal SIGKILL\)"):
        worker.call("reset", fault="kill", count=str(tmp_path / "count"))
    worker.close()

    idle = ProcessWorker(Faulty, 30.0)
    os.kill(idle.pid, signal.SIGKILL)
    wait_until(lambda: not is_alive(idle.pid))
    with pytest.raises(WorkerDied, match="SIGKILL"):
        idle.call("reset")


def test_what_a_process_started_ends_with_it():
    worker = ProcessWorker(Grandchild, 30.0)
    grandchild = int(worker.call("reset"))
    assert is_alive(grandchild)
    worker.close()
    wait_until(lambda: not is_alive(grandchild))


def test_what_a_process_started_ends_with_its_death():
    worker = ProcessWorker(Grandchild, 30.0)
    grandchild = int(worker.call("reset"))
    with pytest.raises(WorkerDied, match="signal SIGKILL"):
        worker.call("step", "go")
    wait_until(lambda: not is_alive(grandchild))


def test_what_a_process_started_ends_with_the_trainer():
    code = "from tests.environments.faulty import Grandchild\n"
    code += "from trl_agentic.environments.workers import ProcessWorker\n"
    code += "if __name__ == '__main__':\n"
    code += "    worker = ProcessWorker(Grandchild, 60.0)\n    print(worker.call('reset'), flush=True)\n    input()\n"
    with subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as trainer:
        try:
            assert trainer.stdout is not None
            grandchild = int(trainer.stdout.readline())
            assert is_alive(grandchild)
        finally:
            trainer.kill()
    wait_until(lambda: not is_alive(grandchild))


@KINDS
def test_columns_may_have_any_name(kind: type[Any]):
    worker = kind(Echo, 30.0)
    row = {"method": "a", "allowance": 2, "args": [1], "rollout": 3}
    assert json.loads(worker.call("reset", **row)) == row
    worker.close()


def test_what_cannot_be_sent_to_a_process():
    with pytest.raises(TypeError, match="cannot be sent to another process.*environment_workers='thread'"):
        ProcessWorker(lambda: Faulty(), 30.0)
    worker = ProcessWorker(Faulty, 30.0)
    with pytest.raises(EnvironmentFailed, match="no_such_method"):
        worker.call("no_such_method")
    assert "cell 0" in worker.call("reset")  # it goes on after an error
    worker.close()


def test_an_environment_keeps_its_thread():
    """Some libraries (SQLite, browsers) must be used in the thread that they were opened in."""

    class Threads(Faulty):
        def __init__(self) -> None:
            super().__init__()
            self.seen = {threading.get_ident()}

        def reset(self, **row: Any) -> str:
            self.seen.add(threading.get_ident())
            return str(len(self.seen))

    worker = ThreadWorker(Threads, 30.0)
    answers: list[str] = []
    callers = [threading.Thread(target=lambda: answers.append(worker.call("reset"))) for _ in range(3)]
    for caller in callers:
        caller.start()
        caller.join()
    assert answers == ["1"] * 3
    worker.close()
