"""Makes the small policy of the ALFWorld quickstart: a tokenizer, a Qwen3 of 1.9 million parameters, expert play to
imitate.

    python recipes/alfworld_warm_start.py --output_dir small_policy --use_cpu true --bf16 true

Demonstrations are played on generated training games by the scripted expert, which searches as a policy must. With
`--noise`, wrong moves are mixed in that the policy sees but is not trained to repeat, so that it learns to recover.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from copy import copy
from dataclasses import dataclass, field
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate import PartialState
from datasets import Dataset
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from tqdm.auto import tqdm
from transformers import (
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
    set_seed,
)
from trl import SFTConfig, SFTTrainer, TrlParser

from trl_agentic import GAGPOConfig, GAGPOTrainer
from trl_agentic.environments import ALFWorldEnv
from trl_agentic.environments.alfworld import Step, demonstration, generate_game
from trl_agentic.evaluation import success_by_task_type
from trl_agentic.rollout import ChatRenderer


# One token opens a message and one closes it: a turn costs four tokens more than its text.
CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
SPECIAL_TOKENS = ["<|pad|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>"]
# Whole words and whole numbers: a small model copies "drawer 12" as two tokens.
WORDS = r" ?\p{L}+| ?\p{N}+|\s+|[^\s\p{L}\p{N}]"
TRAINING: dict[str, Any] = {
    "per_device_train_batch_size": 16,
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


class Course(NamedTuple):
    """One of the courses that make the policy, each on games of its own."""

    name: str
    games: int
    learning_rate: float
    noise: float
    idle: float = 0.0
    observations: bool = False  # in the loss, too


@dataclass
class WarmStartArguments:
    """
    Parameters:
        scale (`float`, *optional*, defaults to `1.0`):
            Factor of the number of games in each course.
        idle (`float`, *optional*, defaults to `0.6`):
            Share of the moves that only look, in the play of the last course.
        hidden_size (`int`, *optional*, defaults to `192`):
            Width of the model.
        num_layers (`int`, *optional*, defaults to `4`):
            Depth of the model.
        eval_games (`int`, *optional*, defaults to `134`):
            Unseen games that the result is evaluated on.
    """

    scale: float = field(default=1.0, metadata={"help": "Factor of the number of games in each course."})
    idle: float = field(default=0.6, metadata={"help": "Share of moves that only look, in the last course."})
    hidden_size: int = field(default=192, metadata={"help": "Width of the model."})
    num_layers: int = field(default=4, metadata={"help": "Depth of the model."})
    eval_games: int = field(default=134, metadata={"help": "Unseen games that the result is evaluated on."})

    def courses(self) -> list[Course]:
        """Copying, acting, hesitating.

        Observations repeat names all the time: predicting them teaches a small model to copy, which it needs before it
        can name what it sees in an action. Then the loss is on actions alone. The last course is short and imitates a
        player who hesitates: a habit that imitation keeps and that reinforcement learning finds useless.
        """
        return [
            Course("copying", round(16000 * self.scale), 2e-3, noise=0.15, observations=True),
            Course("acting", round(12800 * self.scale), 1e-3, noise=0.1),
            Course("hesitating", round(1600 * self.scale), 5e-4, noise=0.1, idle=self.idle),
        ]


def build_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer whose vocabulary is the words of `texts`."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    bpe.decoder = decoders.ByteLevel()
    bpe.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=1024,
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


def play(game: int, seed: int, course: Course) -> list[Step]:
    """A demonstration on a generated training game."""
    rng = random.Random(seed * 10**6 + game)
    return demonstration(generate_game("train", game), rng, course.noise, course.idle)


def play_demonstrations(games: range, seed: int, course: Course) -> list[list[Step]]:
    """Demonstrations on generated training games, made by all processors."""
    with ProcessPoolExecutor(mp_context=get_context("spawn")) as pool:
        made = pool.map(partial(play, seed=seed, course=course), games, chunksize=50)
        return list(tqdm(made, f"Games for {course.name}", len(games), unit="game"))


def training_rows(
    demonstrations: list[list[Step]], chat: ChatRenderer, end: int, observations: bool
) -> Iterator[dict[str, list[int]]]:
    """Token ids exactly as a rollout records them; the loss is on the actions, but for wrong moves, and on request on
    the observations."""
    for steps in demonstrations:
        ids: list[int] = []
        labels: list[int] = []
        for k, step in enumerate(steps):
            if k == 0:
                _banner, _, first = step.observation.partition("\n\n")  # the environment leaves the banner out, too
                observed = chat.prompt_ids([{"role": "user", "content": first}])
            else:
                observed = chat.observation_ids([step.observation], ended=True)
            action = chat.encode_data(step.action) + [end]
            ids += observed + action
            labels += observed if observations else [-100] * len(observed)
            labels += action if step.imitate else [-100] * len(action)
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


def sft_defaults(output_dir: str) -> SFTConfig:
    """The training that made the shipped policy, 16 games an update however many processes share them."""
    arguments = dict(TRAINING)
    arguments["per_device_train_batch_size"] //= PartialState().num_processes
    return SFTConfig(output_dir=output_dir, **arguments)


def warm_start(arguments: WarmStartArguments, training: SFTConfig) -> Path:
    """Builds, trains and saves the policy; returns its folder."""
    set_seed(training.seed)
    out = Path(training.output_dir)
    model, first_game, losses = None, 0, {}
    for course in arguments.courses():
        games = range(first_game, first_game + course.games)
        first_game += course.games
        demonstrations = play_demonstrations(games, training.seed, course)
        if model is None:
            played = [step for steps in demonstrations[:2000] for step in steps]
            tokenizer = build_tokenizer([text for step in played for text in (step.observation, step.action)])
            model = build_model(tokenizer, arguments.hidden_size, arguments.num_layers)
            chat = ChatRenderer(tokenizer, [tokenizer.eos_token_id])
        rows = list(training_rows(demonstrations, chat, tokenizer.eos_token_id, course.observations))
        course_training = copy(training)
        course_training.learning_rate = course.learning_rate
        trainer = SFTTrainer(
            model=model,
            args=course_training,
            train_dataset=Dataset.from_list(by_length(rows, 16, training.seed)),
            processing_class=tokenizer,
        )
        losses[course.name] = trainer.train().training_loss
        model = trainer.accelerator.unwrap_model(trainer.model)
    if trainer.accelerator.is_main_process:
        # Half the size; the quickstart trains in float32 again.
        model.to(torch.bfloat16).save_pretrained(out)
        tokenizer.save_pretrained(out)
        made = {
            "script": "recipes/alfworld_warm_start.py",
            "seed": training.seed,
            **vars(arguments),
            "mean_loss": losses,
        }
        (out / "warm_start.json").write_text(json.dumps(made, indent=2) + "\n")
    trainer.accelerator.wait_for_everyone()
    return out


def evaluate(policy: Path, games: int) -> dict[str, list[int]]:
    """Wins and games by task type in unseen rooms, 50 steps a game, at temperature 0.4; added to `warm_start.json`."""
    factory = partial(
        ALFWorldEnv,
        split="valid_unseen",
        num_games=games,
        action_format="plain",
        show_admissible=False,
        instructions="",
    )
    trainer = GAGPOTrainer(
        model=str(policy),
        args=GAGPOConfig(
            output_dir=str(policy),
            bf16=False,
            beta=0.0,
            max_turn_tokens=12,
            max_completion_length=2048,
            report_to="none",
        ),
        environment_factory=factory,
    )
    rates = success_by_task_type(trainer.rollout(factory().tasks(), temperature=0.4))
    wins = {name: [rate.wins, rate.rollouts] for name, rate in rates.items()}
    if trainer.accelerator.is_main_process:
        made = json.loads((policy / "warm_start.json").read_text())
        made["valid_unseen_wins_and_games"] = wins
        (policy / "warm_start.json").write_text(json.dumps(made, indent=2) + "\n")
    return wins


if __name__ == "__main__":
    parser = TrlParser((WarmStartArguments, SFTConfig))
    parser.set_defaults(**TRAINING)
    warm_arguments, warm_training = parser.parse_args_and_config()
    print(evaluate(warm_start(warm_arguments, warm_training), warm_arguments.eval_games))
