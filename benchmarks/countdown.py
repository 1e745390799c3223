"""Game of counting down with a tool, and a policy that is trained to play it.

The environment reports how many calls of the tool are left. If it also names a way to think, the policy first counts
down from the number that the word stands for, so that its turns differ in length.
"""

from __future__ import annotations

import random
import sys
import time
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from trl import chat_template_utils


ROOT = Path(__file__).resolve().parent.parent
CONTROL = ["<|im_start|>", "<|im_end|>", "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>"]
CALL = '<tool_call>\n{"name": "tick", "arguments": {}}\n</tool_call>'
PROMPT = [{"role": "user", "content": "Count down to 0 and say Done."}]
SCENE = "The clock stands on the shelf, its hands move on, and nothing else in the room has changed since."
MOST = 40  # the longest game that the policy learns, in turns
CONTEXT = 8192  # tokens
WEIGHT = 5.0  # of an answer's first token and of the number to count from; other tokens have 1
# Choice of turns in a training episode, episodes per update, and share of the learning rate.
LESSONS = [([1, 1, 2, 3], 24, 1.0), ([3, 3, 10, MOST], 4, 0.5), ([MOST], 4, 0.2)]
LEARNED = 2e-3  # a lesson ends when the last ten losses are below
# Ways to think, and the number from which the policy then counts down: quantiles of an exponential distribution.
THOUGHTS = {
    "barely": 2, "briefly": 5, "shortly": 9, "quietly": 14, "calmly": 20, "slowly": 28, "deeply": 40, "thoroughly": 67,
}  # fmt: skip


def report(left: int, thought: str = "") -> str:
    if not left:
        return "Time is up!"
    return f"Left: {left}. Think {thought}." if thought else f"Left: {left}."


def answer(thought: str = "") -> str:
    return f"Thinking: {' '.join(map(str, range(THOUGHTS[thought], 0, -1)))}.{CALL}" if thought else CALL


class Countdown:
    """TRL environment with a tool that has to be called a number of times and has a latency."""

    latency = 0.0  # seconds, mean

    def reset(self, turns: int, number: int, thinks: bool, **row: Any) -> str:
        self.left, self.thinks = turns - 1, thinks
        self.latencies, self.thoughts = random.Random(number), random.Random(f"thoughts {number}")
        return f" {self._report()}"

    def tick(self) -> str:
        """Counts down by one."""
        if self.latency:
            time.sleep(self.latencies.expovariate(1 / self.latency))
        self.left -= 1
        return f"{SCENE} {self._report()}"

    def _report(self) -> str:
        return report(self.left, self.thoughts.choice(list(THOUGHTS)) if self.thinks else "")


def build_policy(folder: Path, updates: int, name: str | None) -> None:
    """Trains a small Qwen3, or the model of that name, to play the countdown, with TRL's template for Qwen2.5.

    Raises:
        RuntimeError: the policy has not learned to play.
    """
    model, tokenizer, rate = untrained_policy() if name is None else pretrained_policy(name)
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    draw = random.Random(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, betas=(0.9, 0.99))
    for turns, episodes, share in LESSONS:
        recent = [1.0] * 10
        for update in range(updates):
            optimizer.param_groups[0]["lr"] = share * rate * min(1.0, (update + 1) / 20)
            texts = [_episode(tokenizer, draw, draw.choice(turns)) for _ in range(episodes)]
            loss = _loss(model, tokenizer, texts)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            recent = [*recent[1:], loss.item()]
            if update % 50 == 49:
                print(f"Up to {max(turns)} turns: update {update + 1}, loss {max(recent):.4f}", flush=True)
            if max(recent) < LEARNED:
                break
        else:
            raise RuntimeError(f"The policy has not learned to count in {updates} updates: give it more `--updates`.")
    model.to(torch.bfloat16 if name else torch.float32).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def untrained_policy() -> tuple[PreTrainedModel, PreTrainedTokenizerBase, float]:
    """An untrained model, its tokenizer and a learning rate."""
    sys.path.insert(0, str(ROOT / "recipes"))
    from small_policy import build_model, build_tokenizer

    words = [SCENE, "Done.", PROMPT[0]["content"], *map(answer, THOUGHTS)]
    words += [f" {report(left, thought)}" for left in range(MOST) for thought in THOUGHTS]
    words.append(chat_template_utils.qwen2_5_chat_template)
    tokenizer = build_tokenizer(words * 3, vocab_size=2048)
    tokenizer.add_tokens([AddedToken(text, special=text.startswith("<|")) for text in CONTROL])
    tokenizer.eos_token, tokenizer.chat_template = "<|im_end|>", chat_template_utils.qwen2_5_chat_template
    torch.manual_seed(0)
    model = build_model(tokenizer, hidden_size=64, num_layers=2)
    model.config.max_position_embeddings = CONTEXT
    return model, tokenizer, 4e-3


def pretrained_policy(name: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, float]:
    """A pretrained model, its tokenizer and a learning rate."""
    tokenizer = AutoTokenizer.from_pretrained(name)
    tokenizer.eos_token, tokenizer.chat_template = "<|im_end|>", chat_template_utils.qwen2_5_chat_template
    model = AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32)
    model.generation_config.eos_token_id = model.config.eos_token_id = tokenizer.eos_token_id
    return model, tokenizer, 1e-4


def _loss(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> torch.Tensor:
    """Weighted mean of the loss over the policy's tokens in the texts."""
    batch = tokenizer(texts, padding=True, return_tensors="pt")
    weights = torch.tensor([_weights(tokenizer, ids) for ids in batch["input_ids"].tolist()])[:, 1:].flatten()
    batch, weights = batch.to(model.device), weights.to(model.device)
    logits = model(**batch).logits[:, :-1].flatten(0, 1)
    losses = cross_entropy(logits, batch["input_ids"][:, 1:].flatten(), reduction="none")
    return (losses * weights).sum() / weights.sum()


def _weights(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> list[float]:
    """Weight of each token, 0 where it is not the policy's."""
    opening, thinking = (tokenizer(text)["input_ids"] for text in ("<|im_start|>assistant\n", "Thinking:"))
    weights: list[float] = []
    speaks = False
    for i, token in enumerate(ids):
        opens = ids[i - len(opening) : i] == opening
        decides = opens or ids[i - len(thinking) : i] == thinking
        speaks = speaks or opens
        weights.append(0.0 if not speaks else WEIGHT if decides else 1.0)
        if token == tokenizer.eos_token_id:
            speaks = False
    return weights


def _episode(tokenizer: PreTrainedTokenizerBase, draw: random.Random, turns: int) -> str:
    """Text of some turns of an episode; in about half of the cases close to its end."""
    left, thoughts = draw.randrange(draw.choice([3, MOST])), draw.choice([[""], list(THOUGHTS)])
    thought = draw.choice(thoughts)
    messages: list[dict[str, Any]] = [{"role": "user", "content": f"{PROMPT[0]['content']} {report(left, thought)}"}]
    for _ in range(turns):
        if left == 0:
            messages.append({"role": "assistant", "content": "Done."})
            break
        left, called = left - 1, answer(thought)
        thought = draw.choice(thoughts)
        messages += [
            {"role": "assistant", "content": called},
            {"role": "tool", "content": f"{SCENE} {report(left, thought)}"},
        ]
    text: str = tokenizer.apply_chat_template(messages, tools=[Countdown().tick], tokenize=False)
    return text
