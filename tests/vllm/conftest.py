"""A tiny model, and real vLLM servers of it on the CPU."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest


ROOT = Path(__file__).resolve().parents[2]
CPU_FLAGS = ["--enforce-eager", "--dtype", "float32", "--worker-extension-cls", "tests.vllm.cpu.Worker"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.vllm)
            item.add_marker(pytest.mark.filterwarnings("default"))  # vLLM's own, of which there are many


@pytest.fixture(scope="session", autouse=True)
def cpu() -> None:
    """Skips where vLLM is missing; readies it for the CPU otherwise."""
    pytest.importorskip("vllm", reason="needs vLLM (docs/vllm.md)")
    from tests.vllm.cpu import ENVIRONMENT

    os.environ |= ENVIRONMENT


@pytest.fixture(scope="session")
def model(cpu: None, tiny_model_dir: Callable[..., Path]) -> Path:
    """Heads of 32, the smallest that vLLM's CPU attention has; a window of 1,024."""
    return tiny_model_dir("qwen3", hidden_size=64, max_position_embeddings=1024)


class Servers:
    """Starts servers by `trl-agentic serve`: `serve(model, *flags)` -> URL."""

    def __init__(self, folder: pytest.TempPathFactory):
        self._folder = folder
        self._running: dict[str, tuple[subprocess.Popen[bytes], list[str]]] = {}

    def __call__(self, model: Path, *flags: str, backend: str = "disk") -> str:
        port = _free_port()
        command = [sys.executable, "-m", "trl_agentic", "serve", str(model), "--port", str(port)]
        url = f"http://127.0.0.1:{port}"
        self._start(url, [*command, "--backend", backend, *CPU_FLAGS, *flags])
        return url

    def plain(self, model: Path) -> str:
        """Starts a server with none of the flags that training needs."""
        port = _free_port()
        url = f"http://127.0.0.1:{port}"
        self._start(url, ["vllm", "serve", str(model), "--port", str(port), *CPU_FLAGS])
        return url

    def kill(self, url: str) -> None:
        server, _ = self._running[url]
        os.killpg(server.pid, signal.SIGKILL)
        server.wait(timeout=60)

    def start_again(self, url: str) -> None:
        """Starts a server that was killed, with the weights of its checkpoint."""
        self._start(url, self._running[url][1])

    def stop(self) -> None:
        for server, _ in self._running.values():
            server.terminate()
        for server, _ in self._running.values():
            server.wait(timeout=60)

    def _start(self, url: str, command: list[str]) -> None:
        log = self._folder.mktemp("server") / "log.txt"
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        with log.open("wb") as out:
            server = subprocess.Popen(
                command,
                env=os.environ | {"PYTHONPATH": str(ROOT), "PATH": path},
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._running[url] = server, command
        _wait(url, server, log)


@pytest.fixture(scope="session")
def serve(cpu: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    """Starts servers; they are stopped at the end."""
    servers = Servers(tmp_path_factory)
    yield servers
    servers.stop()


@pytest.fixture(scope="session")
def server(serve: Callable[..., str], model: Path) -> str:
    """URL of a server of the tiny model. Its weights are those that were sent last."""
    return serve(model)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def _wait(url: str, server: subprocess.Popen[bytes], log: Path, seconds: float = 300.0) -> None:
    import requests

    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            if requests.get(f"{url}/health", timeout=5).status_code == 200:
                return
        except requests.RequestException:
            pass
        assert server.poll() is None, log.read_text()[-6000:]
        time.sleep(1)
    raise TimeoutError(f"{url} did not come up in {seconds} s:\n{log.read_text()[-6000:]}")
