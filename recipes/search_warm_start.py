"""Makes the small policy of the search quickstart: a tokenizer, a Qwen3 of a million parameters, scripted play.

    python recipes/search_warm_start.py --output_dir small_policy --use_cpu true

Demonstrations are played in generated worlds other than the quickstart's, by the scripted oracle, which reads what a
policy reads. With `noise`, searches that go astray are mixed in that the policy sees but is not trained to repeat. The
last course imitates an oracle in haste.
"""

from __future__ import annotations

import math
import random
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from small_policy import TRAINING, Lesson, ShownTurn, add_to_card, build_model, build_tokenizer, save_policy, teach
from tqdm.auto import tqdm
from transformers import set_seed
from trl import SFTConfig, TrlParser

from trl_agentic import A2TGPOConfig, A2TGPOTrainer
from trl_agentic.environments import SearchEnv
from trl_agentic.environments.search import demonstration
from trl_agentic.evaluation import success_by_task_type


HOPS = ("1-hop", "2-hop")
QUESTIONS_A_WORLD = 2000  # of so many hops
BATCH = 32
# What the policy knows of the environment: one passage a search, four turns before the one that must answer.
ENVIRONMENT: dict[str, Any] = {"action_format": "plain", "instructions": "", "top_k": 1, "max_searches": 4}


class Course(NamedTuple):
    """One of the courses that make the policy, each in worlds of its own, which are numbered from `first_world`."""

    name: str
    first_world: int
    questions: int
    learning_rate: float
    noise: float
    haste: float = 0.0
    observations: bool = False  # in the loss, too


@dataclass
class WarmStartArguments:
    """
    Parameters:
        scale (`float`, *optional*, defaults to `1.0`):
            Factor of the number of questions in each course.
        haste (`float`, *optional*, defaults to `0.7`):
            How often the play of the last course answers with what was found first, where there is more to find.
        hidden_size (`int`, *optional*, defaults to `128`):
            Width of the model.
        num_layers (`int`, *optional*, defaults to `4`):
            Depth of the model.
    """

    scale: float = field(default=1.0, metadata={"help": "Factor of the number of questions in each course."})
    haste: float = field(default=0.7, metadata={"help": "How often the last course's play answers too early."})
    hidden_size: int = field(default=128, metadata={"help": "Width of the model."})
    num_layers: int = field(default=4, metadata={"help": "Depth of the model."})

    def courses(self) -> list[Course]:
        """Copying, acting, haste.

        Passages repeat names all the time: predicting them teaches a small model to copy, which it needs before it can
        put what it reads into a query. Then the loss is on actions alone. The last course is short and imitates a
        player who answers too early: a habit that imitation keeps and that reinforcement learning can do away with.
        """
        return [
            Course("copying", 1, round(48000 * self.scale), 3e-3, noise=0.15, observations=True),
            Course("acting", 25, round(48000 * self.scale), 2e-3, noise=0.1),
            Course("haste", 49, round(12000 * self.scale), 5e-4, noise=0.1, haste=self.haste),
        ]


def play(course: Course, seed: int) -> list[list[ShownTurn]]:
    """Demonstrations on training questions, equally many in each world."""
    worlds = range(course.first_world, course.first_world + math.ceil(course.questions / QUESTIONS_A_WORLD))
    episodes = []
    for world in tqdm(worlds, f"Worlds for {course.name}"):
        env, rng = SearchEnv(seed=world, **ENVIRONMENT), random.Random(seed * 10**6 + world)
        rows = [row for row in env.tasks() if row["task_type"] in HOPS]
        for row in rows[: math.ceil(course.questions / len(worlds))]:
            steps = demonstration(env, row, rng, course.noise, course.haste)
            if steps is not None:  # one that ran out of searches teaches nothing
                episodes.append([ShownTurn(step.observation, step.action, step.imitate) for step in steps])
    random.Random(seed).shuffle(episodes)
    return episodes


def warm_start(arguments: WarmStartArguments, training: SFTConfig) -> Path:
    """Builds, trains and saves the policy; returns its folder."""
    set_seed(training.seed)
    out = Path(training.output_dir)
    lessons = [
        Lesson(course.name, play(course, training.seed), course.learning_rate, course.observations)
        for course in arguments.courses()
    ]
    shown = (turn for turns in lessons[0].episodes[:4000] for turn in turns)
    tokenizer = build_tokenizer((text for turn in shown for text in (turn.observation, turn.answer)), vocab_size=4096)
    model = build_model(tokenizer, arguments.hidden_size, arguments.num_layers)
    losses = teach(model, tokenizer, lessons, training)
    made = {"script": "recipes/search_warm_start.py", "seed": training.seed, **asdict(arguments), "mean_loss": losses}
    save_policy(model, tokenizer, out, made)
    return out


def evaluate(policy: Path) -> dict[str, list[int]]:
    """Exact matches and questions by number of hops, on the quickstart's held-out questions, greedy; added to
    `warm_start.json`."""
    factory = partial(SearchEnv, split="test", **ENVIRONMENT)
    trainer = A2TGPOTrainer(
        model=str(policy),
        args=A2TGPOConfig(
            output_dir=str(policy), bf16=False, max_turn_tokens=12, max_completion_length=512, report_to="none"
        ),
        environment_factory=factory,
    )
    rows = [row for row in factory().tasks() if row["task_type"] in HOPS]
    rates = success_by_task_type(trainer.rollout(rows, temperature=0.0))
    wins = {name: [rate.wins, rate.rollouts] for name, rate in rates.items()}
    add_to_card(policy, {"exact_matches_and_questions": wins})
    return wins


if __name__ == "__main__":
    parser = TrlParser((WarmStartArguments, SFTConfig))
    parser.set_defaults(**{**TRAINING, "per_device_train_batch_size": BATCH})
    print(evaluate(warm_start(*parser.parse_args_and_config())))
