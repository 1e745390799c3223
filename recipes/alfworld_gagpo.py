"""Trains an agent on ALFWorld with GAGPO.

    accelerate launch --config_file recipes/accelerate/cpu.yaml recipes/alfworld_gagpo.py

Without `--config` this is the quickstart: generated games, a small policy that has imitated an expert for a while,
GAGPO, and an evaluation on unseen rooms before and after training. With the paper's protocol, on eight GPUs:

    accelerate launch --config_file recipes/accelerate/fsdp2.yaml recipes/alfworld_gagpo.py \
        --config recipes/configs/alfworld_gagpo/qwen2.5-1.5b.yaml --data $ALFWORLD_DATA
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from alfworld_warm_start import WarmStartArguments, warm_start
from datasets import Dataset
from small_policy import sft_defaults
from train_and_evaluate import model_init_kwargs, train_and_evaluate
from trl import ModelConfig, TrlParser, get_peft_config, get_quantization_config

from trl_agentic import AgenticConfig, AgenticTrainer, GAGPOConfig, GAGPOTrainer
from trl_agentic.environments import ALFWorldEnv
from trl_agentic.environments.alfworld import ALFWorldPrompt, find_games, small_policy


QUICKSTART = Path(__file__).parent / "configs" / "alfworld_gagpo" / "quickstart.yaml"


@dataclass
class ALFWorldArguments:
    """
    Parameters:
        data (`str`, *optional*):
            Folder or tar of released games, `$ALFWORLD_DATA` for instance. Games are generated without it.
        eval_split (`str`, *optional*):
            Games that the policy is evaluated on before and after training. If `None`, `"valid_unseen"`, or
            `"valid_seen"` where `data` has no unseen games.
        train_games (`int`, *optional*):
            Number of training games; all if `None`.
        eval_games (`int`, *optional*):
            Number of evaluation games; all if `None`.
        show_admissible (`bool`, *optional*, defaults to `True`):
            Whether observations list the admissible actions.
        action_format (`str`, *optional*, defaults to `"tags"`):
            `"tags"` (reasoning and action in tags) or `"plain"` (the answer is the action).
        max_steps_per_game (`int`, *optional*, defaults to `50`):
            Steps after which a game is lost in evaluation.
        max_train_steps_per_game (`int`, *optional*):
            Steps after which a training game is cut. If `None`, `max_steps_per_game`.
        backend (`str`, *optional*, defaults to `"engine"`):
            `"engine"`, or `"alfworld"` for the upstream package.
        from_scratch (`bool`, *optional*, defaults to `False`):
            Make the small policy in this run instead of loading the one that the package ships.
    """

    data: str | None = field(default=None, metadata={"help": "Folder or tar of released games."})
    eval_split: str | None = field(default=None, metadata={"help": "Split to evaluate on; unseen games if `None`."})
    train_games: int | None = field(default=None, metadata={"help": "Number of training games."})
    eval_games: int | None = field(default=None, metadata={"help": "Number of evaluation games."})
    show_admissible: bool = field(default=True, metadata={"help": "Whether to list the admissible actions."})
    action_format: str = field(
        default="tags", metadata={"help": "How answers are read.", "choices": ["tags", "plain"]}
    )
    max_steps_per_game: int = field(default=50, metadata={"help": "Steps after which a game is lost."})
    max_train_steps_per_game: int | None = field(
        default=None, metadata={"help": "Steps after which a training game is cut; as in evaluation if `None`."}
    )
    backend: str = field(default="engine", metadata={"help": "Game engine.", "choices": ["engine", "alfworld"]})
    from_scratch: bool = field(default=False, metadata={"help": "Make the small policy in this run."})


def evaluation_split(arguments: ALFWorldArguments) -> str:
    """The split that was asked for, or the hardest one that there is."""
    if arguments.eval_split is None and arguments.data is not None:
        try:
            find_games(arguments.data, "valid_unseen")
        except FileNotFoundError:
            return "valid_seen"
    return arguments.eval_split or "valid_unseen"


def environment(
    arguments: ALFWorldArguments, split: str, num_games: int | None, max_steps: int, expose_plan: bool = False
) -> Any:
    """Factory of the environments of one split."""
    return partial(
        ALFWorldEnv,
        split=split,
        data=arguments.data,
        num_games=num_games,
        backend=arguments.backend,
        max_steps=max_steps,
        show_admissible=arguments.show_admissible,
        action_format=arguments.action_format,
        instructions="" if arguments.action_format == "plain" else None,
        expose_plan=expose_plan,
    )


def main(
    arguments: ALFWorldArguments,
    training: AgenticConfig,
    model: ModelConfig,
    trainer_class: type[AgenticTrainer] = GAGPOTrainer,
    expose_plan: bool = False,
) -> None:
    out = Path(training.output_dir)
    policy = model.model_name_or_path
    if arguments.from_scratch:
        policy = str(warm_start(WarmStartArguments(), sft_defaults(str(out / "warm_start"))))
    elif policy is None:
        policy = str(small_policy())
    split = evaluation_split(arguments)
    train_steps = arguments.max_train_steps_per_game or arguments.max_steps_per_game
    factories = {
        "train": environment(arguments, "train", arguments.train_games, train_steps, expose_plan),
        "evaluation": environment(arguments, split, arguments.eval_games, arguments.max_steps_per_game),
    }
    rows = {name: [{**row, "environment": name} for row in make().tasks()] for name, make in factories.items()}
    if model.model_name_or_path is None or not training.model_init_kwargs:
        training.model_init_kwargs = model_init_kwargs(model)
    trainer = trainer_class(
        model=policy,
        args=training,
        train_dataset=Dataset.from_list(rows["train"]),
        eval_dataset=Dataset.from_list(rows["evaluation"]),
        environment_factory=factories,
        quantization_config=get_quantization_config(model),
        peft_config=get_peft_config(model),
        prompt_renderer=ALFWorldPrompt(arguments.action_format) if training.context == "window" else None,
    )
    train_and_evaluate(trainer, rows["evaluation"], "ALFWorld", "Success")


if __name__ == "__main__":
    if "--config" not in sys.argv:
        sys.argv += ["--config", str(QUICKSTART)]
    parser = TrlParser((ALFWorldArguments, GAGPOConfig, ModelConfig))
    main(*parser.parse_args_and_config())
