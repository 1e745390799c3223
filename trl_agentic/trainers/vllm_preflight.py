"""Preflight checks for vLLM, each with the command that fixes it."""

from __future__ import annotations

import time
from importlib import metadata
from typing import Any

from packaging.version import Version
from transformers import AutoConfig, PreTrainedTokenizerBase

from trl_agentic.rollout.engines.vllm_server import is_up
from trl_agentic.serving import serve_command, shell_line
from trl_agentic.trainers.config import AgenticConfig


SUPPORTED = ("0.22.0", "0.31.0")  # by TRL 1.16
_PROBE = "You see a cabinet 1, and a shelf 20. Answer: <tool_call>\n{\"name\": 'open'}\n\u00e9"


def prepare_vllm(args: AgenticConfig, model: Any) -> None:
    """Runs the checks, if the run uses vLLM, and sets the server that TRL connects to.

    Args:
        args: arguments of the trainer.
        model: the policy, or its name.

    Raises:
        ImportError, ConnectionError, ValueError: as in [`check_vllm`].
    """
    if args.use_vllm:
        check_vllm(args, model if isinstance(model, str) else model.config._name_or_path)
        if args.vllm_server_base_urls:
            args.vllm_server_base_url = server_urls(args)[0]


def check_vllm(args: AgenticConfig, model: str) -> None:
    """Checks that vLLM is installed in a supported version, and that the servers of `args` answer and take weights.

    Args:
        args: arguments of the trainer, with `use_vllm`.
        model: name of the policy, for the commands in the messages.

    Raises:
        ImportError: vLLM is missing or its version is not supported.
        ConnectionError: a server does not answer within `vllm_server_timeout` seconds.
        ValueError: a server does not support weight transfer or the importance correction.
    """
    try:
        version = metadata.version("vllm")
    except metadata.PackageNotFoundError as error:
        raise ImportError(
            "`use_vllm` is set, but vLLM is not installed here. Run: pip install 'trl-agentic[vllm]'"
        ) from error
    low, high = map(Version, SUPPORTED)
    if not low <= Version(Version(version).base_version) <= high:
        raise ImportError(
            f"vLLM {version} is installed, but TRL 1.16 supports {low} to {high}. Run: pip install 'vllm=={high}'"
        )
    if args.vllm_mode != "server" or args.process_index != 0:
        return
    for url in server_urls(args):
        _check_server(url, args, model)


def server_urls(args: AgenticConfig) -> list[str]:
    """Base URLs of the servers."""
    if args.vllm_server_base_urls:
        return [url.rstrip("/") for url in args.vllm_server_base_urls]
    own = args.vllm_server_base_url or f"http://{args.vllm_server_host}:{args.vllm_server_port}"
    return [own.rstrip("/")]


def served_models(urls: list[str]) -> list[dict[str, Any]]:
    """Model of each server: `id` (its name in requests) and `max_model_len`."""
    return [_get(f"{url}/v1/models").json()["data"][0] for url in urls]


def server_start(url: str, args: AgenticConfig, model: str) -> float:
    """Start time of a server's process, in seconds since 1970. A different time than before means a restart, after
    which the server has the weights of its checkpoint.

    Args:
        url: its base URL.
        args: arguments of the trainer.
        model: name of the policy, for the command in the message.

    Raises:
        ConnectionError: it does not answer within `vllm_server_timeout` seconds.
        ValueError: it does not report one.
    """
    line = _line(url, args, model)
    _wait_until_up(url, args.vllm_server_timeout, line)
    for metric in _get(f"{url}/metrics").text.splitlines():
        if metric.startswith("process_start_time_seconds"):
            return float(metric.split()[-1])
    raise ValueError(
        f"The vLLM server at {url} does not report when it was started (no process_start_time_seconds in its "
        "/metrics), so that a restart, which loses the weights that it was sent, would go unnoticed. Servers with "
        f"several API servers do not report it. Start it with:\n{line}"
    )


def check_served_model(
    urls: list[str], args: AgenticConfig, config: Any, tokenizer: PreTrainedTokenizerBase, model: str
) -> None:
    """Checks that the servers have the model and the tokenizer of the trainer.

    Args:
        urls: base URLs of the servers.
        args: arguments of the trainer.
        config: the text configuration of the policy.
        tokenizer: tokenizer of the policy.
        model: name of the policy, for the commands in the messages.

    Raises:
        ValueError: the sizes of the models or the ids of a text differ, or `max_context_length` is more than a server
            supports.
    """
    import requests

    for url, served in zip(urls, served_models(urls), strict=True):
        line = _line(url, args, model)
        theirs = _config(_server_info(url, line)["model_config"]["model"])
        for name in ("model_type", "vocab_size", "hidden_size", "num_hidden_layers") if theirs is not None else ():
            there, here = getattr(theirs, name, None), getattr(config, name, None)
            if there != here:
                raise ValueError(
                    f"The vLLM server at {url} serves {served['id']!r} with {name}={there}, but the policy {model!r} "
                    f"has {here}. Start it with the policy's model:\n{line}"
                )
        body = {"model": served["id"], "prompt": _PROBE, "add_special_tokens": False}
        answer = requests.post(f"{url}/tokenize", json=body, timeout=60)
        ours = tokenizer(_PROBE, add_special_tokens=False)["input_ids"]
        if answer.status_code != 200 or answer.json()["tokens"] != ours:
            raise ValueError(
                f"The vLLM server at {url} has another tokenizer than the policy {model!r}: the same text has other "
                f"ids. Start it with the policy's model and tokenizer:\n{line}"
            )
        if args.max_context_length is not None and args.max_context_length > served["max_model_len"]:
            raise ValueError(
                f"`max_context_length` is {args.max_context_length}, but the vLLM server at {url} takes "
                f"{served['max_model_len']} tokens. Lower it, or start the server with:\n{line}"
            )


def _config(name: str) -> Any:
    """Text configuration of a model by the name it has on the server, `None` if this machine does not know it."""
    try:
        return AutoConfig.from_pretrained(name).get_text_config()
    except (OSError, ValueError):
        return None


def _check_server(url: str, args: AgenticConfig, model: str) -> None:
    line = _line(url, args, model)
    _wait_until_up(url, args.vllm_server_timeout, line)
    info = _server_info(url, line)
    if info["weight_transfer_config"] is None:
        raise ValueError(f"The vLLM server at {url} does not accept weights from a trainer. Start it with:\n{line}")
    mode = info["model_config"]["logprobs_mode"]
    if args.vllm_importance_sampling_correction and mode != "processed_logprobs":
        raise ValueError(
            f"The vLLM server at {url} reports log-probabilities as {mode!r}, before temperature and filters, which "
            f"the importance correction cannot use. Start it with:\n{line}"
        )


def _wait_until_up(url: str, timeout: float, line: str) -> None:
    deadline = time.monotonic() + timeout
    while not is_up(url):
        if time.monotonic() >= deadline:
            raise ConnectionError(
                f"There is no vLLM server at {url} (waited {timeout:g} seconds, `vllm_server_timeout`). Start one "
                f"with:\n{line}"
            )
        time.sleep(min(1.0, timeout))


def _server_info(url: str, line: str) -> dict[str, Any]:
    answer = _get(f"{url}/server_info", {"config_format": "json"})
    if answer.status_code == 404:
        raise ValueError(
            f"The vLLM server at {url} hides the endpoints that weights are sent through (no VLLM_SERVER_DEV_MODE=1). "
            f"Start it with:\n{line}"
        )
    answer.raise_for_status()
    return answer.json()["vllm_config"]


def _get(url: str, parameters: dict[str, str] | None = None) -> Any:
    import requests

    return requests.get(url, params=parameters, timeout=60)


def _line(url: str, args: AgenticConfig, model: str) -> str:
    port = url.rpartition(":")[2].partition("/")[0]
    return shell_line(*serve_command(model, int(port) if port.isdigit() else 8000, args.max_context_length))
