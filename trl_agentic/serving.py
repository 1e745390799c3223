"""Command `trl-agentic serve`: starts the vLLM server that a trainer with `vllm_mode="server"` needs."""

from __future__ import annotations

import argparse
import os
import shlex
import shutil


def serve_command(
    model: str,
    port: int = 8000,
    max_model_len: int | None = None,
    backend: str = "nccl",
    extra: list[str] | None = None,
) -> tuple[dict[str, str], list[str]]:
    """Command that starts a vLLM server for training.

    Args:
        model: folder or Hub id.
        port: TCP port.
        max_model_len: tokens of context; the model's own limit if `None`.
        backend: how weights reach the server; `"nccl"` if trainer and server have GPUs.
        extra: further arguments of `vllm serve`; of repeated arguments the last one counts.

    Returns:
        Environment variables to add, and the words of the command.
    """
    words = ["vllm", "serve", model, "--port", str(port)]
    if max_model_len is not None:
        words += ["--max-model-len", str(max_model_len)]
    words += ["--weight-transfer-config", f'{{"backend": "{backend}"}}']
    # Log-probabilities of the sampling distribution, temperature and filters included, for every sampled token.
    words += ["--logprobs-mode", "processed_logprobs", "--max-logprobs", "-1"]
    # One API server: with several, vLLM's default for data-parallel engines, the start time cannot be determined.
    words += ["--enable-prompt-tokens-details", "--api-server-count", "1", *(extra or [])]
    return {"VLLM_SERVER_DEV_MODE": "1"}, words


def shell_line(environment: dict[str, str], words: list[str]) -> str:
    """The command as one line for a shell."""
    return " ".join([*(f"{name}={value}" for name, value in environment.items()), shlex.join(words)])


def main(argv: list[str] | None = None) -> None:
    """Runs `trl-agentic serve` with the arguments after its name."""
    command = argparse.ArgumentParser(
        prog="trl-agentic serve",
        description="Starts a vLLM server that receives weights from a trainer. Arguments that are not listed here "
        "are passed on to `vllm serve`.",
        allow_abbrev=False,
    )
    command.add_argument("model", help="folder or Hub id, the same as the trainer's")
    command.add_argument("--port", type=int, default=8000, help="default: 8000")
    command.add_argument("--max_model_len", type=int, help="tokens of context; the model's own limit by default")
    command.add_argument("--backend", default="nccl", help="weight transfer of vLLM (default: nccl)")
    command.add_argument("--print", action="store_true", help="print the command instead of running it")
    arguments, extra = command.parse_known_args(argv)
    environment, words = serve_command(
        arguments.model, arguments.port, arguments.max_model_len, arguments.backend, extra
    )
    print(shell_line(environment, words), flush=True)
    if arguments.print:
        return
    program = shutil.which(words[0])
    if program is None:
        command.exit(1, f"{command.prog}: vLLM is not installed here. Run: pip install 'trl-agentic[vllm]'\n")
    os.execve(program, words, os.environ | environment)
