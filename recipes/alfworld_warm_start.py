"""Makes the small policy of the ALFWorld quickstart: a tokenizer, a Qwen3 of 1.9 million parameters, scripted play.

    python recipes/alfworld_warm_start.py --output_dir small_policy --use_cpu true

Demonstrations are played on generated training games by the scripted expert, which searches as a policy must. With
`noise`, wrong moves are mixed in that the policy sees but is not trained to repeat, so that it learns to recover. The
last course imitates a player who hesitates.
"""

from __future__ import annotations

import random
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

from small_policy import TRAINING, Lesson, ShownTurn, add_to_card, build_model, build_tokenizer, save_policy, teach
from tqdm.auto import tqdm
from transformers import set_seed
from trl import SFTConfig, TrlParser

from trl_agentic import GAGPOConfig, GAGPOTrainer
from trl_agentic.environments import ALFWorldEnv
from trl_agentic.environments.alfworld import demonstration, generate_game
from trl_agentic.evaluation import success_by_task_type


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
            Course("acting", round(11200 * self.scale), 1e-3, noise=0.25),
            Course("hesitating", round(1600 * self.scale), 5e-4, noise=0.1, idle=self.idle),
        ]


def play(game: int, seed: int, course: Course) -> list[ShownTurn]:
    """A demonstration on a generated training game."""
    rng = random.Random(seed * 10**6 + game)
    turns = []
    for step in demonstration(generate_game("train", game), rng, course.noise, course.idle):
        # The environment leaves the banner out, too.
        observation = step.observation if turns else step.observation.partition("\n\n")[2]
        turns.append(ShownTurn(observation, step.action, step.imitate))
    return turns


def lessons(courses: list[Course], seed: int) -> list[Lesson]:
    """Demonstrations on generated training games, made by all processors."""
    made, first = [], 0
    with ProcessPoolExecutor(mp_context=get_context("spawn")) as pool:
        for course in courses:
            games = range(first, first + course.games)
            first += course.games
            played = pool.map(partial(play, seed=seed, course=course), games, chunksize=50)
            episodes = list(tqdm(played, f"Games for {course.name}", len(games), unit="game"))
            made.append(Lesson(course.name, episodes, course.learning_rate, course.observations))
    return made


def warm_start(arguments: WarmStartArguments, training: SFTConfig) -> Path:
    """Builds, trains and saves the policy; returns its folder."""
    set_seed(training.seed)
    out = Path(training.output_dir)
    taught = lessons(arguments.courses(), training.seed)
    shown = (turn for turns in taught[0].episodes[:2000] for turn in turns)
    tokenizer = build_tokenizer(text for turn in shown for text in (turn.observation, turn.answer))
    model = build_model(tokenizer, arguments.hidden_size, arguments.num_layers)
    losses = teach(model, tokenizer, taught, training)
    made = {"script": "recipes/alfworld_warm_start.py", "seed": training.seed, **asdict(arguments)}
    save_policy(model, tokenizer, out, {**made, "mean_loss": losses})
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
    add_to_card(policy, {"valid_unseen_wins_and_games": wins})
    return wins


if __name__ == "__main__":
    parser = TrlParser((WarmStartArguments, SFTConfig))
    parser.set_defaults(**TRAINING)
    warm_arguments, warm_training = parser.parse_args_and_config()
    print(evaluate(warm_start(warm_arguments, warm_training), warm_arguments.eval_games))
