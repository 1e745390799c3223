"""What is wrong with vLLM is told before training. Servers are in tests/vllm."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path

import pytest

from tests.trainers.small import small_config
from trl_agentic import AgenticConfig
from trl_agentic.trainers.vllm import check_vllm, server_urls


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
