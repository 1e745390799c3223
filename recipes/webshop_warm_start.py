"""Makes the small policy of the WebShop quickstart: a tokenizer, a Qwen3 of 0.8 million parameters, scripted
play to imitate.

    python recipes/webshop_warm_start.py --output_dir small_policy --use_cpu true

It imitates a shopper that buys the first product that it finds and never reads a description, and in the end one
that forgets a choice now and then, a habit for training to break. Demonstrations are played in generated shops of
their own: no goal and no product of the shop that the quickstart trains and evaluates in.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from small_policy import (
    TRAINING,
    WORDS,
    Lesson,
    ShownTurn,
    add_to_card,
    build_model,
    build_tokenizer,
    save_policy,
    teach,
)
from tqdm.auto import tqdm
from transformers import set_seed
from trl import SFTConfig, TrlParser

from trl_agentic import GAGPOConfig, GAGPOTrainer
from trl_agentic.environments import WebShopEnv
from trl_agentic.environments.webshop import WebShopCatalogue, WebShopEngine, quick_demonstration


# One token each: what opens a piece of a page or an action, with the space after it, so that a word that is copied
# from the one to the other stays the same token; what opens a list; a price. A product's number is three, of ten each:
# to copy one of a hundred takes a small model ten times as long to learn.
NUMBER = r"p\p{N}(?=\p{N}x)|\p{N}(?=x\p{N})|x\p{N}{2}"
PATTERN = rf"next > \[sep\] | ?\[sep\] |find me |: |(?:click|search)\[|{NUMBER}|\$[\p{{N}}.]+| [<>]|" + WORDS
GOALS_OF_A_SHOP = 800
BATCH = 16


class Course(NamedTuple):
    """One of the courses that make the policy, each on goals of its own."""

    name: str
    goals: int
    learning_rate: float = 1.5e-3
    lists_only: bool = False  # the first product of a list is opened, and nothing else
    observations: bool = False  # in the loss, too
    forgets: float = 0.0  # probability that the shopper leaves out a choice


@dataclass
class WarmStartArguments:
    """
    Parameters:
        scale (`float`, *optional*, defaults to `1.0`):
            Factor of the number of goals in each course.
        hidden_size (`int`, *optional*, defaults to `128`):
            Width of the model.
        num_layers (`int`, *optional*, defaults to `3`):
            Depth of the model.
        eval_goals (`int`, *optional*, defaults to `200`):
            Goals of the split `eval` that the result is evaluated on.
    """

    scale: float = field(default=1.0, metadata={"help": "Factor of the number of goals in each course."})
    hidden_size: int = field(default=128, metadata={"help": "Width of the model."})
    num_layers: int = field(default=3, metadata={"help": "Depth of the model."})
    eval_goals: int = field(default=200, metadata={"help": "Goals that the result is evaluated on."})

    def courses(self) -> list[Course]:
        """Opening, copying, acting, forgetting.

        A product's number is the hardest to learn: it has no meaning and stands on one page, among nine others. So
        the first course is that page and that click alone. In the second the loss is on pages, too, which repeat the
        instruction and one another: what a small model needs to learn before it can search for what it reads. Then it
        is on actions alone, until the policy shops as it was shown. Last comes a shopper who forgets one choice in
        four, in few goals and small steps: the skill stays, and to use it is left to training.
        """
        return [
            Course("opening", round(8000 * self.scale), lists_only=True),
            Course("copying", round(3200 * self.scale), observations=True),
            Course("acting", round(12000 * self.scale)),
            Course("forgetting", round(1600 * self.scale), learning_rate=3e-4, forgets=0.25),
        ]


def play(first_shop: int, course: Course, seed: int) -> list[list[ShownTurn]]:
    """Demonstrations in as many shops as the course needs."""
    played: list[list[ShownTurn]] = []
    for number in tqdm(range(course.goals), f"Goals for {course.name}", unit="goal"):
        shop, goal = divmod(number, GOALS_OF_A_SHOP)
        if goal == 0:
            engine = WebShopEngine(WebShopCatalogue.generate(seed=first_shop + shop))
        draw = random.Random(f"{seed} {first_shop + shop} {goal}")
        steps = quick_demonstration(engine, goal, draw, course.forgets)
        played.append([ShownTurn(*step) for step in (steps[1:2] if course.lists_only else steps)])
    return played


def warm_start(arguments: WarmStartArguments, training: SFTConfig) -> Path:
    """Builds, trains and saves the policy; returns its folder."""
    set_seed(training.seed)
    courses = arguments.courses()
    demonstrations, shop = [], 1  # shop 0 is the one that the policy is evaluated in
    for course in courses:
        demonstrations.append(play(shop, course, training.seed))
        shop += -(-course.goals // GOALS_OF_A_SHOP)
    shown = [turn for turns in demonstrations[1][:2000] for turn in turns]
    texts = [text for turn in shown for text in (turn.observation, turn.answer)]
    # The shop reads actions in lower case, so the policy need not know of capitals.
    tokenizer = build_tokenizer(texts, vocab_size=2048, words=PATTERN, lowercase=True)
    model = build_model(tokenizer, arguments.hidden_size, arguments.num_layers)
    # Far apart at the start: embeddings of unpredictable numbers become similar, and can then no longer be copied.
    torch.nn.init.normal_(model.get_input_embeddings().weight, std=0.1)
    lessons: Iterator[Lesson] = (
        Lesson(course.name, turns, course.learning_rate, course.observations)
        for course, turns in zip(courses, demonstrations, strict=True)
    )
    losses = teach(model, tokenizer, lessons, training)
    made = {"script": "recipes/webshop_warm_start.py", "seed": training.seed, **vars(arguments), "mean_loss": losses}
    save_policy(model, tokenizer, Path(training.output_dir), made)
    return Path(training.output_dir)


def evaluate(policy: Path, goals: int) -> dict[str, Any]:
    """Success and mean score on held-out goals, 15 steps each, at temperature 0.4; added to `warm_start.json`."""
    factory = partial(
        WebShopEnv, split="eval", num_goals=goals, action_format="plain", show_admissible=False, instructions=""
    )
    trainer = GAGPOTrainer(
        model=str(policy),
        args=GAGPOConfig(
            output_dir=str(policy),
            bf16=False,
            beta=0.0,
            max_turn_tokens=32,
            max_completion_length=3072,
            report_to="none",
        ),
        environment_factory=factory,
    )
    trajectories = trainer.rollout(factory().tasks(), temperature=0.4)
    scores = [trajectory.score or 0.0 for trajectory in trajectories]
    result = {
        "goals": len(scores),
        "purchases_that_score_1": sum(score == 1.0 for score in scores),
        "mean_score": round(sum(scores) / len(scores), 4),
    }
    add_to_card(policy, {"eval": result})
    return result


if __name__ == "__main__":
    parser = TrlParser((WarmStartArguments, SFTConfig))
    parser.set_defaults(**{**TRAINING, "per_device_train_batch_size": BATCH})
    warm_arguments, warm_training = parser.parse_args_and_config()
    print(evaluate(warm_start(warm_arguments, warm_training), warm_arguments.eval_goals))
