"""Quickstart of a recipe with several seeds: success before and after training, as a table and a plot.

    python benchmarks/quickstart.py --recipe alfworld_gagpo --seeds 5
    python benchmarks/quickstart.py --recipe search_a2tgpo --seeds 3
    python benchmarks/quickstart.py --seeds 1 --name alfworld_gagpo_released --data $ALFWORLD_DATA

Runs `recipes/RECIPE.py` once per seed, one after another. Further arguments are passed to the recipe. A seed whose
results exist is not run again. The tables are printed, and the plot goes to `docs/results/NAME.png`.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

from matplotlib.figure import Figure


ROOT = Path(__file__).resolve().parent.parent
METRIC = "episode/success"


def run(recipe: str, seed: int, out: Path, extra: list[str]) -> None:
    """Trains with one seed, unless its results exist."""
    if (out / "results.json").exists():
        return
    started = time.perf_counter()
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", "recipes/accelerate/cpu.yaml"]
    command = [*launch, f"recipes/{recipe}.py", "--seed", str(seed), "--output_dir", str(out), *extra]
    subprocess.run(command, cwd=ROOT, check=True)
    (out / "seconds.json").write_text(json.dumps(time.perf_counter() - started))


def table(runs: dict[int, Path]) -> str:
    """One line per seed, and one for the mean."""
    lines = ["| seed | before | after | gain in points | minutes |", "|---|---|---|---|---|"]
    gains = []
    for seed, out in runs.items():
        results = json.loads((out / "results.json").read_text())
        rates = {moment: results[moment]["All"] for moment in ("before", "after")}
        before, after = (100 * wins / games for wins, games in rates.values())
        gains.append(after - before)
        minutes = json.loads((out / "seconds.json").read_text()) / 60
        cells = [f"{100 * wins / games:.1f}% ({wins}/{games})" for wins, games in rates.values()]
        lines.append(f"| {seed} | {cells[0]} | {cells[1]} | {after - before:+.1f} | {minutes:.1f} |")
    lines.append(f"| mean | | | {sum(gains) / len(gains):+.1f} | |")
    return "\n".join(lines)


def type_table(runs: dict[int, Path]) -> str:
    """Success by task type over all seeds."""
    counts: dict[str, dict[str, list[int]]] = {}
    for out in runs.values():
        for moment, rates in json.loads((out / "results.json").read_text()).items():
            for name, (wins, games) in rates.items():
                total = counts.setdefault(name, {}).setdefault(moment, [0, 0])
                total[0] += wins
                total[1] += games
    lines = ["| task type | before | after |", "|---|---|---|"]
    for name, moments in counts.items():
        cells = [f"{100 * wins / games:.1f}% ({wins}/{games})" for wins, games in moments.values()]
        lines.append(f"| {name} | {cells[0]} | {cells[1]} |")
    return "\n".join(lines)


def plot(runs: dict[int, Path], path: Path) -> None:
    """Success of the training rollouts over the steps, one line per seed, and the evaluations as dots."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for number, (seed, out) in enumerate(runs.items()):
        log = json.loads((out / "trainer_state.json").read_text())["log_history"]
        points = [(entry["step"], entry[METRIC]) for entry in log if METRIC in entry]
        steps, values = zip(*points, strict=True)
        smooth = [sum(values[max(0, i - 4) : i + 1]) / len(values[max(0, i - 4) : i + 1]) for i in range(len(values))]
        axes.plot(steps, smooth, color=f"C{number}", alpha=0.6, label=f"seed {seed}")
        results = json.loads((out / "results.json").read_text())
        rates = [results[moment]["All"][0] / results[moment]["All"][1] for moment in ("before", "after")]
        axes.plot([0, steps[-1]], rates, "o", color=f"C{number}")
    axes.set_xlabel("optimizer step")
    axes.set_ylabel("success")
    axes.set_ylim(0, 1)
    axes.set_title("Lines: training rollouts (mean of 5 steps). Dots: held-out tasks before and after.", fontsize=9)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="alfworld_gagpo", help="name of the recipe")
    parser.add_argument("--seeds", type=int, default=5, help="number of seeds, from 0")
    parser.add_argument("--name", help="name of the plot and of the folder of the runs; default: that of the recipe")
    arguments, extra = parser.parse_known_args()
    name = arguments.name or arguments.recipe
    runs = {seed: ROOT / "outputs" / name / f"seed_{seed}" for seed in range(arguments.seeds)}
    for seed, out in runs.items():
        run(arguments.recipe, seed, out, extra)
    image = ROOT / "docs" / "results" / f"{name}.png"
    plot(runs, image)
    print(f"{table(runs)}\n\n{type_table(runs)}\n\nThe plot is {image}.")


if __name__ == "__main__":
    main()
