"""Training step on rollouts of unequal length: micro-batches by a token budget, compared with TRL's padded batches.

    python benchmarks/training_step.py
    python benchmarks/training_step.py --steps 7 --rollouts 32
    python benchmarks/training_step.py --model MODEL --bf16 --rollouts 64 --turns 64 --budget 65536    # on a GPU

Both train the small policy that ships with the package, or `--model`, on the same made-up rollouts, with the same
advantages and the same loss ("dapo"). TRL pads every rollout of a batch to the longest and has the same number of
rollouts in every forward pass. Each measurement runs in its own process, because of the peak memory. On a GPU, the
table has the share of the GPU's measured rate of matrix products (bfloat16).

The table goes to docs/results/training_step.md.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import PreTrainedModel, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from trl_agentic import AgenticGRPOConfig, AgenticGRPOTrainer, StepResult, StopReason, Trajectory, Turn
from trl_agentic.environments.alfworld import small_policy


ROOT = Path(__file__).resolve().parent.parent
PROMPT, ACTION, OBSERVATION = 64, 16, 48  # tokens
GROUP = 4  # rollouts of a task
NAMES = {"padded": "TRL, padded", "budget": "token budget", "packed": "token budget, packed"}
PACKED_ATTENTION = "flex_attention" if torch.cuda.is_available() else "sdpa"
KEPT = ("prompt_ids", "prompt_mask", "completion_ids", "completion_mask", "tool_mask", "advantages")


class Nothing:
    """Environment that is never played: the rollouts are given."""

    def reset(self, **row: Any) -> str:
        return "Go."

    def step(self, action: str) -> StepResult:
        return StepResult("", terminated=True)

    def close(self) -> None:
        pass


def turn_counts(kind: str, rollouts: int, most: int) -> list[int]:
    """Turns of each rollout, the longest with `most`: evenly spread from a quarter of it up, or long-tailed."""
    if kind == "uniform":
        counts = [most * (0.25 + 0.75 * i / (rollouts - 1)) for i in range(rollouts)]
    else:  # quantiles of a log-normal distribution, whose longest is ten times the median
        normal = statistics.NormalDist()
        quantiles = [normal.inv_cdf((i + 0.5) / rollouts) for i in range(rollouts)]
        counts = [most * 10 ** (q / quantiles[-1] - 1) for q in quantiles]
    return [max(1, round(count)) for count in counts]


def rollout(turns: int, seed: int) -> Trajectory:
    """A rollout of random tokens that wins or loses."""
    generator = torch.Generator().manual_seed(seed)

    def tokens(count: int) -> list[int]:
        ids: list[int] = torch.randint(5, 500, (count,), generator=generator).tolist()
        return ids

    played = [
        Turn(tokens(OBSERVATION if k else PROMPT), tokens(ACTION), None, "", "Go.", "", extends=k > 0)
        for k in range(turns)
    ]
    played[-1].reward = float(seed % 2)
    return Trajectory({}, played, StopReason.TERMINATED)


class Budgeted(AgenticGRPOTrainer):
    """Trainer of this package on given rollouts."""

    given: list[Trajectory]

    def _play(self, *args: Any, **kwargs: Any) -> list[Trajectory]:
        return self.given


class Padded(GRPOTrainer):
    """TRL's trainer on given rollouts in TRL's padded layout."""

    given: dict[str, torch.Tensor]

    def _generate_and_score_completions(self, inputs: Any) -> dict[str, torch.Tensor]:
        return dict(self.given)


class Clock(TrainerCallback):
    """Timer of each step: processor seconds and wall-clock seconds."""

    def __init__(self) -> None:
        self.cpu: list[float] = []
        self.wall: list[float] = []

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        self._started = time.process_time(), time.perf_counter()

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.cpu.append(time.process_time() - self._started[0])
        self.wall.append(time.perf_counter() - self._started[1])


def matrix_rate(size: int = 8192, products: int = 20) -> float:
    """FLOPs per second of bfloat16 matrix products of random numbers on the GPU."""
    a, b = (torch.randn(size, size, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    for _ in range(5):
        a @ b
    torch.cuda.synchronize()
    started = time.perf_counter()
    for _ in range(products):
        a @ b
    torch.cuda.synchronize()
    return 2 * size**3 * products / (time.perf_counter() - started)


def step_flops(model: PreTrainedModel, lengths: list[int]) -> float:
    """FLOPs that a step needs for its tokens, without recomputation and padding: 6 per token and weight of a matrix
    product, and causal attention."""
    config = model.config.get_text_config()
    width = config.num_attention_heads * (
        getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    )
    weights = sum(p.numel() for p in model.parameters() if p.ndim == 2)
    if not config.tie_word_embeddings:
        weights -= model.get_input_embeddings().weight.numel()
    return sum(6.0 * weights * n + 6.0 * config.num_hidden_layers * width * n**2 for n in lengths)


def measure(kind: str, method: str, arguments: argparse.Namespace) -> dict[str, float]:
    """Trains for a few steps in this process."""
    rollouts, most, steps = arguments.rollouts, arguments.turns, arguments.steps
    given = [rollout(count, seed) for seed, count in enumerate(turn_counts(kind, rollouts, most))]
    lengths = [sum(len(turn.prompt_ids) + len(turn.action_ids) for turn in t.turns) for t in given]
    rows = Dataset.from_list([{"prompt": [{"role": "user", "content": "Go."}]}] * (rollouts // GROUP))
    with tempfile.TemporaryDirectory() as folder:
        options: dict[str, Any] = {
            "output_dir": folder, "use_cpu": not torch.cuda.is_available(), "bf16": arguments.bf16,
            "report_to": "none", "disable_tqdm": True, "save_strategy": "no", "max_steps": steps, "logging_steps": 1,
            "learning_rate": 0.0, "num_generations": GROUP, "per_device_train_batch_size": rollouts // 4,
            "gradient_accumulation_steps": 4, "loss_type": "dapo", "max_completion_length": max(lengths) - PROMPT,
            "gradient_checkpointing": False, "model_init_kwargs": {"dtype": "float32"},
        }  # fmt: skip
        if method == "packed":
            options["model_init_kwargs"]["attn_implementation"] = PACKED_ATTENTION
        ours = Budgeted(
            arguments.model,
            args=AgenticGRPOConfig(
                **options, max_turn_tokens=ACTION, max_context_length=max(lengths),
                max_tokens_per_micro_batch=None if method == "padded" else arguments.budget or max(lengths),
                pack_micro_batches=method == "packed",
            ),
            train_dataset=rows,
            environment_factory=Nothing,
        )  # fmt: skip
        ours.given = given
        trainer: GRPOTrainer = ours
        if method == "padded":
            padded = Padded(arguments.model, lambda completions, **_: [0.0] * len(completions),
                            GRPOConfig(**options), rows)  # fmt: skip
            ours.model.train()
            layout = ours._generate_and_score_completions(list(rows) * GROUP)
            padded.given = {name: layout[name] for name in (*KEPT, "num_items_in_batch")}
            trainer = padded
        positions = 0

        def count(module: Any, args: Any, kwargs: Any) -> None:
            nonlocal positions
            ids = kwargs["input_ids"] if "input_ids" in kwargs else args[0]
            positions += ids.numel()

        trainer.model.get_decoder().register_forward_pre_hook(count, with_kwargs=True)
        clock = Clock()
        trainer.add_callback(clock)
        before = _memory()
        trainer.train()
        peak = _peak()
    logged = [entry for entry in trainer.state.log_history if "loss" in entry]
    return {
        "tokens": sum(lengths),
        "positions": positions / steps,
        "cpu": statistics.median(clock.cpu[1:]),
        "wall": statistics.median(clock.wall[1:]),
        "flops": step_flops(trainer.accelerator.unwrap_model(trainer.model), lengths),
        "memory": (peak - before) / 2**20,
        "loss": logged[0]["loss"],
        "grad_norm": logged[0]["grad_norm"],
    }


def _memory() -> float:
    """Bytes in use now. Resets the peak."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        return float(torch.cuda.memory_allocated())
    clear = Path("/proc/self/clear_refs")
    if clear.exists():
        clear.write_text("5")  # Linux: resets the peak
    return _peak()


def _peak() -> float:
    if torch.cuda.is_available():
        return float(torch.cuda.max_memory_allocated())
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return float(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def table(results: dict[tuple[str, str], dict[str, float]], rate: float | None) -> str:
    """Table of the figures. With a GPU's `rate` in FLOPs per second: wall-clock seconds, and the share of the rate."""
    clock, unit = ("cpu", "CPU s") if rate is None else ("wall", "s")
    names = ["lengths", "batches", "tokens", "positions", f"{unit} / step", "tokens / s", "memory (MB)", "loss"]
    names += ["gradient norm"] + ["FLOPs used"] * (rate is not None)
    lines = ["| " + " | ".join(names) + " |", "|---|---|" + "---:|" * (len(names) - 2)]
    for (kind, method), r in results.items():
        used = "" if rate is None else f" {100 * r['flops'] / r[clock] / rate:.1f}% |"
        lines.append(
            f"| {kind} | {NAMES[method]} | {r['tokens']:,.0f} | {r['positions']:,.0f} | {r[clock]:.2f} | "
            f"{r['tokens'] / r[clock]:,.0f} | {r['memory']:,.0f} | {r['loss']:.6f} | {r['grad_norm']:.5f} |{used}"
        )
    lines += ["", "| TRL / ours | batches | positions | time | peak memory |", "|---|---|---:|---:|---:|"]
    for (kind, method), ours in results.items():
        if method != "padded":
            ratios = (results[kind, "padded"][key] / ours[key] for key in ("positions", clock, "memory"))
            lines.append(f"| {kind} | {NAMES[method]} | " + " | ".join(f"{ratio:.2f}x" for ratio in ratios) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--rollouts", type=int, default=16)
    parser.add_argument("--turns", type=int, default=16, help="turns of the longest rollout")
    parser.add_argument("--steps", type=int, default=4, help="steps; the first is not timed")
    parser.add_argument("--model", default=str(small_policy()), help="default: the small policy of the package")
    parser.add_argument("--bf16", action="store_true", help="bfloat16 autocast; weights are float32 in any case")
    parser.add_argument(
        "--budget", type=int, help="positions of a forward pass; default: those of the longest rollout"
    )
    parser.add_argument("--measure", nargs=2, metavar=("LENGTHS", "METHOD"), help="one measurement, printed as JSON")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "results" / "training_step.md")
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure(*arguments.measure, arguments)))
        return
    rate = matrix_rate() if torch.cuda.is_available() else None
    results = {}
    for kind in ("uniform", "long-tailed"):
        for method in NAMES:
            command = [sys.executable, __file__, *sys.argv[1:], "--measure", kind, method]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            results[kind, method] = json.loads(done.stdout.splitlines()[-1])
            print(kind, method, results[kind, method], flush=True)
    arguments.out.write_text(report(arguments, results, rate))
    print(f"\n{report(arguments, results, rate)}")


def report(arguments: argparse.Namespace, results: dict[tuple[str, str], dict[str, float]], rate: float | None) -> str:
    """The page of results."""
    longest = PROMPT + ACTION + (arguments.turns - 1) * (ACTION + OBSERVATION)
    sizes = f"--rollouts {arguments.rollouts} --turns {arguments.turns} --steps {arguments.steps}"
    own = arguments.model == str(small_policy())
    policy = "the policy of 1.9 million parameters that ships with the package" if own else Path(arguments.model).name
    if rate is None:
        machine = f"{platform.machine()} with {os.cpu_count()} cores, one thread"
        clock = "in processor seconds"
    else:
        machine = f"{torch.cuda.get_device_name()}, whose matrix products run at {rate / 1e12:,.0f} TFLOP/s"
        clock = "in wall-clock seconds"
    used = (
        ""
        if rate is None
        else """ *FLOPs used* are those of the tokens
(forward and backward, 6 per weight, and causal attention) divided by the GPU's rate of matrix products."""
    )
    precision = "bfloat16 autocast" if arguments.bf16 else "float32"
    budget = f"{arguments.budget or longest:,} positions per pass"
    if arguments.budget is None:
        budget += ", those of the longest rollout"
    return f"""# Training step: token budget compared with padded batches

`python benchmarks/training_step.py {sizes}`: {arguments.rollouts} rollouts of up to {longest:,} tokens, {policy},
{precision}, Python {platform.python_version()}, torch {torch.__version__}, {machine}.
Median of {arguments.steps - 1} steps, {clock}; rollouts are given, so generation costs nothing.

TRL has {arguments.rollouts // 4} rollouts in a forward pass, each padded to the longest of the batch.
The token budget is {budget}.
*Tokens* are those of the rollouts, *positions* those that forward passes computed, padding included.
*Packed* training sequences are concatenated into one row, here with `{PACKED_ATTENTION}`.
*Memory* is the peak of training minus the memory before it. With fewer rollouts per pass, TRL needs less memory and
computes as many positions: it pads a batch before it splits it.{used}

{table(results, rate)}
"""


if __name__ == "__main__":
    main()
