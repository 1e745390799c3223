"""Makes the small policy of the WebShop quickstart: a tokenizer, a Qwen3 of 0.8 million parameters, scripted
play to imitate.

    python recipes/webshop_warm_start.py --output_dir small_policy --use_cpu true

It imitates a shopper that buys the first product that it finds and never reads a description. Demonstrations are
played in generated shops of their own: no goal and no product of the shop that the quickstart trains and evaluates in.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

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
# from the one to the other stays the same token; each half of a product's number; a price.
PATTERN = r" ?\[sep\] |find me |: |(?:click|search)\[|p\p{N}{2}(?=x)|x\p{N}{2}|\$[\p{N}.]+| [<>]|" + WORDS
GOALS_OF_A_SHOP = 800
BATCH = 8


class Course(NamedTuple):
    """One of the courses that make the policy, each on goals of its own."""

    name: str
    goals: int
    learning_rate: float
    forgets: float = 0.0
    glances: float = 0.0
    observations: bool = False  # in the loss, too


@dataclass
class WarmStartArguments:
    """
    Parameters:
        scale (`float`, *optional*, defaults to `1.0`):
            Factor of the number of goals in each course.
        forgets (`float`, *optional*, defaults to `0.4`):
            Probability that a choice of an option is left out, in the play of the last course.
        hidden_size (`int`, *optional*, defaults to `128`):
            Width of the model.
        num_layers (`int`, *optional*, defaults to `3`):
            Depth of the model.
        eval_goals (`int`, *optional*, defaults to `200`):
            Goals of the split `eval` that the result is evaluated on.
    """

    scale: float = field(default=1.0, metadata={"help": "Factor of the number of goals in each course."})
    forgets: float = field(default=0.4, metadata={"help": "Probability that a choice is left out, at last."})
    hidden_size: int = field(default=128, metadata={"help": "Width of the model."})
    num_layers: int = field(default=3, metadata={"help": "Depth of the model."})
    eval_goals: int = field(default=200, metadata={"help": "Goals that the result is evaluated on."})

    def courses(self) -> list[Course]:
        """Copying, acting, forgetting.

        Every page repeats the instruction, and who comes back from a product sees the same list again: predicting
        the pages teaches a small model to copy, which it needs before it can search for what it reads and click on
        what it sees. Then the loss is on actions alone. The last course
        is short and imitates a shopper who forgets to choose options: a habit that imitation keeps and that
        reinforcement learning finds costly.
        """
        return [
            Course("copying", round(6000 * self.scale), 3e-3, glances=0.3, observations=True),
            Course("acting", round(6400 * self.scale), 2e-3),
            Course("forgetting", round(1200 * self.scale), 1e-3, forgets=self.forgets),
        ]


def play(first_shop: int, course: Course, seed: int) -> list[list[ShownTurn]]:
    """Demonstrations in as many shops as the course needs."""
    played: list[list[ShownTurn]] = []
    for number in tqdm(range(course.goals), f"Goals for {course.name}", unit="goal"):
        shop, goal = divmod(number, GOALS_OF_A_SHOP)
        if goal == 0:
            engine = WebShopEngine(WebShopCatalogue.generate(seed=first_shop + shop))
        draw = random.Random(f"{seed} {first_shop + shop} {goal}")
        steps = quick_demonstration(engine, goal, draw, course.forgets, course.glances)
        played.append([ShownTurn(*step) for step in steps])
    return played


def warm_start(arguments: WarmStartArguments, training: SFTConfig) -> Path:
    """Builds, trains and saves the policy; returns its folder."""
    set_seed(training.seed)
    courses = arguments.courses()
    demonstrations, shop = [], 1  # shop 0 is the one that the policy is evaluated in
    for course in courses:
        demonstrations.append(play(shop, course, training.seed))
        shop += -(-course.goals // GOALS_OF_A_SHOP)
    shown = [turn for turns in demonstrations[0][:2000] for turn in turns]
    texts = [text for turn in shown for text in (turn.observation, turn.answer)]
    # The shop reads actions in lower case, so the policy need not know of capitals.
    tokenizer = build_tokenizer(texts, vocab_size=2048, words=PATTERN, lowercase=True)
    model = build_model(tokenizer, arguments.hidden_size, arguments.num_layers)
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
