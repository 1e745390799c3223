"""Trains an agent on WebShop with GAGPO.

    accelerate launch --config_file recipes/accelerate/cpu.yaml recipes/webshop_gagpo.py

Without `--config` this is the quickstart: a generated shop, a small policy that imitates a scripted shopper for a
while, GAGPO, and an evaluation on held-out goals before and after. With the comparisons' protocol, on eight GPUs:

    accelerate launch --config_file recipes/accelerate/fsdp2.yaml recipes/webshop_gagpo.py \
        --config recipes/configs/webshop_gagpo/qwen2.5-1.5b.yaml --data_dir $WEBSHOP_DATA
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from datasets import Dataset
from small_policy import sft_defaults
from train_and_evaluate import model_init_kwargs, train_and_evaluate
from trl import ModelConfig, TrlParser, get_peft_config, get_quantization_config
from webshop_warm_start import BATCH, WarmStartArguments, warm_start

from trl_agentic import AgenticConfig, AgenticTrainer, GAGPOConfig, GAGPOTrainer
from trl_agentic.environments import WebShopEnv
from trl_agentic.environments.webshop import WebShopPrompt, small_policy


QUICKSTART = Path(__file__).parent / "configs" / "webshop_gagpo" / "quickstart.yaml"


@dataclass
class WebShopArguments:
    """
    Parameters:
        data_dir (`str`, *optional*):
            Folder of the official files. Products are generated without it.
        subset (`str`, *optional*):
            Which of them, where the folder has several: `"_1000"` for instance.
        num_products (`int`, *optional*, defaults to `1000`):
            Number of generated products.
        human_goals (`bool`, *optional*, defaults to `False`):
            Goals that people wrote instead of synthetic ones.
        eval_split (`str`, *optional*, defaults to `"test"`):
            Goals that the policy is evaluated on before and after training: `"test"` or `"eval"`.
        train_goals (`int`, *optional*):
            Number of training goals; all if `None`.
        eval_goals (`int`, *optional*):
            Number of evaluation goals; all of the split if `None`.
        mode (`str`, *optional*, defaults to `"text"`):
            How a page reads: `"text"` or `"text_rich"`.
        show_admissible (`bool`, *optional*, defaults to `True`):
            Whether observations list the admissible actions.
        action_format (`str`, *optional*, defaults to `"tags"`):
            `"tags"` (reasoning and action in tags) or `"plain"` (the answer is the action).
        reward_mode (`str`, *optional*, defaults to `"success"`):
            What training pays: `"success"` (10 for a purchase that scores 1) or `"score"` (10 times the score).
        anchor_options (`bool`, *optional*, defaults to `True`):
            Whether the state for grouping includes the options that were chosen.
        max_steps_per_goal (`int`, *optional*, defaults to `15`):
            Steps after which an episode is truncated.
        backend (`str`, *optional*, defaults to `"engine"`):
            `"engine"`, `"upstream"` for the original shop in `$WEBSHOP_PATH`, or the address of the original's site.
        from_scratch (`bool`, *optional*, defaults to `False`):
            Make the small policy in this run instead of loading the one that the package ships; not where
            `model_name_or_path` names a policy.
    """

    data_dir: str | None = field(default=None, metadata={"help": "Folder of the official files."})
    subset: str | None = field(default=None, metadata={"help": "Which of the files, such as `_1000`."})
    num_products: int = field(default=1000, metadata={"help": "Number of generated products."})
    human_goals: bool = field(default=False, metadata={"help": "Goals that people wrote."})
    eval_split: str = field(default="test", metadata={"help": "Goals to evaluate on.", "choices": ["test", "eval"]})
    train_goals: int | None = field(default=None, metadata={"help": "Number of training goals."})
    eval_goals: int | None = field(default=None, metadata={"help": "Number of evaluation goals."})
    mode: str = field(default="text", metadata={"help": "How a page reads.", "choices": ["text", "text_rich"]})
    show_admissible: bool = field(default=True, metadata={"help": "Whether to list the admissible actions."})
    action_format: str = field(
        default="tags", metadata={"help": "How answers are read.", "choices": ["tags", "plain"]}
    )
    reward_mode: str = field(
        default="success", metadata={"help": "Reward of a purchase.", "choices": ["success", "score"]}
    )
    anchor_options: bool = field(default=True, metadata={"help": "Whether chosen options are part of a state."})
    max_steps_per_goal: int = field(default=15, metadata={"help": "Steps after which an episode is truncated."})
    backend: str = field(default="engine", metadata={"help": "The shop: `engine`, `upstream` or http://..."})
    from_scratch: bool = field(default=False, metadata={"help": "Make the small policy in this run."})


def environment(arguments: WebShopArguments, split: str, num_goals: int | None) -> Any:
    """Factory of the environments of one split."""
    return partial(
        WebShopEnv,
        split=split,
        data_dir=arguments.data_dir,
        subset=arguments.subset,
        num_products=arguments.num_products,
        human_goals=arguments.human_goals,
        num_goals=num_goals,
        mode=arguments.mode,
        max_steps=arguments.max_steps_per_goal,
        show_admissible=arguments.show_admissible,
        action_format=arguments.action_format,
        reward_mode=arguments.reward_mode,
        anchor_options=arguments.anchor_options,
        backend=arguments.backend,
        instructions="" if arguments.action_format == "plain" else None,
    )


def main(
    arguments: WebShopArguments,
    training: AgenticConfig,
    model: ModelConfig,
    trainer_class: type[AgenticTrainer] = GAGPOTrainer,
) -> None:
    out = Path(training.output_dir)
    policy = model.model_name_or_path
    if policy is None and arguments.from_scratch:
        policy = str(warm_start(WarmStartArguments(), sft_defaults(str(out / "warm_start"), BATCH)))
    elif policy is None:
        policy = str(small_policy())
    factories = {
        "train": environment(arguments, "train", arguments.train_goals),
        "evaluation": environment(arguments, arguments.eval_split, arguments.eval_goals),
    }
    shops = {name: make() for name, make in factories.items()}
    rows = {name: [{**row, "environment": name} for row in shop.tasks()] for name, shop in shops.items()}
    ceiling = shops["evaluation"].ceiling()
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
        prompt_renderer=WebShopPrompt(arguments.action_format) if training.context == "window" else None,
    )
    reachable = None if ceiling is None else ceiling._asdict()
    train_and_evaluate(trainer, rows["evaluation"], "WebShop", "Success", reachable)


if __name__ == "__main__":
    if "--config" not in sys.argv:
        sys.argv += ["--config", str(QUICKSTART)]
    parser = TrlParser((WebShopArguments, GAGPOConfig, ModelConfig))
    main(*parser.parse_args_and_config())
