"""Comparison of the three inference engines: the first updates of GAGPO on ALFWorld, with the same seeds and games.

    python benchmarks/engines.py
    python benchmarks/engines.py --seeds 1 --updates 2 --output_dir /tmp
    python benchmarks/engines.py --server http://localhost:8000

Runs `recipes/alfworld_gagpo.py` with transformers, with a vLLM server and with vLLM in the trainer's process, one
after another. A run whose results exist is not run again. Without a GPU it needs vLLM's CPU build (`make
vllm`, and `pip install matplotlib` into its environment) and starts the server itself. The table and the plot go to
docs/results/engines.*.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import runpy
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure

from trl_agentic.environments.alfworld import small_policy
from trl_agentic.rollout.engines.vllm_server import is_up


ROOT = Path(__file__).resolve().parent.parent
ENGINES = ("transformers", "server", "colocate")
SUCCESS, RATIO = "episode/success", "sampling/importance_sampling_ratio/mean"
GAP, SECONDS = "sampling/sampling_logp_difference/max", "step_time"

Log = list[dict[str, Any]]  # one entry per update


def recipe_arguments(engine: str, url: str | None) -> list[str]:
    """Arguments that an engine adds to those of the quickstart."""
    if engine == "transformers":
        return []
    mode = ["--use_vllm", "true", "--vllm_mode", engine]
    return [*mode, "--vllm_server_base_url", str(url)] if engine == "server" else mode


def train(arguments: list[str]) -> None:
    """Runs the recipe in this process."""
    if not torch.cuda.is_available() and "--use_vllm" in arguments:
        sys.path.insert(0, str(ROOT))
        import pytest

        from tests.vllm.cpu import ENVIRONMENT, patch_trl

        os.environ |= ENVIRONMENT
        patch_trl(pytest.MonkeyPatch())
    sys.path.insert(0, str(ROOT / "recipes"))
    sys.argv = ["alfworld_gagpo.py", *arguments]
    runpy.run_path(str(ROOT / "recipes" / "alfworld_gagpo.py"), run_name="__main__")


@contextmanager
def server_on_cpu(log: Path) -> Iterator[str]:
    """Starts a server of the quickstart's policy, which receives weights through a file, and yields its URL."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "trl_agentic", "serve", str(small_policy()), "--port", str(port)]
    command += ["--backend", "disk", "--enforce-eager", "--dtype", "float32"]
    command += ["--worker-extension-cls", "tests.vllm.cpu.Worker", "--max-num-batched-tokens", "32768"]
    url = f"http://127.0.0.1:{port}"
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    own = {"PYTHONPATH": str(ROOT), "PATH": path, "VLLM_CPU_KVCACHE_SPACE": "1", "TORCHDYNAMO_DISABLE": "1"}
    with log.open("wb") as out:
        server = subprocess.Popen(
            command, env=os.environ | own | {"VLLM_CPU_OMP_THREADS_BIND": "nobind"}, stdout=out, stderr=out
        )
    try:
        while not is_up(url):
            if server.poll() is not None:
                raise RuntimeError(f"The server did not start:\n{log.read_text()[-3000:]}")
            time.sleep(1)
        yield url
    finally:
        server.terminate()
        server.wait(timeout=60)


def read_log(out: Path) -> Log:
    """The log entries of a run's updates."""
    history = json.loads((out / "trainer_state.json").read_text())["log_history"]
    return [entry for entry in history if SUCCESS in entry]


def curves(logs: dict[tuple[str, int], Log]) -> str:
    """Success in the rollouts of each update and the norm of its gradient: one line per update, one column per run."""
    head = ["update", *(f"{engine}, seed {seed}" for engine, seed in logs)]
    lines = ["| " + " | ".join(head) + " |", "|---" + "|---:" * len(logs) + "|"]
    for k, entries in enumerate(zip_longest(*logs.values()), start=1):
        cells = [
            "" if entry is None else f"{100 * entry[SUCCESS]:.1f}%, {entry['grad_norm']:.4f}" for entry in entries
        ]
        lines.append("| " + " | ".join([str(k), *cells]) + " |")
    return "\n".join(lines)


def run_table(logs: dict[tuple[str, int], Log]) -> str:
    """One line per run: success over all updates, the mismatch between engine and trainer, seconds."""
    lines = [
        "| run | updates | success | importance ratio, mean | largest gap of a log-probability "
        "| seconds of the fastest update |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for (engine, seed), log in logs.items():
        cells = [str(len(log)), f"{100 * statistics.fmean(e[SUCCESS] for e in log):.1f}%"]
        if RATIO in log[0]:
            cells += [f"{statistics.fmean(e[RATIO] for e in log):.6f}", f"{max(e[GAP] for e in log):.1e}"]
        else:
            cells += ["", ""]
        cells.append(f"{min(e[SECONDS] for e in log):.1f}")
        lines.append(f"| {engine}, seed {seed} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def noise(logs: dict[tuple[str, int], Log]) -> tuple[float, float]:
    """Mean absolute difference in success, update by update, between two engines with the same seed, and between two
    seeds of the same engine."""
    gaps: dict[bool, list[float]] = {True: [], False: []}
    runs = list(logs.items())
    for i, ((engine, seed), log) in enumerate(runs):
        for (other_engine, other_seed), other in runs[:i]:
            if (engine == other_engine) != (seed == other_seed):
                gaps[seed == other_seed] += [abs(a[SUCCESS] - b[SUCCESS]) for a, b in zip(log, other, strict=False)]
    return statistics.fmean(gaps[True] or [0.0]), statistics.fmean(gaps[False] or [0.0])


def plot(logs: dict[tuple[str, int], Log], path: Path) -> None:
    """Success of the training rollouts over the updates, one colour per engine, one line style per seed."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for engine, seed in logs:
        values = [entry[SUCCESS] for entry in logs[engine, seed]]
        style = {"color": f"C{ENGINES.index(engine)}", "linestyle": ("-", "--", ":")[seed % 3]}
        axes.plot(range(1, len(values) + 1), values, label=f"{engine}, seed {seed}", **style)
    axes.set(xlabel="optimizer step", ylabel="success of the training rollouts", ylim=(0, 1))
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120)


def report(logs: dict[tuple[str, int], Log], command: str) -> str:
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("transformers", "vllm", "trl", "torch"))
    machine = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{os.cpu_count()} CPU cores"
    between_engines, between_seeds = noise(logs)
    return f"""# GAGPO on ALFWorld through three engines

`{command}`: the first updates of the [quickstart](alfworld_gagpo.md), 64 rollouts each on generated games, sampled by
transformers, by a vLLM server (server) and by vLLM in the trainer's process (colocate), in float32.
A seed has the same games in the same order and the same random numbers with every engine: runs diverge where rounding
decides between two tokens. {platform.machine()} with {machine}, one thread a process. {versions}.

{run_table(logs)}

Success is the mean over the training rollouts of all updates. The importance ratio is the trainer's probability of a
sampled token divided by the engine's; the engine receives new weights at every update. The machine was not idle, so
that seconds are only a rough guide. Success in the rollouts of each update, and the norm of its gradient:

{curves(logs)}

Two engines with the same seed are {100 * between_engines:.1f} points apart in an update, on average; two seeds of the
same engine {100 * between_seeds:.1f} points.

![Success of the training rollouts by engine and seed](engines.png)
"""


def main() -> None:
    if sys.argv[1:2] == ["--train"]:
        train(sys.argv[2:])
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=2, help="number of seeds with transformers, from 0")
    parser.add_argument("--vllm_seeds", type=int, default=1, help="number of seeds with vLLM")
    parser.add_argument("--updates", type=int, default=6)
    parser.add_argument(
        "--server", help="URL of a vLLM server of the quickstart's policy; default: one is started on the CPU"
    )
    parser.add_argument("--runs_dir", type=Path, default=ROOT / "outputs" / "engines")
    parser.add_argument("--output_dir", type=Path, default=ROOT / "docs" / "results")
    arguments = parser.parse_args()
    outs = {
        (engine, seed): arguments.runs_dir / f"{engine}_{seed}"
        for engine in ENGINES
        for seed in range(arguments.seeds if engine == "transformers" else arguments.vllm_seeds)
    }

    def run(engine: str, seed: int, url: str | None) -> None:
        out = outs[engine, seed]
        command = [sys.executable, __file__, "--train", "--seed", str(seed), "--output_dir", str(out)]
        command += ["--max_steps", str(arguments.updates), "--eval_games", "4", *recipe_arguments(engine, url)]
        subprocess.run(command, check=True)
        print(f"{engine}, seed {seed}: {[round(entry[SUCCESS], 3) for entry in read_log(out)]}", flush=True)

    arguments.runs_dir.mkdir(parents=True, exist_ok=True)
    missing = [key for key, out in outs.items() if not (out / "trainer_state.json").exists()]
    for engine, seed in missing:
        if engine == "server" and arguments.server is None:
            with server_on_cpu(arguments.runs_dir / "server.log") as url:
                run(engine, seed, url)
        else:
            run(engine, seed, arguments.server)
    logs = {key: read_log(out) for key, out in outs.items()}
    text = report(logs, " ".join(["python benchmarks/engines.py", *sys.argv[1:]]))
    print(f"\n{text}")
    plot(logs, arguments.output_dir / "engines.png")
    (arguments.output_dir / "engines.md").write_text(text)


if __name__ == "__main__":
    main()
