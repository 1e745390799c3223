"""Speed and memory of the ALFWorld engine, compared with the upstream engine in the same run.

    python benchmarks/alfworld_engine.py                      # generated games
    python benchmarks/alfworld_engine.py --data $ALFWORLD_DATA

Every measurement runs in its own process. Eight environments share a game, as the copies of a prompt do in training.
The environments are stepped in turn, with random admissible commands.

The table goes to docs/results/alfworld_engine.md.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import random
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from trl_agentic.environments.alfworld import ALFWorldEngine, ALFWorldGame, find_games


ROOT = Path(__file__).resolve().parent.parent
COPIES = 8
COUNTS = (1, 64, 1024)
STEPS = {"ours": 50, "upstream": {1: 50, 64: 5}}
UPSTREAM_MODULES = ("alfworld", "textworld", "fast_downward")


def load_games(data: str | None, count: int) -> list[ALFWorldGame]:
    if data is not None:
        references = find_games(data, "train")
        return [references[i * len(references) // count].load() for i in range(count)]
    from trl_agentic.environments.alfworld.generator import generate_game

    return [generate_game("train", i) for i in range(count)]


def peak_memory() -> float:
    """Peak resident memory of this process in MB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1e6 if sys.platform == "darwin" else 1e3)


def measure(engine: str, count: int, steps: int, data: str | None) -> dict[str, float]:
    """Measures `count` environments that play `steps` commands each.

    Returns:
        `dict[str, float]`: `parse_ms` per game, `resets` and `steps` per second, `memory` in MB per environment (games
        and engines, without interpreter and imports).
    """
    make: Any = ALFWorldEngine
    if engine == "upstream":
        from trl_agentic.environments.alfworld.upstream import UpstreamALFWorldEngine

        make = UpstreamALFWorldEngine
    sources = [game.to_dict() for game in load_games(data, max(1, count // COPIES))]
    warm = make(ALFWorldGame.from_dict(sources[0], name="warm-up"))
    warm.reset()
    draw = random.Random(0)
    memory = peak_memory()

    start = time.perf_counter()
    games = [ALFWorldGame.from_dict(source, name="game") for source in sources]
    parsed = time.perf_counter()
    engines = [make(games[i % len(games)]) for i in range(count)]
    ready = time.perf_counter()
    states = [environment.reset() for environment in engines]
    reset = time.perf_counter()
    for _ in range(steps):
        for i, environment in enumerate(engines):
            states[i] = environment.step(draw.choice(states[i].admissible_actions))
    end = time.perf_counter()
    return {
        "parse_ms": 1e3 * (parsed - start) / len(games) + 1e3 * (ready - parsed) / count,
        "resets": count / (reset - ready),
        "steps": count * steps / (end - reset),
        "memory": (peak_memory() - memory) / count,
    }


def measure_apart(engine: str, count: int, steps: int, data: str | None, repeats: int) -> dict[str, float]:
    """The best values of `repeats` measurements, each in a new process."""
    command = [sys.executable, __file__, "--measure", engine, str(count), str(steps)]
    if data is not None:
        command += ["--data", data]
    results = []
    for _ in range(repeats):
        done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT)
        results.append(json.loads(done.stdout.splitlines()[-1]))
    best = {key: max(result[key] for result in results) for key in ("resets", "steps")}
    return best | {key: min(result[key] for result in results) for key in ("parse_ms", "memory")}


def row(name: str, count: int, result: dict[str, float]) -> str:
    return (
        f"| {name} | {count:,} | {result['parse_ms']:,.1f} | {result['resets']:,.1f} | {result['steps']:,.0f} "
        f"| {result['memory']:,.3f} |"
    )


def report(data: str | None) -> str:
    missing = [name for name in UPSTREAM_MODULES if importlib.util.find_spec(name) is None]
    lines = [
        "# ALFWorld engine: speed and memory",
        "",
        f"`python benchmarks/alfworld_engine.py`, {'released' if data else 'generated'} games, "
        f"Python {platform.python_version()} on {platform.machine()} with {os.cpu_count()} cores, one of them used. "
        f"{COPIES} environments share a game; they are stepped in turn, with random admissible commands. "
        f"Ours: best of 3 runs of {STEPS['ours']} steps per environment. "
        "A step includes the list of admissible commands. Loading: parsing a game and making an engine.",
        "",
        "| engine | environments | loading (ms) | resets / s | steps / s | memory per environment (MB) |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    ours = {count: measure_apart("ours", count, STEPS["ours"], data, repeats=3) for count in COUNTS}
    lines += [row("ALFWorldEngine", count, result) for count, result in ours.items()]
    if missing:
        lines += [
            "",
            f"Upstream was not measured: {', '.join(missing)} not installed (`pip install trl-agentic[alfworld]`).",
        ]
        return "\n".join(lines) + "\n"

    theirs = {count: measure_apart("upstream", count, steps, data, 1) for count, steps in STEPS["upstream"].items()}
    lines += [row("upstream", count, result) for count, result in theirs.items()]
    limits = ", ".join(f"{steps} steps each at {count}" for count, steps in STEPS["upstream"].items())
    minutes = 1024 * (theirs[64]["parse_ms"] / 1e3 + 1 / theirs[64]["resets"]) / 60
    lines += [
        "",
        f"Upstream is measured once, with fewer steps ({limits}), and not with 1,024 environments: at the rates "
        f"measured with 64, loading and one reset alone would take {minutes:,.0f} minutes.",
        "",
        "| ours / upstream | resets / s | steps / s | memory |",
        "|---|---:|---:|---:|",
    ]
    for count, result in theirs.items():
        ratios = {key: ours[count][key] / result[key] for key in ("resets", "steps", "memory")}
        memory = f"1 / {1 / ratios['memory']:,.0f}" if ratios["memory"] else "ours needed no additional page"
        lines.append(f"| {count} | {ratios['resets']:,.0f}x | {ratios['steps']:,.0f}x | {memory} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data", help="released games: $ALFWORLD_DATA, its json_2.1.1 or a tar; default: generated games"
    )
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "results" / "alfworld_engine.md")
    parser.add_argument("--measure", nargs=3, metavar=("ENGINE", "COUNT", "STEPS"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        engine, count, steps = arguments.measure
        print(json.dumps(measure(engine, int(count), int(steps), arguments.data)))
        return
    table = report(arguments.data)
    print(table)
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(table, encoding="utf-8")


if __name__ == "__main__":
    main()
