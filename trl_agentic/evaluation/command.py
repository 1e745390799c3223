"""Command `trl-agentic evaluate`."""

from __future__ import annotations

import argparse
import inspect
import json
import os
import sys
from collections.abc import Callable
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

from trl_agentic.evaluation.players import ModelPlayer, Player, TextPlayer, expert_policy, random_policy
from trl_agentic.rollout.prompts import FULL, PromptPolicy


ENVIRONMENTS = {
    "alfworld": "trl_agentic.environments:ALFWorldEnv",
    "search": "trl_agentic.environments:SearchEnv",
    "webshop": "trl_agentic.environments:WebShopEnv",
}
"""Short names of environments, which `--environment` accepts in addition to `MODULE:CALLABLE`."""
WINDOW_PROMPTS = {"alfworld": "ALFWorldPrompt", "webshop": "WebShopPrompt"}
"""The prompt renderers that the recipes use for a window of an environment's history."""


def parser() -> argparse.ArgumentParser:
    """Arguments of `trl-agentic evaluate`."""
    result = argparse.ArgumentParser(
        prog="trl-agentic evaluate",
        description="Plays every task of an environment and reports success by task type. Run it again with the same "
        "arguments to resume after a stop.",
    )
    add = result.add_argument
    add(
        "policy",
        help="folder of a checkpoint or of a PEFT adapter, Hub id, http(s) address of a chat-completions endpoint, "
        "`expert` or `random` (the environment's scripted player, or random actions), or `small` (the policy for the "
        "environment that ships with the package)",
    )
    add(
        "--environment",
        nargs="+",
        default=["alfworld"],
        metavar=("NAME", "KEY=VALUE"),
        help=f"{', '.join(ENVIRONMENTS)} or MODULE:CALLABLE, and arguments of the callable: "
        "alfworld split=valid_unseen num_games=20 action_format=plain",
    )
    add("--tasks", type=Path, help="JSON lines, one dataset row per task; the environment's own tasks() if not given")
    add("--output_dir", type=Path, required=True, help="folder for results and trajectories")
    add("--samples", type=int, default=1, help="rollouts of each task: mean@k and pass@k (default: 1)")
    add("--seed", type=int, default=0, help="seed of the policy's sampling (default: 0)")
    add("--batch_size", type=int, default=32, help="rollouts that a process plays at a time (default: 32)")
    add("--max_turns", type=int, default=50, help="turns of a rollout (default: 50)")
    add("--max_turn_tokens", type=int, default=512, help="tokens of a turn (default: 512)")
    add("--temperature", type=float, default=0.0, help="0 is greedy (default: 0)")
    add("--top_p", type=float, default=1.0, help="nucleus sampling (default: 1)")
    local = result.add_argument_group("checkpoints")
    local.add_argument(
        "--max_context", type=int, help="tokens of context; the value of the model's config if not given"
    )
    local.add_argument(
        "--history_length",
        type=int,
        help="steps before the current one in a prompt, as in training with `context: window`; all if not given",
    )
    local.add_argument(
        "--dtype", help="float32, bfloat16, ...; if not given, that of the files on a GPU and float32 on a CPU"
    )
    local.add_argument("--chat_template_kwargs", type=json.loads, help='JSON, such as {"enable_thinking": false}')
    remote = result.add_argument_group(
        "endpoints (extra `endpoint`; the key is read from $OPENAI_API_KEY if it is set)"
    )
    remote.add_argument("--model", help="name of the model at the endpoint")
    remote.add_argument(
        "--extra_body", type=json.loads, help="JSON: further fields of a request; null leaves a field out"
    )
    return result


def main(argv: list[str] | None = None) -> None:
    """Runs the command with the arguments after its name."""
    command = parser()
    arguments = command.parse_args(argv)
    try:
        _run(arguments)
    except (ValueError, TypeError, FileNotFoundError, ConnectionError, ImportError) as error:
        command.exit(1, f"{command.prog}: {error}\n")


def _run(arguments: argparse.Namespace) -> None:
    from trl_agentic.evaluation.run import evaluate, process_state

    if arguments.history_length is not None and arguments.history_length < 0:
        raise ValueError(f"--history_length must not be negative, got {arguments.history_length}.")
    for name in ("samples", "batch_size", "max_turns", "max_turn_tokens"):
        if getattr(arguments, name) < 1:
            raise ValueError(f"--{name} must be at least 1, got {getattr(arguments, name)}.")
    factory = environment_factory(*arguments.environment)
    tasks, ceiling = _tasks(arguments.tasks, factory)
    player, used = _player(arguments, factory)
    settings = {"policy": arguments.policy, "environment": " ".join(arguments.environment), **used}
    out, plan = arguments.output_dir, (arguments.samples, arguments.seed, arguments.batch_size)
    evaluate(player, factory, tasks, out, settings, *plan, ceiling)
    if process_state().is_main_process:
        print((arguments.output_dir / "results.md").read_text())


def environment_factory(name: str, *options: str) -> Callable[[], Any]:
    """The environment factory that `--environment` names.

    Args:
        name: one of `ENVIRONMENTS`, or `MODULE:CALLABLE`; the module may be a file in the current folder.
        *options: `KEY=VALUE`, keyword arguments of the callable. A value that is valid JSON is parsed.

    Raises:
        ValueError: there is no such callable, it does not accept an argument, or an option is not `KEY=VALUE`.
    """
    module, colon, attribute = ENVIRONMENTS.get(name, name).partition(":")
    if not colon:
        raise ValueError(f"--environment must be {', '.join(ENVIRONMENTS)} or MODULE:CALLABLE, got {name!r}.")
    if os.getcwd() not in sys.path:  # Python adds it for `python -m` and not for a console script
        sys.path.insert(0, os.getcwd())
    try:
        make = getattr(import_module(module), attribute)
    except (ModuleNotFoundError, AttributeError) as error:
        raise ValueError(f"--environment {name}: {error}.") from error
    keywords: dict[str, Any] = {}
    for option in options:
        key, equals, value = option.partition("=")
        if not equals:
            raise ValueError(f"--environment {name}: {option!r} is not KEY=VALUE.")
        try:
            keywords[key] = json.loads(value)
        except json.JSONDecodeError:
            keywords[key] = value
    try:
        inspect.signature(make).bind(**keywords)
    except TypeError as error:
        raise ValueError(f"--environment {name}: {error}. It takes {inspect.signature(make)}.") from error
    return partial(make, **keywords)


def _tasks(file: Path | None, factory: Callable[[], Any]) -> tuple[list[dict[str, Any]], dict[str, float] | None]:
    """The tasks, and the highest success and score on them if the environment knows these."""
    if file is not None:
        return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines() if line.strip()], None
    environment = factory()
    if not callable(getattr(environment, "tasks", None)):
        raise ValueError(f"{type(environment).__name__} has no method `tasks`: name a file with --tasks.")
    tasks = list(environment.tasks())
    ceiling = environment.ceiling() if callable(getattr(environment, "ceiling", None)) else None
    environment.close()
    return tasks, None if ceiling is None else ceiling._asdict()


def window_of(arguments: argparse.Namespace, factory: Callable[[], Any]) -> PromptPolicy:
    """The prompt policy that `--history_length` selects, with the prompts that recipes use for the environment."""
    if arguments.history_length is None:
        return FULL
    name, action_format = arguments.environment[0], getattr(factory, "keywords", {}).get("action_format", "tags")
    prompt = WINDOW_PROMPTS.get(name)
    if prompt is None:
        return PromptPolicy(arguments.history_length)
    renderer = getattr(import_module(f"trl_agentic.environments.{name}"), prompt)
    return PromptPolicy(arguments.history_length, renderer(action_format))


def _player(arguments: argparse.Namespace, factory: Callable[[], Any]) -> tuple[Player, dict[str, Any]]:
    """The player, and the settings that its results depend on."""
    if arguments.policy in ("random", "expert"):
        policy = random_policy if arguments.policy == "random" else expert_policy
        return TextPlayer(policy, arguments.max_turns), {"max_turns": arguments.max_turns}

    from trl_agentic.rollout.engines import Sampling

    if arguments.samples > 1 and arguments.temperature == 0:
        raise ValueError("--samples above 1 needs a --temperature above 0: greedy rollouts are all the same.")
    sampling = Sampling(arguments.temperature, arguments.top_p)
    shared = {name: getattr(arguments, name) for name in ("max_turns", "max_turn_tokens", "temperature", "top_p")}
    if arguments.policy.startswith(("http://", "https://")):
        return _endpoint_player(arguments, sampling), shared | {
            "model": arguments.model,
            "extra_body": arguments.extra_body,
        }
    from trl_agentic.evaluation.run import process_state

    device = process_state().device
    dtype = arguments.dtype or ("float32" if device.type == "cpu" else "auto")
    player = ModelPlayer.from_pretrained(
        _small_policy(arguments.environment[0]) if arguments.policy == "small" else arguments.policy,
        sampling,
        dtype,
        device,
        max_turns=arguments.max_turns,
        max_turn_tokens=arguments.max_turn_tokens,
        max_context=arguments.max_context,
        chat_template_kwargs=arguments.chat_template_kwargs,
        context=window_of(arguments, factory),
    )
    used = {name: getattr(arguments, name) for name in ("max_context", "history_length", "chat_template_kwargs")}
    return player, shared | used | {"dtype": dtype}


def _small_policy(environment: str) -> str:
    module = f"trl_agentic.environments.{environment}" if environment in ENVIRONMENTS else "trl_agentic"
    ships = getattr(import_module(module), "small_policy", None)
    if ships is None:
        raise ValueError(f"The package ships no small policy for {environment}: name the folder of a checkpoint.")
    return str(ships())


def _endpoint_player(arguments: argparse.Namespace, sampling: Any) -> Player:
    from trl_agentic.evaluation.endpoint import Endpoint

    if not arguments.model:
        raise ValueError("An endpoint needs the name of its model: --model NAME.")
    endpoint = Endpoint(
        arguments.policy,
        arguments.model,
        sampling,
        arguments.max_turn_tokens,
        api_key=os.environ.get("OPENAI_API_KEY"),
        extra_body=arguments.extra_body,
    )
    return TextPlayer(endpoint.policy, arguments.max_turns, workers=arguments.batch_size)
