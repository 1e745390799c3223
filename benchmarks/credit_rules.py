"""Comparison of credit-assignment algorithms: success on held-out tasks over environment steps, on several seeds.

    python benchmarks/credit_rules.py                                        # ALFWorld: grpo, rloo, gigpo, gagpo
    python benchmarks/credit_rules.py --environment search --seeds 5         # grpo, gspo, igpo, a2tgpo
    python benchmarks/credit_rules.py --environment webshop --rules grpo gagpo
    python benchmarks/credit_rules.py --rules gagpo --first_seed 3 --seeds 1  # one run, while others run elsewhere
    python benchmarks/credit_rules.py --quick                                # a minute, to check that it works

All algorithms start from the small policy that the package ships (or `--policy`), get the same tasks in the same
order, sample their first rollouts with the same seeds, and stop at the same number of environment steps. Shared
settings are those of the quickstart's preset; loss and clip range are those of the algorithm. A finished (algorithm,
seed) is not run again: several processes can share an output folder and each do a part of the runs, and a last call
with all algorithms and seeds writes the table.

Writes `rows.csv` (one row per evaluation), `table.md` and `curves.png` to the output folder. The column `rule` of
`rows.csv` is the name of the algorithm.
"""

from __future__ import annotations

import argparse
import csv
import gc
import itertools
import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import yaml
from credit_rules_report import plot_curves, results_table


ROOT = Path(__file__).resolve().parent.parent
COLUMNS = ("rule", "seed", "update", "environment_steps", "wall_seconds", "success", "turns",
           "advantage_abs_mean", "advantage_abs_gt_1", "clipped")  # fmt: skip
LOGGED = {
    "advantage_abs_mean": "turns/advantage_abs_mean",
    "advantage_abs_gt_1": "turns/advantage_abs_gt_1",
    "clipped": "clip_ratio/region_mean",
}
# Name of an algorithm: its trainer, and its changes to the trainer's config. GSPO's range is that of arXiv 2507.18071.
GSPO = {"importance_sampling_level": "sequence", "loss_type": "grpo", "epsilon": 3e-4, "epsilon_high": 4e-4}
ALGORITHMS: dict[str, tuple[str, dict[str, Any]]] = {
    "grpo": ("AgenticGRPO", {}),
    "gspo": ("AgenticGRPO", GSPO),
    "rloo": ("AgenticRLOO", {}),
    "gigpo": ("GiGPO", {}),
    "gagpo": ("GAGPO", {}),
    "igpo": ("IGPO", {}),
    "a2tgpo": ("A2TGPO", {}),
}
NEEDS_TRUTH = ("igpo", "a2tgpo")
# Settings that belong to an algorithm and are not taken from a preset that was made for another one.
OWN_SETTINGS = ("loss_type", "importance_sampling_level", "epsilon", "epsilon_high", "beta")
QUICK = {"num_generations": 4, "per_device_train_batch_size": 8, "gradient_accumulation_steps": 1,
         "generation_batch_size": None, "max_steps_per_game": 6, "max_train_steps_per_game": 6,
         "max_steps_per_goal": 6}  # fmt: skip


@dataclass(frozen=True)
class Suite:
    """Environment for a comparison.

    Attributes:
        algorithms: names of the algorithms that are compared by default.
        preset: name of the quickstart's recipe.
        budget: environment steps of a run.
        has_truth: whether rows have a `ground_truth`.
        environments: function from the preset to the factories for training and for evaluation.
    """

    algorithms: tuple[str, ...]
    preset: str
    budget: int
    has_truth: bool
    environments: Callable[[dict[str, Any]], tuple[Callable[[], Any], Callable[[], Any]]]


def alfworld(preset: dict[str, Any]) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """Games of `train`, and games in rooms that `train` does not have."""
    from trl_agentic import ALFWorldEnv

    options = {name: preset[name] for name in ("action_format", "show_admissible") if name in preset}
    make = partial(ALFWorldEnv, instructions="" if options.get("action_format") == "plain" else None, **options)
    steps = preset["max_steps_per_game"]
    return (
        partial(make, split="train", max_steps=preset.get("max_train_steps_per_game") or steps),
        partial(make, split="valid_unseen", max_steps=steps),
    )


def search(preset: dict[str, Any]) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """Questions about the generated world, restricted to the preset's `task_types` if it has any."""
    from trl_agentic import SearchEnv

    class Selected(SearchEnv):
        def tasks(self) -> list[dict[str, Any]]:
            wanted = preset.get("task_types")
            return [row for row in super().tasks() if wanted is None or row["task_type"] in wanted]

    names = {"action_format": "action_format", "max_searches": "max_searches", "passages": "top_k"}
    options = {option: preset[name] for name, option in names.items() if name in preset}
    make = partial(Selected, instructions="" if options.get("action_format") == "plain" else None, **options)
    penalty = preset.get("format_penalty", 1.0)
    return partial(make, split="train", format_penalty=penalty), partial(make, split="test", format_penalty=0.0)


def webshop(preset: dict[str, Any]) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """Goals of the generated shop."""
    from trl_agentic import WebShopEnv

    names = ("action_format", "show_admissible", "paid_for", "reward_mode", "num_products", "anchor_options")
    options = {name: preset[name] for name in names if name in preset} | {"max_steps": preset["max_steps_per_goal"]}
    make = partial(WebShopEnv, instructions="" if options.get("action_format") == "plain" else None, **options)
    return partial(make, split="train"), partial(make, split="test")


SUITES = {
    "alfworld": Suite(("grpo", "rloo", "gigpo", "gagpo"), "alfworld_gagpo", 40_000, False, alfworld),
    "search": Suite(("grpo", "gspo", "igpo", "a2tgpo"), "search_a2tgpo", 20_000, True, search),
    "webshop": Suite(("grpo", "gigpo", "gagpo"), "webshop_gagpo", 30_000, False, webshop),
}


class Counted:
    """Environment wrapper that counts steps."""

    def __init__(self, make: Callable[[], Any], tick: Callable[[], None]):
        self._environment = make()
        self._tick = tick

    def tasks(self) -> list[dict[str, Any]]:
        return self._environment.tasks()

    def reset(self, **row: Any) -> str:
        return self._environment.reset(**row)

    def step(self, action: str) -> Any:
        self._tick()
        return self._environment.step(action)

    def close(self) -> None:
        self._environment.close()


class StepCounter:
    """Counter of the steps of all environments of a run."""

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        self._numbers = itertools.count(1)  # `next` on it is atomic: environments may be stepped in threads
        self.total = 0

    def tick(self) -> None:
        self.total = next(self._numbers)


def check(arguments: argparse.Namespace, settings: dict[str, Any]) -> None:
    """Checks the arguments before anything is loaded.

    Raises:
        ValueError: an algorithm is unknown or needs answers that the tasks lack, or a number is too small.
    """
    suite = SUITES[arguments.environment]
    for algorithm in arguments.rules:
        if algorithm not in ALGORITHMS:
            raise ValueError(f"--rules: there is no algorithm {algorithm!r}. Choose from: {', '.join(ALGORITHMS)}.")
        if algorithm in NEEDS_TRUTH and not suite.has_truth:
            raise ValueError(
                f"--rules: {algorithm} measures the likelihood of a ground-truth answer, which the tasks of "
                f"{arguments.environment} do not have. Compare it on search."
            )
    if settings["num_generations"] < 2:
        raise ValueError(
            f"num_generations must be at least 2, got {settings['num_generations']}: an algorithm compares "
            "rollouts of one task."
        )
    for name in ("seeds", "budget", "evaluations", "eval_tasks"):
        if getattr(arguments, name) < 1:
            raise ValueError(f"--{name} must be at least 1, got {getattr(arguments, name)}.")


def small_policy(environment: str) -> str:
    """Folder of the policy that the package ships for an environment.

    Raises:
        ValueError: the package ships none for this environment.
    """
    shipped = getattr(import_module(f"trl_agentic.environments.{environment}"), "small_policy", None)
    if shipped is None:
        raise ValueError(
            f"The package ships no policy for {environment}: train one with recipes/{environment}_warm_start.py and "
            "name its folder with --policy."
        )
    return str(shipped())


def make_trainer(
    algorithm: str, seed: int, policy: str, settings: dict[str, Any], out: Path, environments: Any
) -> Any:
    """A trainer, whose config takes those of the settings that it has a field for, and the held-out tasks."""
    import torch
    from datasets import Dataset

    import trl_agentic

    name, changes = ALGORITHMS[algorithm]
    config_class = getattr(trl_agentic, f"{name}Config")
    known = {field.name for field in fields(config_class)}
    shared = {key: value for key, value in settings.items() if key in known}
    args = config_class(**(shared | {
        "output_dir": str(out), "seed": seed, "max_steps": 10**6, "logging_steps": 1, "save_strategy": "no",
        "report_to": "none", "disable_tqdm": True, "save_trajectories_steps": 0,
        "dataloader_pin_memory": torch.cuda.is_available(),
        "model_init_kwargs": {"dtype": settings.get("dtype", "float32")},
    } | changes))  # fmt: skip
    rows = {name: [{**row, "environment": name} for row in make().tasks()] for name, make in environments.items()}
    trainer = getattr(trl_agentic, f"{name}Trainer")(
        model=policy, args=args, train_dataset=Dataset.from_list(rows["train"]), environment_factory=environments
    )
    return trainer, rows["evaluation"]


class Evaluations:
    """Evaluations of one run: one row of `rows.csv` each.

    Args:
        trainer: the trainer of the run.
        tasks: held-out tasks.
        counter: environment steps of the run's training.
        name: columns that identify the run.
        batch_size: rollouts that are played at a time.
    """

    def __init__(self, trainer: Any, tasks: list[Any], counter: StepCounter, name: dict[str, Any], batch_size: int):
        self.rows: list[dict[str, Any]] = []
        self._trainer, self._tasks, self._counter = trainer, tasks, counter
        self._name, self._batch_size = name, batch_size
        self._logged: dict[str, list[float]] = {name: [] for name in LOGGED}
        self._started, self._evaluating = time.perf_counter(), 0.0

    def start(self) -> None:
        """Starts the count of steps and seconds, and evaluates the policy before training."""
        self._counter.restart()
        self._started = time.perf_counter()
        self.evaluate()

    def record(self, logs: dict[str, float]) -> None:
        """Keeps the logged figures of an update for the next row."""
        for name, key in LOGGED.items():
            if key in logs:  # an update on rollouts of an earlier one logs no advantages
                self._logged[name].append(logs[key])

    def evaluate(self) -> None:
        """Plays the held-out tasks and adds a row."""
        started = time.perf_counter()
        seconds = started - self._started - self._evaluating
        played = self._trainer.rollout(self._tasks, batch_size=self._batch_size)
        self._evaluating += time.perf_counter() - started
        success = sum(bool(trajectory.success) for trajectory in played) / len(played)
        self.rows.append({
            **self._name, "update": self._trainer.state.global_step, "environment_steps": self._counter.total,
            "wall_seconds": round(seconds, 2), "success": success,
            "turns": sum(len(trajectory.turns) for trajectory in played) / len(played),
            **{name: sum(values) / len(values) if values else "" for name, values in self._logged.items()},
        })  # fmt: skip
        self._logged = {name: [] for name in LOGGED}
        print(
            f"{self._name['rule']} seed {self._name['seed']}: {success:.1%} after {self._counter.total} steps, "
            f"{seconds:.0f} s",
            flush=True,
        )


def run(algorithm: str, seed: int, policy: str, settings: dict[str, Any], arguments: argparse.Namespace) -> list[Any]:
    """Trains with one algorithm and seed, and returns a row for each evaluation."""
    from transformers import PrinterCallback, TrainerCallback

    out = arguments.output_dir / "runs" / f"{algorithm}-{seed}"
    counter = StepCounter()
    train, evaluation = SUITES[arguments.environment].environments(settings)
    environments = {"train": partial(Counted, train, counter.tick), "evaluation": evaluation}
    trainer, tasks = make_trainer(algorithm, seed, policy, settings, out, environments)
    name = {"rule": algorithm, "seed": seed}
    evaluations = Evaluations(trainer, tasks[: arguments.eval_tasks], counter, name, arguments.eval_batch_size)

    class Evaluation(TrainerCallback):
        """Evaluates whenever the steps pass another of equal parts of the budget, and stops training at its end."""

        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            evaluations.start()

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
            if LOGGED["clipped"] not in (logs or {}):
                return
            evaluations.record(logs)
            part = arguments.budget / arguments.evaluations
            if counter.total // part > evaluations.rows[-1]["environment_steps"] // part:
                evaluations.evaluate()
            control.should_training_stop = counter.total >= arguments.budget

    trainer.add_callback(Evaluation())
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return evaluations.rows


def compare(policy: str, settings: dict[str, Any], arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Runs what is not finished, and reads the rows of all runs."""
    out = arguments.output_dir
    claim(out, settings | {"policy": policy, "budget": arguments.budget, "evaluations": arguments.evaluations,
                           "eval_tasks": arguments.eval_tasks})  # fmt: skip
    rows: list[dict[str, Any]] = []
    seeds = range(arguments.first_seed, arguments.first_seed + arguments.seeds)
    for seed, algorithm in itertools.product(seeds, arguments.rules):
        file = out / f"{algorithm}-{seed}.csv"
        if not file.exists():
            part = file.with_suffix(".part")
            write_rows(part, run(algorithm, seed, policy, settings, arguments))
            part.replace(file)
            gc.collect()
        with open(file, newline="") as lines:
            rows += csv.DictReader(lines)
    return sorted(rows, key=lambda row: (arguments.rules.index(row["rule"]), int(row["seed"])))


def claim(out: Path, settings: dict[str, Any]) -> None:
    """Writes the settings to the folder, or compares them with those that it holds.

    Raises:
        ValueError: the folder holds runs with other settings, which must not be mixed with these.
    """
    file = out / "settings.json"
    if not file.exists():
        out.mkdir(parents=True, exist_ok=True)
        part = file.with_suffix(f".{os.getpid()}")  # other processes may write at the same time
        part.write_text(json.dumps(settings, indent=2) + "\n")
        part.replace(file)
    held = json.loads(file.read_text())
    different = sorted(name for name in {**held, **settings} if held.get(name) != settings.get(name))
    if different:
        raise ValueError(f"{out} holds runs with another {', '.join(different)}. Choose another --output_dir.")


def write_rows(file: Path, rows: list[dict[str, Any]]) -> None:
    """Writes a CSV file with the columns of `COLUMNS`."""
    with open(file, "w", newline="") as lines:
        writer = csv.DictWriter(lines, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)


def parse(argv: list[str] | None) -> tuple[argparse.Namespace, dict[str, Any]]:
    """Arguments, and the settings that all algorithms share."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--environment", choices=SUITES, default="alfworld")
    parser.add_argument(
        "--rules", nargs="+", help="names of the algorithms to compare; default: those of the environment"
    )
    parser.add_argument("--seeds", type=int, default=5, help="number of seeds (default: 5)")
    parser.add_argument("--first_seed", type=int, default=0, help="the first of them (default: 0)")
    parser.add_argument("--budget", type=int, help="environment steps of a run; default: that of the environment")
    parser.add_argument("--evaluations", type=int, default=8, help="evaluations after the first one (default: 8)")
    parser.add_argument("--eval_tasks", type=int, default=134, help="held-out tasks (default: 134)")
    parser.add_argument(
        "--eval_batch_size", type=int, default=64, help="rollouts that are played at a time (default: 64)"
    )
    parser.add_argument("--policy", help="folder of a checkpoint; default: the environment's small policy")
    parser.add_argument("--preset", type=Path, help="YAML file of settings; default: the quickstart's")
    parser.add_argument("--output_dir", type=Path, help="default: outputs/credit_rules/ENVIRONMENT")
    parser.add_argument("--quick", action="store_true", help="two seeds, two updates and few tasks")
    parser.add_argument(
        "--set",
        nargs="+",
        default=[],
        metavar="KEY=VALUE",
        help="settings of all algorithms, which override the preset",
    )
    arguments = parser.parse_args(argv)
    suite = SUITES[arguments.environment]
    preset = arguments.preset or ROOT / "recipes" / "configs" / suite.preset / "quickstart.yaml"
    settings = {key: value for key, value in yaml.safe_load(preset.read_text()).items() if key not in OWN_SETTINGS}
    settings["beta"] = 0.0
    if arguments.quick:
        arguments.seeds, arguments.evaluations, arguments.eval_tasks = 2, 2, 4
        arguments.budget = arguments.budget or 80
        settings |= QUICK
    for change in arguments.set:
        key, equals, value = change.partition("=")
        if not equals:
            raise ValueError(f"--set: {change!r} is not KEY=VALUE.")
        settings[key] = yaml.safe_load(value)
    arguments.rules = arguments.rules or list(suite.algorithms)
    arguments.budget = suite.budget if arguments.budget is None else arguments.budget
    name = f"{arguments.environment}_quick" if arguments.quick else arguments.environment
    arguments.output_dir = arguments.output_dir or ROOT / "outputs" / "credit_rules" / name
    return arguments, settings


def main(argv: list[str] | None = None) -> None:
    try:
        arguments, settings = parse(argv)
        check(arguments, settings)
        rows = compare(arguments.policy or small_policy(arguments.environment), settings, arguments)
    except (ValueError, FileNotFoundError) as error:
        sys.exit(f"credit_rules.py: {error}")
    out = arguments.output_dir
    write_rows(out / "rows.csv", rows)
    table = results_table(rows, arguments.budget)
    (out / "table.md").write_text(table + "\n")
    plot_curves(rows, arguments.budget, out / "curves.png", f"Held-out tasks, {arguments.environment}")
    print(f"\n{table}\n\nrows.csv, table.md and curves.png are in {out}.")


if __name__ == "__main__":
    main()
