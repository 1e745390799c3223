"""Problems of vLLM are reported before training. Servers are in tests/vllm."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from tests.trainers.small import small_config
from trl_agentic import AgenticConfig
from trl_agentic.trainers.vllm_preflight import check_vllm, server_start, server_urls


def config(output_dir: Path, **changes: object) -> AgenticConfig:
    return small_config(AgenticConfig, output_dir, use_vllm=True, **changes)


@pytest.mark.parametrize(
    ("version", "works"), [("0.21.9", False), ("0.22.0", True), ("0.31.0+cpu", True), ("0.32.0", False)]
)
def test_the_version_of_vllm(version: str, works: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(metadata, "version", lambda name: version)
    args = config(tmp_path)
    if works:
        check_vllm(args, "model")
        return
    with pytest.raises(ImportError, match="supports 0.22.0 to 0.31.0. Run: pip install 'vllm==0.31.0'"):
        check_vllm(args, "model")


def test_vllm_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def missing(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", missing)
    with pytest.raises(ImportError, match=r"pip install 'trl-agentic\[vllm\]'"):
        check_vllm(config(tmp_path), "model")


def test_urls_of_servers(tmp_path: Path):
    assert server_urls(config(tmp_path, vllm_server_host="a", vllm_server_port=1)) == ["http://a:1"]
    assert server_urls(config(tmp_path, vllm_server_base_url="http://b:2/")) == ["http://b:2"]
    several = ["http://c:3", "http://d:4"]
    assert server_urls(config(tmp_path, vllm_server_base_urls=several)) == several
    with pytest.raises(ValueError, match="`vllm_server_base_url` or `vllm_server_base_urls`, not both"):
        config(tmp_path, vllm_server_base_url="http://b:2", vllm_server_base_urls=several)


class Answering(ThreadingHTTPServer):
    """Answers as a vLLM server that was started with some flags does; `info` is `None` if it hides them."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.metrics = ""
        self.info: dict[str, Any] | None = {
            "weight_transfer_config": {"backend": "nccl"},
            "model_config": {"logprobs_mode": "processed_logprobs"},
        }


class Handler(BaseHTTPRequestHandler):
    server: Answering

    def do_GET(self) -> None:
        known = self.path == "/health" or self.server.info is not None
        info = json.dumps({"vllm_config": self.server.info})
        body = (self.server.metrics if self.path == "/metrics" else info).encode()
        self.send_response(200 if known else 404)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Answering]:
    server = Answering()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def check(server: Answering, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, **changes: object) -> None:
    monkeypatch.setattr(metadata, "version", lambda name: "0.31.0")
    url = f"http://127.0.0.1:{server.server_port}"
    args = config(tmp_path, vllm_mode="server", vllm_server_base_url=url, max_context_length=512, **changes)
    check_vllm(args, "a/policy")


COMMAND = (
    r"Start it with:\nVLLM_SERVER_DEV_MODE=1 vllm serve a/policy --port \d+ --max-model-len 512 --weight-transfer"
)


def test_a_server_that_can_be_trained(server: Answering, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    check(server, tmp_path, monkeypatch)


def test_a_server_that_hides_its_endpoints(server: Answering, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    server.info = None
    with pytest.raises(ValueError, match=rf"hides the endpoints that weights are sent through[\s\S]*{COMMAND}"):
        check(server, tmp_path, monkeypatch)


def test_a_server_that_accepts_no_weights(server: Answering, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    server.info["weight_transfer_config"] = None
    with pytest.raises(ValueError, match=rf"does not accept weights from a trainer[\s\S]*{COMMAND}"):
        check(server, tmp_path, monkeypatch)


def test_a_server_that_reports_other_log_probabilities(
    server: Answering, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    server.info["model_config"]["logprobs_mode"] = "raw_logprobs"
    with pytest.raises(ValueError, match=rf"log-probabilities as 'raw_logprobs'[\s\S]*{COMMAND}"):
        check(server, tmp_path, monkeypatch)
    check(server, tmp_path, monkeypatch, vllm_importance_sampling_correction=False)


def test_a_server_reports_when_it_was_started(server: Answering, tmp_path: Path):
    url = f"http://127.0.0.1:{server.server_port}"
    args = config(tmp_path, vllm_mode="server", vllm_server_base_url=url, max_context_length=512)
    server.metrics = "# TYPE process_start_time_seconds gauge\nprocess_start_time_seconds 1.5e+09\n"
    assert server_start(url, args, "a/policy") == 1.5e9
    server.metrics = "vllm:num_requests_running 0.0\n"
    with pytest.raises(
        ValueError, match=rf"does not report when it was started[\s\S]*{COMMAND}.*--api-server-count 1"
    ):
        server_start(url, args, "a/policy")
