"""Soak test: thousands of episodes over many concurrent environments with faults. Measures leaks, losses and cost.

    python benchmarks/soak.py --output docs/results/soak.md
    python benchmarks/soak.py --quick

The rollout loop plays embedded ALFWorld in worker processes, without faults and then with them: some of the episodes
have an exception, a hang or a kill -9 of their worker at a random turn. A scripted policy answers immediately in place
of a model, so that only the environments' side is measured. The exit code is 1 if an episode is lost, or if a process,
a file or a file descriptor is leaked.

Worker processes import this script; therefore the heavy libraries are imported where they are used.
"""

from __future__ import annotations

import argparse
import math
import os
import random
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from multiprocessing import util
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trl_agentic.environments import ALFWorldEnv
from trl_agentic.environments.alfworld import small_policy
from trl_agentic.environments.handle import EnvironmentHandle, WorkerOptions
from trl_agentic.types import StepResult, StopReason


if TYPE_CHECKING:
    from trl_agentic.rollout.engines import Request, Sample


HEAD = """# Soak: thousands of episodes with faults

`python benchmarks/soak.py`: the rollout loop plays embedded ALFWorld in worker processes, without faults and then with
them. Of the episodes of the second pass 1% have an exception, 1% a hang and 0.5% a `kill -9` of their worker, at a
random turn. A scripted policy answers immediately. A fault strikes one worker; the episode resumes on a new one.

"""
SHARES = {"exception": 0.01, "hang": 0.01, "kill": 0.005}
COMMANDS = ("look", "inventory", "go to desk 1", "open drawer 1", "go to shelf 1", "take book 1 from desk 1")


class FaultyALFWorld(ALFWorldEnv):
    """ALFWorld with faults that a row asks for. A fault strikes one worker; the next worker is healthy.

    Args:
        struck: folder with an empty file for every episode whose fault has struck.
        **options: of ALFWorldEnv.
    """

    def __init__(self, struck: str, **options: Any):
        super().__init__(**options)
        self._struck = Path(struck)

    def reset(self, episode: int, fault: str | None = None, at: int = 0, **row: Any) -> str:
        """See [`ALFWorldEnv`]."""
        self._turn, self._fault, self._at, self._mark = 0, fault, at, self._struck / str(episode)
        self._strike()
        return super().reset(**row)

    def step(self, action: str) -> StepResult:
        """See [`ALFWorldEnv`]."""
        self._turn += 1
        self._strike()
        return super().step(action)

    def _strike(self) -> None:
        if self._fault is None or self._turn != self._at or self._mark.exists():
            return
        self._mark.touch()
        if self._fault == "exception":
            raise RuntimeError("injected")
        if self._fault == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(3600)


class ScriptedEngine:
    """Inference engine that answers immediately, with a command that depends on the request's seed."""

    def __init__(self, tokenizer: Any):
        self._answers = [[*tokenizer(c)["input_ids"], tokenizer.eos_token_id] for c in COMMANDS]

    def submit(self, request: Request, on_sample: Callable[[Sample | Exception], object]) -> None:
        """See [`~trl_agentic.rollout.engines.Engine`]."""
        from trl_agentic.rollout.engines import Sample

        ids = self._answers[request.seed % len(self._answers)]
        on_sample(Sample(ids, [0.0] * len(ids), ended=True))

    def step(self, active: int, busy: int) -> float | None:
        """See [`~trl_agentic.rollout.engines.Engine`]."""
        return math.inf if active else None


@dataclass
class Run:
    """Measurements of one pass."""

    seconds: float
    turns: int
    stops: Counter[StopReason]
    retries: int
    struck: int
    memory: list[float]  # MB of this process after each batch
    files: list[int]  # open file descriptors after each batch
    temporary: int  # entries left in the temporary folder
    processes: int  # children left


def soak(episodes: int, environments: int, shares: dict[str, float], timeout: float, max_turns: int) -> Run:
    """Plays `episodes` episodes, `environments` at a time, each of which has a fault with the given shares."""
    from transformers import AutoTokenizer

    from trl_agentic.rollout.chat import ChatRenderer
    from trl_agentic.rollout.loop import Budgets, Episode, derived_seed, play

    tokenizer = AutoTokenizer.from_pretrained(small_policy())
    chat = ChatRenderer(tokenizer, [tokenizer.eos_token_id])
    budgets = Budgets(max_turns, max_turn_tokens=16, max_rollout_tokens=100_000, max_context=100_000)
    engine = ScriptedEngine(tokenizer)
    draw = random.Random(0)
    run = Run(0.0, 0, Counter(), 0, 0, [], [], 0, 0)
    with tempfile.TemporaryDirectory() as struck:
        temporary: set[str] = set()
        make = partial(FaultyALFWorld, struck, action_format="plain", num_games=environments, max_steps=50)
        options = WorkerOptions("process", timeout=timeout, retries=2, max_episodes=50)
        handles = [EnvironmentHandle(make, options) for _ in range(environments)]
        started = time.perf_counter()
        for first in range(0, episodes, environments):
            batch = []
            for i, handle in enumerate(handles[: episodes - first]):
                fault = draw.choices([*shares, None], [*shares.values(), 1 - sum(shares.values())])[0]
                row = {"game": i, "episode": first + i, "fault": fault, "at": draw.randrange(max_turns)}
                batch.append(Episode(handle, row, seed=derived_seed(first + i)))
            for trajectory, episode in zip(play(batch, engine, chat, budgets), batch, strict=True):
                run.stops[trajectory.stop_reason] += 1
                run.turns += len(trajectory.turns)
                run.retries += episode.environment.retries
            if first == 0:
                temporary = set(os.listdir(tempfile.gettempdir()))
            run.memory.append(resident_megabytes())
            run.files.append(len(os.listdir("/proc/self/fd")))
        run.seconds = time.perf_counter() - started
        run.struck = len(os.listdir(struck))
        for handle in handles:
            handle.close()
        run.temporary = len(set(os.listdir(tempfile.gettempdir())) - temporary)
    run.processes = sum(alive_workers())
    return run


def resident_megabytes() -> float:
    """Memory of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def alive_workers() -> list[bool]:
    """Whether each remaining environment process is alive."""
    import multiprocessing

    return [child.is_alive() for child in multiprocessing.active_children() if child.name == "environment"]


def slope(values: list[float]) -> float:
    """Least-squares slope over the second half of the values, which excludes the warm-up."""
    tail = values[len(values) // 2 :]
    middle, mean = (len(tail) - 1) / 2, sum(tail) / len(tail)
    spread = sum((i - middle) ** 2 for i in range(len(tail)))
    return sum((i - middle) * (value - mean) for i, value in enumerate(tail)) / max(spread, 1)


def table(episodes: int, environments: int, healthy: Run, faulty: Run) -> str:
    """Table of both runs in Markdown."""

    def row(name: str, of: Callable[[Run], Any]) -> str:
        return f"| {name} | {of(healthy)} | {of(faulty)} |"

    per_thousand = 1000 / environments
    return "\n".join(
        [
            f"| {episodes:,} episodes, {environments} environments in processes | without faults | with faults |",
            "| --- | ---: | ---: |",
            row("faults that struck", lambda r: r.struck),
            row("retries on a new environment", lambda r: r.retries),
            row("episodes that ended with an error", lambda r: r.stops[StopReason.ERROR]),
            row("episodes finished", lambda r: r.stops.total() - r.stops[StopReason.ERROR]),
            row("finished + errors - started", lambda r: r.stops.total() - episodes),
            row("turns", lambda r: f"{r.turns:,}"),
            row("seconds", lambda r: f"{r.seconds:.0f}"),
            row("episodes per second", lambda r: f"{episodes / r.seconds:.1f}"),
            row("memory after the first and the last batch, MB", lambda r: f"{r.memory[0]:.0f}, {r.memory[-1]:.0f}"),
            row(
                "memory slope in the second half, MB per 1,000 episodes",
                lambda r: f"{slope(r.memory) * per_thousand:+.2f}",
            ),
            row("file descriptors after the first and the last batch", lambda r: f"{r.files[0]}, {r.files[-1]}"),
            row("temporary files left", lambda r: r.temporary),
            row("worker processes left", lambda r: r.processes),
        ]
    )


def main() -> int:
    """Runs both passes, prints the table, and returns 0 if nothing was lost or leaked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--episodes", type=int, default=10_000)
    parser.add_argument("--environments", type=int, default=64)
    parser.add_argument("--max_turns", type=int, default=10)
    parser.add_argument("--timeout", type=float, default=5.0, help="seconds, for `environment_timeout`")
    parser.add_argument("--quick", action="store_true", help="120 episodes over 8 environments, and more faults")
    parser.add_argument("--output", type=Path, help="Markdown file to write the table to")
    args = parser.parse_args()
    shares = SHARES
    if args.quick:
        args.episodes, args.environments, shares = 120, 8, {name: 4 * share for name, share in SHARES.items()}
    util.get_temp_dir()  # multiprocessing's own folder, which outlives the one below
    with tempfile.TemporaryDirectory() as own:  # other processes write to the usual one
        tempfile.tempdir = os.environ["TMPDIR"] = own
        healthy = soak(args.episodes, args.environments, {}, args.timeout, args.max_turns)
        faulty = soak(args.episodes, args.environments, shares, args.timeout, args.max_turns)
    text = table(args.episodes, args.environments, healthy, faulty)
    ratio = healthy.seconds / faulty.seconds
    text += f"\n\nThroughput with faults, as a ratio to that without: {ratio:.2f}. "
    text += (
        f"A hang is detected after {args.timeout:g} s (`environment_timeout`), and {args.environments} episodes are "
    )
    text += "played at a time: a batch with a hang waits for it.\n"
    print(text)
    if args.output:
        args.output.write_text(HEAD + text, encoding="utf-8")
    whole = all(
        run.stops.total() == args.episodes and not run.temporary and not run.processes
        and run.files[-1] <= run.files[0] and run.retries >= run.struck
        for run in (healthy, faulty)
    )  # fmt: skip
    return 0 if whole and faulty.struck else 1


if __name__ == "__main__":
    raise SystemExit(main())
