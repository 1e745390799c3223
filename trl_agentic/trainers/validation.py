"""Checks of a trainer's arguments, tasks and budgets, all before training. Each error names the field and the fix."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

from datasets import Dataset, IterableDataset
from transformers import PreTrainedTokenizerBase, ProcessorMixin
from trl.chat_template_utils import (
    add_response_schema,
    get_training_chat_template,
    is_chat_template_prefix_preserving,
    supports_tool_calling,
)

from trl_agentic.environments.pool import EnvironmentPool
from trl_agentic.rollout.loop import Budgets
from trl_agentic.trainers.checkpoints import check_output_dir
from trl_agentic.trainers.config import OWN_LOSS_TYPES, AgenticConfig
from trl_agentic.trainers.rewards import episode_return


def checked_arguments(args: Any, processing_class: Any, prompt_renderer: Any) -> AgenticConfig:
    """Checks a trainer's arguments and returns `args`.

    Args:
        args, processing_class, prompt_renderer: arguments of the trainer.

    Raises:
        TypeError: `args` is no `AgenticConfig`, or the model is not a text model.
        ValueError: there is a renderer for prompts that are not rendered.
        OSError: `output_dir` cannot be written.
    """
    if not isinstance(args, AgenticConfig):
        raise TypeError(f"`args` must be an `AgenticConfig`, got {type(args).__name__}.")
    if isinstance(processing_class, ProcessorMixin):
        raise TypeError("Only text models are supported: pass a tokenizer as `processing_class`.")
    if prompt_renderer is not None and args.context != "window":
        raise ValueError(f"`prompt_renderer` needs `context='window'`, but `context` is {args.context!r}.")
    if args.should_save:
        check_output_dir(args.output_dir)
    return args


def check_clip_scales(args: AgenticConfig, trainer_class: Any, base_class: Any) -> None:
    """Checks that the loss reads the clip ranges of single turns if an algorithm defines them.

    Args:
        args: arguments of the trainer.
        trainer_class: class of the trainer.
        base_class: the class that defines the default of `turn_clip_scales`.

    Raises:
        ValueError: it does not.
    """
    if trainer_class.turn_clip_scales is not base_class.turn_clip_scales and not args.uses_own_loss:
        raise ValueError(
            f"`{trainer_class.__name__}.turn_clip_scales` has no effect on TRL's `loss_type={args.loss_type!r}`, "
            f"which has one clip range. Set `loss_type` to one of {', '.join(OWN_LOSS_TYPES)}."
        )


def checked_rows(
    dataset: Dataset | IterableDataset, args: AgenticConfig, pool: EnvironmentPool
) -> list[dict[str, Any]]:
    """Checks the size of a dataset and the environments that it names, and returns its first rows.

    Raises:
        ValueError: the dataset is too small, or a row selects an environment that does not exist.
    """
    check_size(dataset, args)
    rows = list(itertools.islice(iter(dataset), 64))
    has_names = isinstance(dataset, Dataset) and "environment" in dataset.column_names
    pool.check(rows, dataset.unique("environment") if has_names else ())
    return rows


def reward_functions(reward_funcs: Any, args: AgenticConfig) -> tuple[list[Callable[..., Any]], list[float]]:
    """The user's reward functions and the environments' own one, which is the last, with their weights.

    Raises:
        ValueError: `reward_weights` does not fit the user's functions.
    """
    functions = list(reward_funcs) if isinstance(reward_funcs, list) else [reward_funcs] if reward_funcs else []
    weights = args.reward_weights if args.reward_weights is not None else [1.0] * len(functions)
    if len(weights) != len(functions):
        raise ValueError(f"`reward_weights` has {len(weights)} values for {len(functions)} reward functions.")
    return [*functions, episode_return], [*weights, 1.0]


def processing_classes(given: Any) -> Any:
    """The processing classes of the user's reward functions, and `None` for the environments' own one."""
    if given is None:
        return None
    return [*(given if isinstance(given, list) else [given]), None]


def check_nonfinite_update(args: AgenticConfig, is_deepspeed: bool) -> None:
    """Checks that updates can be skipped if they are to be.

    Raises:
        ValueError: they cannot.
    """
    if is_deepspeed and args.nonfinite_update == "skip":
        raise ValueError("`nonfinite_update='skip'` cannot reset DeepSpeed's gradients: set 'stop'.")


def task_dataset(tasks: list[dict[str, Any]]) -> Dataset:
    """A dataset of tasks with all of their columns; a column that a task does not have is `None`."""
    columns = dict.fromkeys(column for task in tasks for column in task)
    return Dataset.from_list([{column: task.get(column) for column in columns} for task in tasks])


def check_size(dataset: Dataset | IterableDataset, args: AgenticConfig) -> None:
    """Checks that there is at least one batch of prompts. TRL would drop an incomplete one and train for zero steps.

    Raises:
        ValueError: the dataset is empty or smaller than a batch.
    """
    if next(iter(dataset), None) is None:
        raise ValueError("`train_dataset` is empty: there is nothing to train on.")
    if not isinstance(dataset, Dataset):
        return
    prompts = args.generation_batch_size // args.num_generations
    if len(dataset) < prompts:
        raise ValueError(
            f"`train_dataset` has {len(dataset)} rows, but one batch takes {prompts} (`generation_batch_size` "
            f"{args.generation_batch_size} / `num_generations` {args.num_generations}). Add rows, lower "
            "`per_device_train_batch_size` or `gradient_accumulation_steps`, or raise `num_generations`."
        )


def longest_sequence(args: AgenticConfig, budgets: Budgets, first_prompt: int) -> int:
    """Maximum number of tokens of a training sequence, padding to a multiple included.

    Args:
        args: arguments of the trainer.
        budgets: limits of a rollout.
        first_prompt: tokens of the first prompt.
    """
    longest = budgets.max_context
    if args.context == "full":
        longest = min(longest, first_prompt + budgets.max_rollout_tokens)
    multiple = args.pad_to_multiple_of or 1
    return -(-longest // multiple) * multiple


def check_budgets(args: AgenticConfig, budgets: Budgets, first_prompt: int, renders: bool = False) -> None:
    """Checks that a turn and a window fit into the context, and the longest sequence into a micro-batch.

    Args:
        args: arguments of the trainer.
        budgets: limits of a rollout.
        first_prompt: tokens of the first prompt.
        renders: whether a renderer makes the prompts of a window, which decides on their length itself.

    Raises:
        ValueError: one of them does not fit. The message names the field, its value and one that works.
    """
    turn, context = budgets.max_turn_tokens, budgets.max_context
    if first_prompt + turn > context:
        raise ValueError(
            f"The first prompt has {first_prompt} tokens and a turn may have {turn} (`max_turn_tokens`), but the "
            f"context holds {context} (`max_context_length`). Shorten the prompt, lower `max_turn_tokens` or raise "
            "`max_context_length`."
        )
    shown = min(args.history_length, args.max_turns - 1) if args.context == "window" else 0
    needed = min((shown + 1) * turn, budgets.max_rollout_tokens) + first_prompt
    if needed > context and not renders:
        fitting = (context - first_prompt) // turn - 1
        raise ValueError(
            f"`history_length` is {args.history_length}, but a first prompt of {first_prompt} tokens and {shown + 1} "
            f"turns of up to {turn} (`max_turn_tokens`) are {needed} tokens and the context holds {context} "
            f"(`max_context_length`), observations not counted. Set `history_length` to at most {fitting}, lower "
            f"`max_turn_tokens`, or raise `max_context_length` to more than {needed}."
        )
    limit, longest = args.max_tokens_per_micro_batch, longest_sequence(args, budgets, first_prompt)
    if limit is not None and limit < longest:
        fields = "`max_context_length`" + (" or `max_completion_length`" if args.context == "full" else "")
        raise ValueError(
            f"`max_tokens_per_micro_batch` is {limit}, but a training sequence may have {longest} tokens. Set it to "
            f"at least {longest}, or lower {fields}: the longest that a rollout's prompt and action may be."
        )


def tool_chat_template(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """Prepares a tokenizer for tools, as TRL does for its `tools`: a parser of tool calls and a suitable template.

    Returns:
        The chat template to use in place of the tokenizer's own, which would rewrite earlier turns; `None` if its own
        one is suitable.

    Raises:
        ValueError: the chat template does not support tools.
    """
    if not supports_tool_calling(tokenizer):
        raise ValueError("The chat template does not support tool calling, which a tool-style environment needs.")
    parsers = ("response_template", "response_schema")
    if all(getattr(tokenizer, name, None) is None for name in parsers):
        add_response_schema(tokenizer)
    template: str | None = None
    if not is_chat_template_prefix_preserving(tokenizer):
        template = get_training_chat_template(tokenizer)
    return template


def check_failures(errors: list[str | None], max_share: float) -> None:
    """Checks how many rollouts failed. A few of them are left out; if most fail, the run must stop.

    Args:
        errors: traceback of each rollout, `None` for one that did not fail.
        max_share: share that may fail.

    Raises:
        RuntimeError: more failed, or all of them.
    """
    failed = [error for error in errors if error is not None]
    if not failed or (len(failed) < len(errors) and len(failed) <= max_share * len(errors)):
        return
    if len(failed) == len(errors):
        raise RuntimeError(f"All {len(errors)} rollouts failed. The first error:\n{failed[0]}")
    raise RuntimeError(
        f"{len(failed)} of {len(errors)} rollouts failed, more than `max_failed_rollouts` ({max_share:g}) allows. The "
        f"first error:\n{failed[0]}"
    )
