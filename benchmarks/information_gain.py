"""Time of a rollout's information gain: all boundaries in one pass, one pass per boundary, a log-probability pass.

All boundaries in one forward pass are compared with one forward pass per boundary and with one plain log-probability
pass over the same tokens, all in one run.

    python benchmarks/information_gain.py
    python benchmarks/information_gain.py --turns 8 --tokens 2048 --repeats 9
    python benchmarks/information_gain.py --model qwen3-4b --rollouts 8 --output information_gain_gpu.md

With `--vllm`, a vLLM engine in this process that has already read the rollouts is measured as well:

    python benchmarks/information_gain.py --vllm --output docs/results/information_gain_vllm.md

Tokens are random. Weights are random too, with the sizes of a Qwen3, unless `--model` is the folder of a checkpoint.
On a GPU the default is bfloat16. The table goes to docs/results/information_gain.md.
"""

from __future__ import annotations

import argparse
import os
import platform
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel, Qwen3Config

from trl_agentic.information_gain import answer_logprobs
from trl_agentic.rollout.engines import Request, Sampling, VLLMColocateEngine


ROOT = Path(__file__).resolve().parent.parent
BRIDGE, ANSWER = 16, 4  # tokens
BATCH = 16384  # tokens of a forward pass, for each of the methods
SIZES = {
    # The output layer has a tenth of the parameters, as in a model of 4B.
    "small": {"vocab_size": 1536, "hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 4,
              "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 64},
    "qwen3-0.6b": {"vocab_size": 151936, "hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 28,
                   "num_attention_heads": 16, "num_key_value_heads": 8, "tie_word_embeddings": True},
    "qwen3-4b": {"vocab_size": 151936, "hidden_size": 2560, "intermediate_size": 9728, "num_hidden_layers": 36,
                 "num_attention_heads": 32, "num_key_value_heads": 8, "tie_word_embeddings": True},
}  # fmt: skip


def make_model(name: str, device: str, dtype: torch.dtype) -> PreTrainedModel:
    """A model of one of the `SIZES` with random weights, or a checkpoint."""
    if name not in SIZES:
        return AutoModelForCausalLM.from_pretrained(name, dtype=dtype).to(device).eval()
    torch.manual_seed(0)
    with torch.device(device):
        config = Qwen3Config(**SIZES[name], max_position_embeddings=40960)
        return AutoModelForCausalLM.from_config(config, dtype=dtype).eval()


@torch.no_grad()
def logprob_pass(model: PreTrainedModel, rollouts: torch.Tensor) -> torch.Tensor:
    """Log-probabilities (N, T - 1) of all tokens of all rollouts (N, T), which every update needs."""
    parts = []
    for tokens in rollouts.split(max(1, BATCH // rollouts.size(1))):
        logits = model(input_ids=tokens).logits[:, :-1].float()
        parts.append(logits.log_softmax(-1).gather(2, tokens[:, 1:, None]).squeeze(2))
    return torch.cat(parts)


@torch.no_grad()
def per_boundary(
    model: PreTrainedModel, rollouts: torch.Tensor, boundaries: list[int], probe: torch.Tensor
) -> torch.Tensor:
    """Mean log-probability (N, boundaries) of the answer at the end of the probe, with a forward pass per boundary."""
    means = []
    for end in boundaries:
        tokens = torch.cat([rollouts[:, :end], probe.expand(len(rollouts), -1)], dim=1)
        parts = []
        for part in tokens.split(max(1, BATCH // tokens.size(1))):
            logits = model(input_ids=part, logits_to_keep=ANSWER + 1).logits[:, :-1].float()
            parts.append(logits.log_softmax(-1).gather(2, part[:, -ANSWER:, None]).mean(dim=(1, 2)))
        means.append(torch.cat(parts))
    return torch.stack(means, dim=1).cpu()


class PrefixCache:
    """vLLM engine with the same weights in this process."""

    def __init__(self, model: PreTrainedModel, context: int):
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        from vllm import LLM

        with tempfile.TemporaryDirectory() as folder:
            model.save_pretrained(folder)
            self._llm = LLM(
                folder, skip_tokenizer_init=True, dtype=model.dtype, max_model_len=context, enforce_eager=True,
                gpu_memory_utilization=0.4, logprobs_mode="processed_logprobs", seed=0,
            )  # fmt: skip

    def read(self, rollouts: list[list[int]], boundaries: list[int]) -> None:
        """Empties the cache and samples a token after each boundary, one after another, as turns do."""
        self._llm.reset_prefix_cache()
        for end in boundaries:
            engine = VLLMColocateEngine(self._llm, [], Sampling())
            for number, ids in enumerate(rollouts):
                engine.submit(Request(number, ids[:end], 1, seed=0), lambda sample: None)
            engine.step(1, 0)
            while self._llm.llm_engine.has_unfinished_requests():
                engine.step(1, 0)

    def mean_logprobs(
        self, rollouts: list[list[int]], boundaries: list[int], bridge: list[int], answer: list[int]
    ) -> torch.Tensor:
        texts = [(ids[:end] + bridge + answer, len(answer)) for ids in rollouts for end in boundaries]
        means = VLLMColocateEngine(self._llm, [], Sampling()).mean_logprobs(texts)
        return torch.tensor(means).view(len(rollouts), len(boundaries))


def seconds(functions: list[Callable[[], object]], repeats: int) -> list[float]:
    """The best of `repeats` times of each function, measured in turn so that other load affects all of them."""
    best = [float("inf")] * len(functions)
    for _ in range(repeats):
        for i, function in enumerate(functions):
            start = time.perf_counter()
            function()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            best[i] = min(best[i], time.perf_counter() - start)
    return best


def measure(
    model: PreTrainedModel, turns: int, length: int, count: int, repeats: int, vllm: PrefixCache | None = None
) -> str:
    """Measures one line of the table: rollouts of `length` tokens, boundaries before each turn and at the end."""
    rollouts = torch.randint(model.config.vocab_size, (count, length), device=model.device)
    probe = torch.randint(model.config.vocab_size, (BRIDGE + ANSWER,), device=model.device)
    ids, bridge, answer = rollouts.tolist(), probe[:BRIDGE].tolist(), probe[BRIDGE:].tolist()
    boundaries = [length * (t + 1) // (turns + 1) for t in range(turns + 1)]

    def one_pass() -> torch.Tensor:
        scores = answer_logprobs(model, ids, [boundaries] * count, [[answer]] * count, bridge, BATCH)
        return torch.stack(scores)

    gap = (one_pass() - per_boundary(model, rollouts, boundaries, probe)).abs().max().item()
    if model.dtype == torch.float32 and gap > 1e-4:
        raise AssertionError(f"One pass and a pass per boundary differ by {gap}.")
    ours, plain = seconds([one_pass, lambda: logprob_pass(model, rollouts)], repeats)
    [each] = seconds([lambda: per_boundary(model, rollouts, boundaries, probe)], 1)
    line = (
        f"| {turns} | {length:,} | {1e3 * ours:,.0f} | {1e3 * each:,.0f} | {1e3 * plain:,.0f} "
        f"| {each / ours:.1f}x | {ours / plain:.2f}x | {gap:.0e} |"
    )
    if vllm is not None:
        cached = float("inf")
        for _ in range(repeats):
            vllm.read(ids, boundaries)
            start = time.perf_counter()
            scores = vllm.mean_logprobs(ids, boundaries, bridge, answer)
            cached = min(cached, time.perf_counter() - start)
        line += f" {1e3 * cached:,.0f} | {ours / cached:.1f}x | {(scores - one_pass()).abs().max().item():.0e} |"
    print(line, flush=True)
    return line


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, nargs="+", default=[2, 8, 32])
    parser.add_argument("--tokens", type=int, nargs="+", default=[512, 2048, 8192], help="tokens of a rollout")
    parser.add_argument("--rollouts", type=int, default=1, help="number of rollouts that are scored together")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--vllm", action="store_true", help="measure a vLLM engine as well")
    parser.add_argument("--model", default="small", help=f"{', '.join(SIZES)} or the folder of a checkpoint")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], help="bfloat16 on a GPU, else float32")
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "results" / "information_gain.md")
    arguments = parser.parse_args()
    on_gpu = arguments.device.startswith("cuda")
    dtype = arguments.dtype or ("bfloat16" if on_gpu else "float32")
    model = make_model(arguments.model, arguments.device, getattr(torch, dtype))
    where = (
        torch.cuda.get_device_name()
        if on_gpu
        else f"{platform.machine()} with {os.cpu_count()} cores, {torch.get_num_threads()} of them used"
    )
    weights = "random weights" if arguments.model in SIZES else "the weights of a checkpoint"
    held = "one rollout" if arguments.rollouts == 1 else f"{arguments.rollouts} rollouts together"
    lines = [
        "# Information gain: time",
        "",
        f"`python benchmarks/information_gain.py`, {dtype}, torch {torch.__version__} on {where}. "
        f"A {model.config.model_type} of {model.num_parameters() / 1e6:,.1f}M parameters with {weights}; {held} of "
        f"random tokens, boundaries before each turn and at the end; a bridge of {BRIDGE} and an answer of {ANSWER} "
        f"tokens at each. Best of {arguments.repeats} runs (per boundary: one run).",
        "",
        "| turns | tokens | one pass (ms) | a pass per boundary (ms) | log-prob pass (ms) | per boundary / one pass "
        "| one pass / log-prob pass | difference (nats) |",
        "|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    vllm = None
    if arguments.vllm:
        vllm = PrefixCache(model, max(arguments.tokens) + BRIDGE + ANSWER + 1)
        lines[-2] += " vLLM, from its cache (ms) | one pass / vLLM | difference to one pass (nats) |"
        lines[-1] += "---:|---:|---:|"
    print("\n".join(lines), flush=True)
    lines += [
        measure(model, turns, length, arguments.rollouts, arguments.repeats, vllm)
        for turns in arguments.turns
        for length in arguments.tokens
    ]
    lines += [
        "",
        "*One pass* is `trl_agentic.information_gain.answer_logprobs`, *per boundary* the definition: a forward pass "
        "over each prefix and its probe. *Log-prob pass* is the pass that an update needs in any case for the old "
        f"policy's log-probabilities: one forward pass with logits for all tokens. Each has at most {BATCH:,} tokens "
        "in a forward pass. *Difference* is the largest between the first two, of the answer's mean log-probability.",
    ]
    arguments.output.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
