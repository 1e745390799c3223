"""Trains an agent that answers questions with a search engine with A2TGPO.

    accelerate launch --config_file recipes/accelerate/cpu.yaml recipes/search_a2tgpo.py

Without `--config` this is the quickstart: questions about a generated world, a small policy that imitates a
hasty player, A2TGPO, and the exact match on questions about things it has never seen before and after. With
the paper's protocol, on eight GPUs, where `trl-agentic retriever` or another server in Search-R1's form serves
Wikipedia:

    accelerate launch --config_file recipes/accelerate/fsdp2.yaml recipes/search_a2tgpo.py \
        --config recipes/configs/search_a2tgpo/qwen3-4b.yaml --retriever_url http://127.0.0.1:8000/retrieve
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from datasets import Dataset
from search_warm_start import BATCH, WarmStartArguments, warm_start
from small_policy import sft_defaults
from train_and_evaluate import model_init_kwargs, train_and_evaluate
from trl import ModelConfig, TrlParser, get_peft_config, get_quantization_config

from trl_agentic import A2TGPOConfig, A2TGPOTrainer
from trl_agentic.environments import SearchEnv
from trl_agentic.environments.search import HTTPRetriever, SearchTools, small_policy


QUICKSTART = Path(__file__).parent / "configs" / "search_a2tgpo" / "quickstart.yaml"


@dataclass
class SearchArguments:
    """
    Parameters:
        questions (`str`, *optional*, defaults to `"world"`):
            Questions to train on: `"world"` for the generated world, the name of a published data set or a file.
        eval_questions (`list[str]`, *optional*):
            Questions to evaluate on before and after training, of one or several data sets. If `None`, the test split
            of `questions`.
        task_types (`list[str]`, *optional*):
            Which questions to train and to evaluate on, by `task_type`: in the generated world `1-hop` to `4-hop`. All
            if `None`.
        train_size (`int`, *optional*):
            Number of training questions; all if `None`.
        eval_size (`int`, *optional*):
            Number of evaluation questions of each data set; all if `None`.
        retriever_url (`str`, *optional*):
            Server to search on, in the form of Search-R1's. The generated world is searched here if `None`.
        passages (`int`, *optional*, defaults to `3`):
            Passages in a result.
        max_searches (`int`, *optional*, defaults to `8`):
            Turns before the one that must answer.
        action_format (`str`, *optional*, defaults to `"tags"`):
            `"tags"` (reasoning, then a search or an answer, in tags), `"tools"` (searches are tool calls in the form
            of the model's chat template) or `"plain"` (the turn is the search or the answer).
        format_penalty (`float`, *optional*, defaults to `1.0`):
            What a training rollout is charged that does not keep to the format. The evaluation does not enforce it.
        from_scratch (`bool`, *optional*, defaults to `False`):
            Make the small policy in this run instead of loading the one that the package ships; not where
            `model_name_or_path` names a policy.
    """

    questions: str = field(default="world", metadata={"help": "Questions to train on."})
    eval_questions: list[str] | None = field(
        default=None, metadata={"help": "Questions to evaluate on; the test split of `questions` if `None`."}
    )
    task_types: list[str] | None = field(default=None, metadata={"help": "Which questions, by `task_type`."})
    train_size: int | None = field(default=None, metadata={"help": "Number of training questions."})
    eval_size: int | None = field(default=None, metadata={"help": "Number of evaluation questions of each data set."})
    retriever_url: str | None = field(
        default=None, metadata={"help": "Server to search on, as http://127.0.0.1:8000/retrieve."}
    )
    passages: int = field(default=3, metadata={"help": "Passages in a result."})
    max_searches: int = field(default=8, metadata={"help": "Turns before the one that must answer."})
    action_format: str = field(
        default="tags", metadata={"help": "How turns are read.", "choices": ["tags", "tools", "plain"]}
    )
    format_penalty: float = field(
        default=1.0, metadata={"help": "What a training rollout is charged that does not keep to the format."}
    )
    from_scratch: bool = field(default=False, metadata={"help": "Make the small policy in this run."})


def environment(arguments: SearchArguments, **options: Any) -> Any:
    """Factory of environments."""
    if arguments.action_format == "tools":
        return partial(SearchTools, top_k=arguments.passages, max_searches=arguments.max_searches, **options)
    return partial(
        SearchEnv,
        top_k=arguments.passages,
        max_searches=arguments.max_searches,
        action_format=arguments.action_format,
        instructions="" if arguments.action_format == "plain" else None,
        **options,
    )


def retriever(arguments: SearchArguments) -> HTTPRetriever | None:
    """The server to search on, after a first question to it; `None` for the generated world's own retriever.

    Raises:
        ConnectionError: it does not answer.
        ValueError: the questions are not of the generated world and there is no server.
    """
    if arguments.retriever_url is None:
        if arguments.questions != "world":
            raise ValueError(
                f"`retriever_url` is missing: the questions of {arguments.questions} need a server that searches a "
                "corpus. Start one with `trl-agentic retriever`, and give its address."
            )
        return None
    server = HTTPRetriever(arguments.retriever_url)
    server.search(["Does it answer?"], arguments.passages)
    return server


def tasks(make: Any, name: str, task_types: list[str] | None, size: int | None) -> list[dict[str, Any]]:
    """Rows of an environment of that name.

    Raises:
        ValueError: no question is of the `task_types`.
    """
    rows = [{**row, "environment": name} for row in make().tasks()]
    kept = [row for row in rows if task_types is None or row["task_type"] in task_types]
    if not kept:
        there_are = ", ".join(sorted({row["task_type"] for row in rows}))
        raise ValueError(f"`task_types` {task_types} leaves no question: there are {there_are}.")
    return kept[:size]


def main(arguments: SearchArguments, training: A2TGPOConfig, model: ModelConfig) -> None:
    make = environment(arguments, retriever=retriever(arguments))
    out = Path(training.output_dir)
    policy = model.model_name_or_path
    if policy is None and arguments.from_scratch:
        policy = str(warm_start(WarmStartArguments(), sft_defaults(str(out / "warm_start"), BATCH)))
    elif policy is None:
        policy = str(small_policy())
    train = partial(make, questions=arguments.questions, format_penalty=arguments.format_penalty)
    held_out = [
        partial(make, questions=questions, split="test", format_penalty=0.0)
        for questions in arguments.eval_questions or [arguments.questions]
    ]
    rows = [
        row
        for make_one in held_out
        for row in tasks(make_one, "evaluation", arguments.task_types, arguments.eval_size)
    ]
    if model.model_name_or_path is None or not training.model_init_kwargs:
        training.model_init_kwargs = model_init_kwargs(model)
    trainer = A2TGPOTrainer(
        model=policy,
        args=training,
        train_dataset=Dataset.from_list(tasks(train, "train", arguments.task_types, arguments.train_size)),
        eval_dataset=Dataset.from_list(rows),
        environment_factory={"train": train, "evaluation": held_out[0]},
        quantization_config=get_quantization_config(model),
        peft_config=get_peft_config(model),
    )
    train_and_evaluate(trainer, rows, f"questions with a search engine ({arguments.questions})", "Exact match")


if __name__ == "__main__":
    if "--config" not in sys.argv:
        sys.argv += ["--config", str(QUICKSTART)]
    parser = TrlParser((SearchArguments, A2TGPOConfig, ModelConfig))
    main(*parser.parse_args_and_config())
