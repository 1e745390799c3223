"""Time of the information gain of a rollout: all boundaries in one pass, against one forward pass per boundary and
against one plain log-probability pass over the same tokens, all in one run.

    python benchmarks/information_gain.py
    python benchmarks/information_gain.py --turns 8 --tokens 2048 --repeats 9

A random model with the proportions of Qwen3; random tokens. The table goes to docs/results/information_gain.md.
"""

from __future__ import annotations

import argparse
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from trl_agentic.information_gain import answer_logprobs


ROOT = Path(__file__).resolve().parent.parent
BRIDGE, ANSWER = 16, 4  # tokens


def make_model(device: str) -> Qwen3ForCausalLM:
    """Four layers; the output layer has a tenth of the parameters, as in a model of 4B."""
    config = Qwen3Config(
        vocab_size=1536,
        hidden_size=256,
        intermediate_size=768,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        max_position_embeddings=40960,
    )
    torch.manual_seed(0)
    return Qwen3ForCausalLM(config).to(device).eval()


@torch.no_grad()
def logprob_pass(model: Qwen3ForCausalLM, ids: list[int]) -> torch.Tensor:
    """Log-probabilities of all tokens of a rollout, as every update needs them."""
    tokens = torch.tensor([ids], device=model.device)
    logits = model(input_ids=tokens).logits[:, :-1].float()
    return logits.log_softmax(-1).gather(2, tokens[:, 1:, None]).sum()


@torch.no_grad()
def per_boundary(
    model: Qwen3ForCausalLM, ids: list[int], boundaries: list[int], bridge: list[int], answer: list[int]
) -> torch.Tensor:
    """Mean log-probability of the answer at each boundary, from a forward pass for each."""
    target = torch.tensor(answer, device=model.device)
    means = []
    for end in boundaries:
        tokens = torch.tensor([ids[:end] + bridge + answer], device=model.device)
        logits = model(input_ids=tokens, logits_to_keep=len(answer) + 1).logits[0, :-1].float()
        means.append(logits.log_softmax(-1).gather(1, target[:, None]).mean())
    return torch.stack(means).cpu()


def seconds(functions: list[Callable[[], object]], repeats: int) -> list[float]:
    """The best of `repeats` times of each, taken in turn, so that a slow moment of the machine meets them all."""
    best = [float("inf")] * len(functions)
    for _ in range(repeats):
        for i, function in enumerate(functions):
            start = time.perf_counter()
            function()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            best[i] = min(best[i], time.perf_counter() - start)
    return best


def measure(model: Qwen3ForCausalLM, turns: int, length: int, repeats: int) -> str:
    """A line of the table: a rollout of `length` tokens with boundaries before each of its turns and at its end."""
    ids = torch.randint(model.config.vocab_size, (length,)).tolist()
    bridge, answer = ids[:BRIDGE], ids[-ANSWER:]
    boundaries = [length * (t + 1) // (turns + 1) for t in range(turns + 1)]

    def one_pass() -> torch.Tensor:
        return answer_logprobs(model, [ids], [boundaries], [[answer]], bridge)[0]

    torch.testing.assert_close(one_pass(), per_boundary(model, ids, boundaries, bridge, answer), rtol=0, atol=1e-4)
    ours, plain = seconds([one_pass, lambda: logprob_pass(model, ids)], repeats)
    [each] = seconds([lambda: per_boundary(model, ids, boundaries, bridge, answer)], 1)
    line = (
        f"| {turns} | {length:,} | {1e3 * ours:,.0f} | {1e3 * each:,.0f} | {1e3 * plain:,.0f} "
        f"| {each / ours:.1f}x | {ours / plain:.2f}x |"
    )
    print(line, flush=True)
    return line


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, nargs="+", default=[2, 8, 32])
    parser.add_argument("--tokens", type=int, nargs="+", default=[512, 2048, 8192], help="tokens of a rollout")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "results" / "information_gain.md")
    arguments = parser.parse_args()
    model = make_model(arguments.device)
    where = (
        torch.cuda.get_device_name()
        if arguments.device.startswith("cuda")
        else f"{platform.machine()} with {os.cpu_count()} cores, {torch.get_num_threads()} of them used"
    )
    lines = [
        "# Information gain: time",
        "",
        f"`python benchmarks/information_gain.py`, float32, torch {torch.__version__} on {where}. "
        f"A random Qwen3 of {sum(p.numel() for p in model.parameters()) / 1e6:.1f}M parameters; one rollout of "
        f"random tokens, boundaries before each turn and at the end; a bridge of {BRIDGE} and an answer of {ANSWER} "
        f"tokens at each. Best of {arguments.repeats} (per boundary: one).",
        "",
        "| turns | tokens | one pass (ms) | a pass per boundary (ms) | log-prob pass (ms) | per boundary / one pass "
        "| one pass / log-prob pass |",
        "|---:|---:|---:|---:|---:|---:|---:|",
    ]
    print("\n".join(lines), flush=True)
    lines += [
        measure(model, turns, length, arguments.repeats) for turns in arguments.turns for length in arguments.tokens
    ]
    lines += [
        "",
        "*One pass* is `trl_agentic.information_gain.answer_logprobs`, *per boundary* the definition: a forward pass "
        "over each prefix and its probe. *Log-prob pass* is what an update takes anyway to know the old policy's "
        "log-probabilities: one forward pass with logits for all tokens.",
    ]
    arguments.output.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
