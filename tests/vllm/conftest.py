"""Fixtures: a tiny model, and real vLLM servers of it on the CPU."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
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
    """Skips the tests if vLLM is missing; prepares it for the CPU otherwise."""
    pytest.importorskip("vllm", reason="needs vLLM (docs/vllm.md)")
    from tests.vllm.cpu import ENVIRONMENT

    os.environ |= ENVIRONMENT


@pytest.fixture(scope="session")
def model(cpu: None, tiny_model_dir: Callable[..., Path]) -> Path:
    """Model with heads of 32, the smallest size that vLLM's CPU attention has, and a context of 1,024 tokens."""
    return tiny_model_dir("qwen3", hidden_size=64, max_position_embeddings=1024)


class Servers:
    """Starts servers with `trl-agentic serve`: `serve(model, *flags)` -> URL."""

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

    def restart(self, url: str, wait: bool = True) -> None:
        """Kills a server and starts it again with the weights of its checkpoint.

        Args:
            url: its base URL.
            wait: whether to wait until it answers.
        """
        server, command = self._running[url]
        os.killpg(server.pid, signal.SIGKILL)
        server.wait(timeout=60)
        self._start(url, command, wait)

    def stop(self) -> None:
        for server, _ in self._running.values():
            server.terminate()
        for server, _ in self._running.values():
            server.wait(timeout=60)

    def _start(self, url: str, command: list[str], wait: bool = True) -> None:
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
        if wait:
            _wait(url, server, log)


class InterruptingProxy(ThreadingHTTPServer):
    """HTTP proxy of a server that can interrupt completions. The server itself keeps running.

    Args:
        target: base URL of the server.

    Attributes:
        url: base URL of the proxy.
        interruptions: number of the next completions to interrupt.
        interrupted: number of completions that were interrupted.
    """

    def __init__(self, target: str):
        super().__init__(("127.0.0.1", 0), _Forwarding)
        self.target, self.url = target, f"http://127.0.0.1:{self.server_port}"
        self.interruptions = self.interrupted = 0
        self._lock = threading.Lock()
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def __exit__(self, *args: object) -> None:
        self.shutdown()
        super().__exit__(*args)

    def interrupts(self, path: str) -> bool:
        """Whether to interrupt the next request for this path."""
        with self._lock:
            if path != "/v1/completions" or self.interrupted >= self.interruptions:
                return False
            self.interrupted += 1
            return True


class _Forwarding(BaseHTTPRequestHandler):
    server: InterruptingProxy

    def do_GET(self) -> None:
        self._forward("GET", None)

    def do_POST(self) -> None:
        self._forward("POST", self.rfile.read(int(self.headers.get("Content-Length") or 0)))

    def _forward(self, method: str, body: bytes | None) -> None:
        import requests

        if self.server.interrupts(self.path):
            self.close_connection = True
            self.connection.close()
            return
        headers = {"Content-Type": self.headers.get("Content-Type", "application/json")}
        answer = requests.request(method, f"{self.server.target}{self.path}", data=body, headers=headers, timeout=300)
        self.send_response(answer.status_code)
        self.send_header("Content-Type", answer.headers.get("Content-Type", "application/json"))
        self.send_header("Content-Length", str(len(answer.content)))
        self.end_headers()
        self.wfile.write(answer.content)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture(scope="session")
def serve(cpu: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    """Starts servers, which are stopped at the end."""
    servers = Servers(tmp_path_factory)
    yield servers
    servers.stop()


@pytest.fixture(scope="session")
def server(serve: Callable[..., str], model: Path) -> str:
    """URL of a server of the tiny model. Its weights are those that a test sent last."""
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
