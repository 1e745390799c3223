"""What the recipes that make a small policy share: a tokenizer of whole words, a Qwen3 of a million or two parameters,
and supervised training on scripted play, turn by turn as a rollout records it.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Iterator, Sequence
from copy import copy
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate import PartialState
from datasets import Dataset
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from torch.nn.functional import cross_entropy
from transformers import (
    DataCollatorForSeq2Seq,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
    Trainer,
)
from trl import SFTConfig

from trl_agentic.rollout import ChatRenderer


# One token opens a message and one closes it: a turn costs four tokens more than its text.
CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
SPECIAL_TOKENS = ["<|pad|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>"]
# Whole words and whole numbers: a small model copies "drawer 12" as two tokens.
WORDS = r" ?\p{L}+| ?\p{N}+|\s+|[^\s\p{L}\p{N}]"
BATCH = 16
TRAINING: dict[str, Any] = {
    "per_device_train_batch_size": BATCH,
    "num_train_epochs": 1,
    "lr_scheduler_type": "linear",
    "warmup_steps": 50,
    "adam_beta2": 0.99,
    "max_length": None,
    "train_sampling_strategy": "sequential",
    "gradient_checkpointing": False,
    "bf16": False,
    "save_strategy": "no",
    "logging_steps": 50,
    "report_to": "none",
    "seed": 0,
}


class ShownTurn(NamedTuple):
    """A turn of scripted play.

    Attributes:
        observation: what the player reads.
        answer: what it says.
        imitate: whether the policy is trained to say so.
    """

    observation: str
    answer: str
    imitate: bool = True


class Lesson(NamedTuple):
    """Episodes to learn from, one after another, and how."""

    name: str
    episodes: Sequence[Sequence[ShownTurn]]
    learning_rate: float
    observations: bool = False  # in the loss, too


def build_tokenizer(
    texts: Iterable[str], vocab_size: int = 1024, words: str = WORDS, lowercase: bool = False
) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer whose vocabulary is the words of `texts`; `words` is the pattern of a word."""
    bpe = Tokenizer(models.BPE())
    if lowercase:
        bpe.normalizer = normalizers.Lowercase()
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(words), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    bpe.decoder = decoders.ByteLevel()
    bpe.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=SPECIAL_TOKENS,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe, eos_token="<|end|>", pad_token="<|pad|>", clean_up_tokenization_spaces=False
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def build_model(tokenizer: PreTrainedTokenizerBase, hidden_size: int, num_layers: int) -> Qwen3ForCausalLM:
    """An untrained Qwen3 for the tokenizer's vocabulary."""
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=hidden_size,
        intermediate_size=8 * hidden_size // 3 // 32 * 32,
        num_hidden_layers=num_layers,
        num_attention_heads=hidden_size // 32,
        num_key_value_heads=hidden_size // 32,
        head_dim=32,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = Qwen3ForCausalLM(config)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    return model


def training_sequences(
    episodes: Iterable[Sequence[ShownTurn]], tokenizer: PreTrainedTokenizerBase, observations: bool
) -> Iterator[dict[str, list[int]]]:
    """Token ids exactly as a rollout records them; the loss is on the answers that are to be imitated, and on request
    on the observations."""
    end: int = tokenizer.eos_token_id
    chat = ChatRenderer(tokenizer, [end])
    for turns in episodes:
        ids: list[int] = []
        labels: list[int] = []
        for k, turn in enumerate(turns):
            if k == 0:
                observed = chat.prompt_ids([{"role": "user", "content": turn.observation}])
            else:
                observed = chat.observation_ids([turn.observation], ended=True)
            answer = chat.encode_data(turn.answer) + [end]
            ids += observed + answer
            labels += observed if observations else [-100] * len(observed)
            labels += answer if turn.imitate else [-100] * len(answer)
        yield {"input_ids": ids, "labels": labels}


def by_length(rows: list[dict[str, list[int]]], batch: int, seed: int) -> list[dict[str, list[int]]]:
    """The rows in batches of about equal length; a row moves by 50 batches at most."""
    rng, ordered = random.Random(seed), []
    for start in range(0, len(rows), 50 * batch):
        near = sorted(rows[start : start + 50 * batch], key=lambda row: len(row["input_ids"]))
        batches = [near[i : i + batch] for i in range(0, len(near), batch)]
        rng.shuffle(batches)
        ordered += [row for one in batches for row in one]
    return ordered


def sft_defaults(output_dir: str, batch: int = BATCH) -> SFTConfig:
    """The training that made the shipped policies, `batch` episodes an update however many processes share them."""
    arguments = {**TRAINING, "per_device_train_batch_size": batch // PartialState().num_processes}
    return SFTConfig(output_dir=output_dir, **arguments)


class Imitation(Trainer):
    """Next-token loss that computes logits only where there is a label: few tokens of an episode are answers."""

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, torch.Tensor],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | None = None,
    ) -> torch.Tensor:
        labels = inputs["labels"][:, 1:]
        counted = labels != -100
        hidden = model(
            input_ids=inputs["input_ids"],
            attention_mask=inputs["attention_mask"],
            output_hidden_states=True,
            logits_to_keep=1,
        ).hidden_states[-1][:, :-1]
        head = self.accelerator.unwrap_model(model).lm_head
        return cross_entropy(head(hidden[counted]), labels[counted])


def teach(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, lessons: Iterable[Lesson], training: SFTConfig
) -> dict[str, float]:
    """Trains the model on one lesson after another; returns the mean loss of each."""
    losses = {}
    batch = training.per_device_train_batch_size * PartialState().num_processes
    for lesson in lessons:
        rows = list(training_sequences(lesson.episodes, tokenizer, lesson.observations))
        course = copy(training)
        course.learning_rate = lesson.learning_rate
        trainer = Imitation(
            model=model,
            args=course,
            train_dataset=Dataset.from_list(by_length(rows, batch, training.seed)),
            data_collator=DataCollatorForSeq2Seq(tokenizer),
        )
        losses[lesson.name] = trainer.train().training_loss
    return losses


def save_policy(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, out: Path, made: dict[str, Any]) -> None:
    """Saves both, and how they were made as `warm_start.json`. Half the size; recipes train in float32 again."""
    state = PartialState()
    if state.is_main_process:
        model.to(torch.bfloat16).save_pretrained(out)
        tokenizer.save_pretrained(out)
        (out / "warm_start.json").write_text(json.dumps(made, indent=2) + "\n")
    state.wait_for_everyone()


def add_to_card(out: Path, made: dict[str, Any]) -> None:
    """Adds to `warm_start.json`."""
    if PartialState().is_main_process:
        known = json.loads((out / "warm_start.json").read_text())
        (out / "warm_start.json").write_text(json.dumps({**known, **made}, indent=2) + "\n")
