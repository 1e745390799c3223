"""Makes the small policy of the ALFWorld quickstart: a tokenizer, a Qwen3 of 1.9 million parameters, scripted play.

    python recipes/alfworld_warm_start.py --output_dir small_policy --use_cpu true

Demonstrations are played on generated training games by the scripted expert, which searches as a policy must. With
`noise`, wrong moves are mixed in that the policy sees but is not trained to repeat, so that it learns to recover. The
last course imitates a player who hesitates.

A pretrained model learns the game in one course, from the released games where there are some:

    accelerate launch --config_file recipes/accelerate/single_gpu.yaml recipes/alfworld_warm_start.py \
        --model_name_or_path HuggingFaceTB/SmolLM2-135M-Instruct --data $ALFWORLD_DATA --output_dir warm_start
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
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase, set_seed
from trl import SFTConfig, TrlParser

from trl_agentic import GAGPOConfig, GAGPOTrainer
from trl_agentic.environments import ALFWorldEnv
from trl_agentic.environments.alfworld import GameReference, demonstration, find_games, generate_game
from trl_agentic.evaluation import success_by_task_type


class Course(NamedTuple):
    """One of the courses that make the policy, each on games of its own as long as there are enough."""

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
        model_name_or_path (`str`, *optional*):
            A pretrained model to start from. If `None`, a small one is made.
        data (`str`, *optional*):
            Folder or tar of released games, `$ALFWORLD_DATA` for instance. Games are generated without it.
        hidden_size (`int`, *optional*, defaults to `192`):
            Width of the model.
        num_layers (`int`, *optional*, defaults to `4`):
            Depth of the model.
        eval_games (`int`, *optional*, defaults to `134`):
            Games that the result is evaluated on, all at once: unseen ones, or of `valid_seen` with `data`. 0 for
            none.
    """

    scale: float = field(default=1.0, metadata={"help": "Factor of the number of games in each course."})
    idle: float = field(default=0.6, metadata={"help": "Share of moves that only look, in the last course."})
    model_name_or_path: str | None = field(default=None, metadata={"help": "Pretrained model; a small one is made."})
    data: str | None = field(default=None, metadata={"help": "Folder or tar of released games."})
    hidden_size: int = field(default=192, metadata={"help": "Width of the model."})
    num_layers: int = field(default=4, metadata={"help": "Depth of the model."})
    eval_games: int = field(default=134, metadata={"help": "Games that the result is evaluated on."})

    def courses(self) -> list[Course]:
        """Copying, acting, hesitating.

        Observations repeat names all the time: predicting them teaches a small model to copy, which it needs before it
        can name what it sees in an action. Then the loss is on actions alone. The last course is short and imitates a
        player who hesitates: a habit that imitation keeps and that reinforcement learning finds useless. A pretrained
        model can copy.
        """
        if self.model_name_or_path is not None:
            return [Course("acting", round(16000 * self.scale), 5e-4, noise=0.15)]
        return [
            Course("copying", round(16000 * self.scale), 2e-3, noise=0.15, observations=True),
            Course("acting", round(11200 * self.scale), 1e-3, noise=0.25),
            Course("hesitating", round(1600 * self.scale), 5e-4, noise=0.1, idle=self.idle),
        ]


def play(number: int, released: GameReference | None, seed: int, course: Course) -> list[ShownTurn]:
    """A demonstration on a released training game, or on the generated one of this number."""
    game = generate_game("train", number) if released is None else released.load()
    turns = []
    for step in demonstration(game, random.Random(seed * 10**6 + number), course.noise, course.idle):
        # The environment leaves the banner out, too.
        observation = step.observation if turns else step.observation.partition("\n\n")[2]
        turns.append(ShownTurn(observation, step.action, step.imitate))
    return turns


def lessons(courses: list[Course], data: str | None, seed: int) -> list[Lesson]:
    """Demonstrations on training games, made by all processors; released games come again when all were played."""
    made, first = [], 0
    released = find_games(data, "train") if data is not None else [None]
    random.Random(seed).shuffle(released)
    with ProcessPoolExecutor(mp_context=get_context("spawn")) as pool:
        for course in courses:
            numbers = range(first, first + course.games)
            first += course.games
            games = (released[number % len(released)] for number in numbers)
            played = pool.map(partial(play, seed=seed, course=course), numbers, games, chunksize=50)
            episodes = list(tqdm(played, f"Games for {course.name}", len(numbers), unit="game"))
            made.append(Lesson(course.name, episodes, course.learning_rate, course.observations))
    return made


def untrained(arguments: WarmStartArguments, taught: list[Lesson]) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model to teach, pretrained or made small, and its tokenizer."""
    if arguments.model_name_or_path is not None:
        model = AutoModelForCausalLM.from_pretrained(arguments.model_name_or_path, dtype="float32")
        return model, AutoTokenizer.from_pretrained(arguments.model_name_or_path)
    shown = (turn for turns in taught[0].episodes[:2000] for turn in turns)
    tokenizer = build_tokenizer(text for turn in shown for text in (turn.observation, turn.answer))
    return build_model(tokenizer, arguments.hidden_size, arguments.num_layers), tokenizer


def warm_start(arguments: WarmStartArguments, training: SFTConfig) -> Path:
    """Makes, trains and saves the policy; returns its folder."""
    set_seed(training.seed)
    out = Path(training.output_dir)
    taught = lessons(arguments.courses(), arguments.data, training.seed)
    model, tokenizer = untrained(arguments, taught)
    losses = teach(model, tokenizer, taught, training)
    made = {"script": "recipes/alfworld_warm_start.py", "seed": training.seed, **asdict(arguments)}
    save_policy(model, tokenizer, out, {**made, "mean_loss": losses})
    return out


def evaluate(policy: Path, arguments: WarmStartArguments) -> dict[str, list[int]]:
    """Wins and games by task type, 50 steps a game, at temperature 0.4; added to `warm_start.json`."""
    split = "valid_unseen" if arguments.data is None else "valid_seen"
    factory = partial(
        ALFWorldEnv,
        split=split,
        data=arguments.data,
        num_games=arguments.eval_games,
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
            max_turn_tokens=24,
            max_completion_length=3584,
            model_init_kwargs={"dtype": "float32"},
            report_to="none",
        ),
        environment_factory=factory,
    )
    rates = success_by_task_type(trainer.rollout(factory().tasks(), temperature=0.4, batch_size=arguments.eval_games))
    wins = {name: [rate.wins, rate.rollouts] for name, rate in rates.items()}
    add_to_card(policy, {f"{split}_wins_and_games": wins})
    return wins


if __name__ == "__main__":
    parser = TrlParser((WarmStartArguments, SFTConfig))
    parser.set_defaults(**TRAINING)
    warm_arguments, warm_training = parser.parse_args_and_config()
    made = warm_start(warm_arguments, warm_training)
    if warm_arguments.eval_games:
        print(evaluate(made, warm_arguments))
