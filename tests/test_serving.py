"""Command `trl-agentic serve`: starts the vLLM server that a trainer needs."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path

import pytest

from trl_agentic.serving import main, serve_command, shell_line


def test_the_command_has_the_flags_that_training_needs():
    environment, words = serve_command("org/model", port=8123, max_model_len=4096)
    assert environment == {"VLLM_SERVER_DEV_MODE": "1"}
    assert words[:5] == ["vllm", "serve", "org/model", "--port", "8123"]
    options = dict(zip(words[5::2], words[6::2], strict=False))
    assert options["--max-model-len"] == "4096"
    assert options["--weight-transfer-config"] == '{"backend": "nccl"}'
    assert options["--logprobs-mode"] == "processed_logprobs" and options["--max-logprobs"] == "-1"
    assert words[-3:] == ["--enable-prompt-tokens-details", "--api-server-count", "1"]
    assert "--max-model-len" not in serve_command("org/model")[1]


def test_the_printed_line_is_a_shell_command(capsys: pytest.CaptureFixture[str]):
    main(["a model", "--max_model_len", "512", "--dtype", "float32", "--print"])
    line = capsys.readouterr().out.strip()
    environment, words = serve_command("a model", max_model_len=512, extra=["--dtype", "float32"])
    assert line == shell_line(environment, words)
    assert shlex.split(line) == ["VLLM_SERVER_DEV_MODE=1", *words]


def test_the_command_replaces_the_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    program = tmp_path / "vllm"
    program.write_text(f"#!{sys.executable}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    started: list[object] = []
    monkeypatch.setattr(os, "execve", lambda *arguments: started.append(arguments))
    main(["org/model", "--port", "1"])
    [(path, words, environment)] = started  # type: ignore[misc]
    assert path == str(program) and words == serve_command("org/model", 1)[1]
    assert environment["VLLM_SERVER_DEV_MODE"] == "1" and environment["PATH"] == str(tmp_path)


def test_without_vllm_the_message_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SystemExit) as ended:
        main(["org/model"])
    assert ended.value.code == 1
    assert "pip install 'trl-agentic[vllm]'" in capsys.readouterr().err
