"""Rollouts of TRL's environment loop and of ours, with the same policy, tasks and inference engine.

    python benchmarks/rollout.py
    python benchmarks/rollout.py --engine vllm
    python benchmarks/rollout.py --engine vllm --model MODEL    # on a GPU
    python benchmarks/rollout.py --quick

A small policy, or `--model`, is trained for a few minutes to call a tool until it has counted down to zero. The tool's
latency is zero, or exponentially distributed with a mean of 50 or 500 ms. The task determines how many turns a rollout
has (the same number, evenly spread, or long-tailed) and whether the policy thinks before a call, by counting down from
a number that differs from turn to turn. Both loops sample from the same model, with transformers or with vLLM, each in
its own process. They play alternately, so that other load affects both. Tables and a plot go to docs/results/rollout*.

Without latency, the loop is also compared with the engine alone, which gets all prompts of the same turns in advance:
with each rollout's turns one after another, and, with vLLM, in any order, with as many requests at a time as there are
rollouts, or fewer, so that rollouts wait for the engine.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import platform
import random
import socket
import statistics
import sys
import tempfile
import textwrap
import time
from collections.abc import Iterator
from dataclasses import replace
from importlib import metadata
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import torch
from countdown import CONTEXT, MOST, PROMPT, THOUGHTS, Countdown, build_policy
from datasets import Dataset
from matplotlib.figure import Figure
from training_step import turn_counts
from trl import GRPOConfig, GRPOTrainer

from trl_agentic import AgenticGRPOConfig, AgenticGRPOTrainer, Trajectory
from trl_agentic.rollout.engines import Request, Sample


ROOT = Path(__file__).resolve().parent.parent
SLOTS = 16  # sequences at a time of an engine that is too small for all rollouts
REPEATS = 7  # of a load without latency; the median is reported
COMMENT = "## What it says"  # the text below it was written by hand and is kept
TURN = 320  # tokens
# Rates of the engine alone, and the column of the loop's share of each.
SHARES = {"alone": "share of the engine alone", "in order": "turns in order"}


class Load(NamedTuple):
    """Number and length of rollouts to play, and the latency of their tool."""

    lengths: str  # "equal", "uniform" or "long-tailed"
    environments: int
    turns: int  # of the longest
    latency: float  # seconds
    thinks: bool = False  # before each call

    def name(self) -> str:
        turns = str(self.turns) if self.lengths == "equal" else f"{self.lengths}, up to {self.turns}"
        return f"{turns}; thinks" if self.thinks else turns

    def rows(self) -> list[dict[str, Any]]:
        n = self.environments
        counts = [self.turns] * n if self.lengths == "equal" else turn_counts(self.lengths, n, self.turns)
        random.Random(0).shuffle(counts)
        return [
            {"prompt": PROMPT, "turns": turns, "number": number, "thinks": self.thinks}
            for number, turns in enumerate(counts)
        ]


class TRLTrainer(GRPOTrainer):
    """TRL's trainer, which measures the seconds and turns of its loop."""

    def _generate(self, prompts: Any) -> Any:
        started = time.perf_counter()
        output = super()._generate(prompts)
        self.seconds = time.perf_counter() - started
        self.turns = sum(sum(message["role"] == "assistant" for message in completion) for completion in output[3])
        return output


class Loop:
    """Rollout loop of one of the two trainers, with the policy."""

    def __init__(self, name: str, policy: Path, folder: Path, engine: str, environments: int):
        options: dict[str, Any] = {
            "output_dir": str(folder), "use_cpu": not torch.cuda.is_available(), "bf16": False, "report_to": "none",
            "disable_tqdm": True, "save_strategy": "no", "max_steps": 1, "num_generations": 2, "temperature": 0.01,
            "per_device_train_batch_size": environments, "max_completion_length": CONTEXT - 512,
            "gradient_checkpointing": False, "beta": 0.0,
        }  # fmt: skip
        if engine == "vllm":
            options |= {"use_vllm": True, "vllm_mode": "colocate", "vllm_max_model_length": CONTEXT}
            options["vllm_gpu_memory_utilization"] = 0.3  # there are two engines
            options["vllm_importance_sampling_correction"] = False  # nothing is trained
        rows = Dataset.from_list(Load("equal", environments, 2, 0.0).rows())
        self.is_ours = name == "ours"
        self.trainer: Any = (
            AgenticGRPOTrainer(
                str(policy), args=AgenticGRPOConfig(**options, max_turns=MOST, max_turn_tokens=TURN),
                train_dataset=rows, environment_factory=Countdown,
            )
            if self.is_ours
            else TRLTrainer(
                str(policy), lambda completions, **_: [0.0] * len(completions), GRPOConfig(**options), rows,
                environment_factory=Countdown,
            )
        )  # fmt: skip

    def play(self, load: Load) -> dict[str, float]:
        """Turns per second; for ours without latency also those of the engine alone.

        Raises:
            RuntimeError: the policy miscounted, so that the amount of work differs.
        """
        Countdown.latency = load.latency
        rows = load.rows()
        if self.trainer.use_vllm:  # as after an update of the weights
            self.trainer.vllm_generation.llm.reset_prefix_cache()
        if self.is_ours:
            started = time.perf_counter()
            played = self.trainer.rollout(rows, temperature=0.01, batch_size=len(rows))
            seconds, turns = time.perf_counter() - started, sum(len(t.turns) for t in played)
        else:
            self.trainer.model.train()
            with torch.no_grad():
                self.trainer._generate_and_score_completions(rows)
            seconds, turns = self.trainer.seconds, self.trainer.turns
        expected = sum(row["turns"] for row in rows)
        if turns != expected:
            raise RuntimeError(f"The policy played {turns} turns of {expected}: it has not learned to count.")
        rates = {"rate": turns / seconds}
        if self.is_ours and not load.latency:
            turns_of = [list(requests_of(number, trajectory)) for number, trajectory in enumerate(played)]
            rates["in order"] = turns / seconds_alone(self.trainer, [iter(requests) for requests in turns_of])
            if self.trainer.use_vllm:  # the other engine identifies a conversation by its rollout
                every = (request for requests in turns_of for request in requests)
                numbered = (replace(request, rollout=number) for number, request in enumerate(every))
                rates["alone"] = turns / seconds_alone(self.trainer, [numbered] * len(played))
        return rates


def seconds_alone(trainer: Any, lanes: list[Iterator[Request]]) -> float:
    """Seconds that the engine needs for all requests. The next request of a lane follows when the previous is done."""
    if trainer.use_vllm:
        trainer.vllm_generation.llm.reset_prefix_cache()
    done: list[tuple[Iterator[Request], Sample | Exception]] = []
    started = time.perf_counter()
    with trainer._engine(0.01) as engine:

        def submit(lanes: list[Iterator[Request]]) -> int:
            submitted = [(lane, request) for lane in lanes if (request := next(lane, None)) is not None]
            for lane, request in submitted:
                engine.submit(request, lambda sample, lane=lane: done.append((lane, sample)))
            return len(submitted)

        sampling = submit(lanes)
        while sampling:
            engine.step(sampling, 0)
            samples, free = [sample for _, sample in done], [lane for lane, _ in done]
            done.clear()
            for sample in samples:
                if isinstance(sample, Exception):
                    raise sample
            sampling += submit(free) - len(free)
    return time.perf_counter() - started


def requests_of(rollout: int, trajectory: Trajectory) -> Iterator[Request]:
    """The requests to the engine in a rollout."""
    context: list[int] = []
    for number, turn in enumerate(trajectory.turns):
        context = context + turn.prompt_ids
        yield Request(rollout, context, TURN, seed=number)
        context = context + turn.action_ids


def loads(quick: bool) -> dict[str, list[Load]]:
    """Loads to play, by part of the report."""
    if quick:
        return {"lengths and latencies": [Load("long-tailed", 8, 8, *load) for load in ((0.0,), (0.05,), (0.0, True))]}
    return {
        "lengths and latencies": [
            Load(lengths, environments, longest, latency)
            for lengths, environments, longest in (("uniform", 32, 8), ("long-tailed", 64, MOST))
            for latency in (0.0, 0.05, 0.5)
        ],
        "thinking": [
            Load("equal", 64, 8, 0.0, True),
            Load("uniform", 64, 8, 0.0, True),
            Load("long-tailed", 64, MOST, 0.0, True),
            Load("long-tailed", 64, MOST, 0.05, True),
        ],
        "environments": [Load("long-tailed", n, MOST, 0.05) for n in (8, 16, 32, 64, 128, 256)],
        "turns": [Load("equal", 32, n, 0.0) for n in (2, 4, 8, 16, 32)],
    }


def full_loads() -> list[Load]:
    """Loads that ours plays with an engine of few slots."""
    return [Load("uniform", n, 8, 0.0) for n in (SLOTS, 2 * SLOTS, 4 * SLOTS, 8 * SLOTS)]


class Player:
    """Rollout loop in its own process."""

    def __init__(self, name: str, policy: Path, folder: Path, engine: str, environments: int):
        spawn = multiprocessing.get_context("spawn")
        self._connection, theirs = spawn.Pipe()
        self._process = spawn.Process(target=_serve, args=(theirs, name, policy, folder / name, engine, environments))
        self._process.start()
        theirs.close()
        self._connection.recv()  # wait until it is ready: players start and play one at a time

    def play(self, load: Load) -> dict[str, float]:
        """See [`Loop.play`].

        Raises:
            EOFError: the process ended; its traceback was printed.
        """
        self._connection.send(load)
        rates: dict[str, float] = self._connection.recv()
        return rates

    def close(self) -> None:
        self._connection.close()
        self._process.join()


def _serve(connection: Connection, name: str, policy: Path, folder: Path, engine: str, environments: int) -> None:
    """Plays the loads that arrive on the connection, until it is closed."""
    if engine == "vllm" and not torch.cuda.is_available():
        _prepare_vllm_for_cpu()
    with socket.socket() as free:  # each process has its own process group
        free.bind(("127.0.0.1", 0))
        os.environ["MASTER_PORT"] = str(free.getsockname()[1])
    loop = Loop(name, policy, folder, engine, environments)
    loop.play(Load("equal", 2, 2, 0.0))  # warm-up, not timed
    connection.send("ready")
    while True:
        try:
            load = connection.recv()
        except EOFError:
            return
        connection.send(loop.play(load))


Rates = dict[str, list[dict[str, float]]]  # name of a loop -> rates of each load


def measure(
    names: list[str], parts: dict[str, list[Load]], policy: Path, engine: str, environments: int
) -> dict[str, Rates]:
    """Median rates of each loop, played alternately, and its median share of the engine alone."""
    with tempfile.TemporaryDirectory() as folder:
        players = {name: Player(name, policy, Path(folder), engine, environments) for name in names}
        try:
            return {part: _measure(players, listed) for part, listed in parts.items()}
        finally:
            for player in players.values():
                player.close()


def _measure(players: dict[str, Player], loads: list[Load]) -> Rates:
    results: Rates = {name: [] for name in players}
    for load in loads:
        plays: Rates = {name: [] for name in players}
        for _ in range(1 if load.latency else REPEATS):
            for name, player in players.items():
                plays[name].append(player.play(load))
        for name, rates in plays.items():
            results[name].append(medians(rates))
            print(load, name, [round(rate["rate"], 1) for rate in rates], flush=True)
    return results


def medians(plays: list[dict[str, float]]) -> dict[str, float]:
    """The median of each rate, and of the share of the engine alone."""
    shares = [{f"share, {key}": play["rate"] / rate for key, rate in play.items() if key != "rate"} for play in plays]
    plays = [play | share for play, share in zip(plays, shares, strict=True)]
    return {key: statistics.median(play[key] for play in plays) for key in plays[0]}


def _prepare_vllm_for_cpu() -> None:
    sys.path.insert(0, str(ROOT))
    import pytest

    from tests.vllm.cpu import ENVIRONMENT, patch_trl

    os.environ |= ENVIRONMENT
    patch_trl(pytest.MonkeyPatch())


def full_table(results: list[dict[str, float]]) -> str:
    """One line per number of rollouts that share an engine of few slots."""
    lines = ["| turns per rollout | environments | ours, turns/s | " + " | ".join(SHARES.values()) + " |"]
    lines.append("|---" + "|---:" * 4 + "|")
    for load, rates in zip(full_loads(), results, strict=True):
        cells = [load.name(), str(load.environments), f"{rates['rate']:.1f}"]
        lines.append("| " + " | ".join([*cells, *(f"{rates[f'share, {key}']:.0%}" for key in SHARES)]) + " |")
    return "\n".join(lines)


def table(part: list[Load], results: Rates) -> str:
    """One line per load."""
    theirs, ours = results["TRL"], results["ours"]
    shares = [key for key in SHARES if any(key in rates for rates in ours)]
    head = ["turns per rollout", "environments", "latency", "TRL, turns/s", "ours, turns/s", "ours / TRL"]
    head += [SHARES[key] for key in shares]
    lines = ["| " + " | ".join(head) + " |", "|---" + "|---:" * (len(head) - 1) + "|"]
    for load, trl, own in zip(part, theirs, ours, strict=True):
        cells = [load.name(), str(load.environments), f"{1000 * load.latency:.0f} ms", f"{trl['rate']:.1f}"]
        cells += [f"{own['rate']:.1f}", f"{own['rate'] / trl['rate']:.1f}x"]
        cells += [f"{own[f'share, {key}']:.0%}" if key in own else "" for key in shares]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def plot(parts: dict[str, list[Load]], results: dict[str, Rates], path: Path) -> None:
    """Turns per second over the number of environments, and milliseconds per turn over the number of turns."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    for name in ("TRL", "ours"):
        rates = [result["rate"] for result in results["environments"][name]]
        left.plot([load.environments for load in parts["environments"]], rates, "o-", label=name)
        costs = [1000 / result["rate"] for result in results["turns"][name]]
        right.plot([load.turns for load in parts["turns"]], costs, "o-", label=name)
    left.set(xlabel="environments (long-tailed, 50 ms)", ylabel="turns / s", xscale="log", ylim=(0, None))
    right.set(xlabel="turns of every rollout (32 environments, 0 ms)", ylabel="ms / turn", ylim=(0, None))
    left.set_xticks([8, 16, 32, 64, 128, 256], ["8", "16", "32", "64", "128", "256"])
    left.minorticks_off()
    left.legend()
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--engine", choices=["transformers", "vllm"], default="transformers")
    parser.add_argument("--model", help="model to train; default: a small one, built here")
    parser.add_argument("--quick", action="store_true", help="two small loads, printed only")
    parser.add_argument("--updates", type=int, default=1500, help="largest number of updates of a lesson")
    parser.add_argument("--output_dir", type=Path, default=ROOT / "docs" / "results")
    arguments = parser.parse_args()
    engine, parts = arguments.engine, loads(arguments.quick)
    with tempfile.TemporaryDirectory() as folder:
        policy = Path(folder) / "policy"
        build_policy(policy, arguments.updates, arguments.model)
        torch.cuda.empty_cache()  # leave the memory to the players
        most = max(load.environments for part in parts.values() for load in part)
        results = measure(["TRL", "ours"], parts, policy, engine, most)
        tables = [table(listed, results[part]) for part, listed in parts.items()]
        if engine == "vllm" and not arguments.quick:
            full = measure(["ours"], {"full": full_loads()}, policy, engine, SLOTS)
            tables.append(full_table(full["full"]["ours"]))
    text = "\n\n".join(tables)
    print(f"\n{text}")
    if not arguments.quick:
        name = "rollout" if engine == "transformers" else "rollout_vllm"
        if arguments.model:
            name += f"_{Path(arguments.model).name.lower()}"
        plot(parts, results, arguments.output_dir / f"{name}.png")
        page = arguments.output_dir / f"{name}.md"
        before = page.read_text() if page.exists() else ""
        comment = "\n" + before[before.index(COMMENT) :] if COMMENT in before else ""
        page.write_text(report(engine, arguments.model, name, text, limits(parts, results)) + comment)


def limits(parts: dict[str, list[Load]], results: dict[str, Rates]) -> str:
    """The rate that the engine allows any loop on the long-tailed loads without latency."""
    sentences = []
    for part, listed in parts.items():
        for load, trl, own in zip(listed, results[part]["TRL"], results[part]["ours"], strict=True):
            if load.lengths == "long-tailed" and not load.latency:
                sentences.append(
                    f"{load.name().capitalize()}, {load.environments} environments: TRL reaches {trl['rate']:.1f} "
                    f"turns per second, ours {own['rate']:.1f}, and the engine alone, turns in order, "
                    f"{own['in order']:.1f}: {own['in order'] / trl['rate']:.1f}x is about the most that a loop could "
                    "reach there."
                )
    return textwrap.fill(" ".join(sentences), 119)


def report(engine: str, model: str | None, name: str, tables: str, longest: str) -> str:
    version = metadata.version(engine)
    policy = Path(model).name if model else "a small Qwen3"
    command = f"python benchmarks/rollout.py --engine {engine}" + (f" --model {policy}" if model else "")
    sampler = {
        "transformers": f"transformers {version}, TRL by `model.generate` and ours token by token",
        "vllm": f"vLLM {version} in the trainer's process (colocate)",
    }[engine]
    machine = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{os.cpu_count()} cores"
    fewest, most, mean = min(THOUGHTS.values()), max(THOUGHTS.values()), statistics.mean(THOUGHTS.values())
    any_order = (
        ""
        if engine == "transformers"
        else f"""
"Share of the engine alone": the engine gets the prompts of all turns in advance and samples them in any order, as many
at a time as there are rollouts. A rollout's turns follow one another, so lengths bound that share for any loop: with
rollouts of equal length the engine always has all of them; with others it has fewer and fewer, until only the longest
is left. In the last table the engine samples {SLOTS} sequences at a time: the more rollouts, the fewer empty slots.
"""
    )
    return f"""# Rollouts: TRL's loop and ours, {engine}{f", {policy}" if model else ""}

`{command}`: the `environment_factory` loop of TRL
{metadata.version("trl")} and ours play the same tasks with the same policy, {policy}, trained to call a tool until
it has counted down. Both sample with {sampler}, on
{platform.machine()} with {machine}. The latency of a tool call is the mean of an exponential distribution. Where the
policy thinks, it counts down before each call, from a number between {fewest} and {most}, on average {mean:.0f},
exponentially distributed.

{tables}

TRL calls the tools of a turn one after another and waits for all of them; ours continues with those that have
answered. The two play alternately; rates without latency are medians of {REPEATS} runs.

"Turns in order": the share of the engine's rate when it gets all prompts in advance, but each rollout's turns follow
one another. The rest is the time of the loop and of the tools.

{longest}
{any_order}
![Turns per second by the number of environments; milliseconds per turn by the number of turns]({name}.png)
"""


if __name__ == "__main__":
    main()
