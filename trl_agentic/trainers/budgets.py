"""Budgets of tokens that contradict one another are found before training."""

from __future__ import annotations

from trl_agentic.rollout.loop import Budgets
from trl_agentic.trainers.config import AgenticConfig


def longest_row(args: AgenticConfig, budgets: Budgets, first_prompt: int) -> int:
    """The most tokens that a training row can have, padding to a multiple included.

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
    """Checks that a turn fits into the context, a window into it, and the longest row into a micro-batch.

    Args:
        args: arguments of the trainer.
        budgets: limits of a rollout.
        first_prompt: tokens of the first prompt.
        renders: prompts in a window are those of a renderer, whose length is its own business.

    Raises:
        ValueError: it does not. The message names the field, its value and one that works.
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
    limit, longest = args.max_tokens_per_micro_batch, longest_row(args, budgets, first_prompt)
    if limit is not None and limit < longest:
        fields = "`max_context_length`" + (" or `max_completion_length`" if args.context == "full" else "")
        raise ValueError(
            f"`max_tokens_per_micro_batch` is {limit}, but a training row may have {longest} tokens. Set it to at "
            f"least {longest}, or lower {fields}: the longest that a rollout's prompt and action may be."
        )
