"""Prompts: what the policy reads before each turn, with the full history or a window of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from trl_agentic.rollout.chat import ChatRenderer, content_text
from trl_agentic.types import Prompt, PromptView, Trajectory, Turn


PromptRenderer = Callable[[PromptView], list[dict[str, Any]]]
"""Makes the messages of a prompt from the visible part of a rollout."""


@dataclass(frozen=True, slots=True)
class PromptPolicy:
    """Policy for prompts: how much of a rollout each of them shows.

    Attributes:
        history_length: pairs of action and observation before the current observation; `None` for all.
        renderer: makes the messages of every prompt from a [`~trl_agentic.types.PromptView`]. If `None`, the prompt is
            the conversation itself, without its oldest turns.
    """

    history_length: int | None = None
    renderer: PromptRenderer | None = None


FULL = PromptPolicy()
"""Every prompt shows the whole rollout."""


def first_messages(task: dict[str, Any], observation: str | None) -> list[dict[str, Any]]:
    """Messages of a rollout's first prompt: the row's `prompt`, then the first observation.

    An observation is appended to the last message if that is a user message, as TRL does; otherwise it becomes a user
    message. `prompt` may be absent, a list of messages or a string.

    Raises:
        ValueError: there is neither a prompt nor an observation.
    """
    prompt = task.get("prompt") or []
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else [dict(m) for m in prompt]
    if observation:
        if messages and messages[-1]["role"] == "user":
            content = messages[-1]["content"]
            text = content if isinstance(content, str) else "".join(part.get("text", "") for part in content)
            messages[-1]["content"] = text + observation
        else:
            messages.append({"role": "user", "content": observation})
    if not messages:
        raise ValueError(
            "A rollout needs a first prompt: `reset` returned nothing and the row has no `prompt` column."
        )
    return messages


def prompt_messages(trajectory: Trajectory) -> list[dict[str, Any]]:
    """Messages that a rollout began with; one empty message if it failed before that, or if only a renderer knows
    what the policy read."""
    observation = trajectory.turns[0].observation if trajectory.turns else None
    if observation or trajectory.task.get("prompt"):
        return first_messages(trajectory.task, observation)
    return [{"role": "user", "content": ""}]


def completion_messages(trajectory: Trajectory, observation_role: str) -> list[dict[str, str]]:
    """Messages after the first prompt: actions and observations alternate; one empty action if there are no turns."""
    if not trajectory.turns:
        return [{"role": "assistant", "content": ""}]
    messages: list[dict[str, str]] = []
    for k, turn in enumerate(trajectory.turns):
        if k:
            messages.append({"role": observation_role, "content": turn.observation})
        messages.append({"role": "assistant", "content": turn.action})
    return messages


def first_prompt(
    chat: ChatRenderer, policy: PromptPolicy, task: dict[str, Any], observation: str, tools: list[Any] | None = None
) -> Prompt:
    """Prompt of a rollout's first turn.

    Args:
        chat: renders messages.
        policy: how prompts are made.
        task: the dataset row.
        observation: first observation, as `reset` returned it.
        tools: tools that the chat template lists.

    Raises:
        TypeError: the renderer returned no messages.
        ValueError: there is nothing to show.
    """
    if policy.renderer is None:
        messages = first_messages(task, observation)
    else:
        messages = _rendered(policy.renderer, PromptView(task, 1, observation, [], observation, {}))
    return Prompt(chat.prompt_ids(messages, tools=tools), extends=False)


def next_prompt(
    chat: ChatRenderer,
    policy: PromptPolicy,
    trajectory: Trajectory,
    observation: str,
    context_ids: list[int],
    tools: list[Any] | None = None,
    role: str = "user",
) -> Prompt:
    """Prompt of the turn after the last one of a trajectory.

    While no turn is left out, it extends the ids that the policy read and sampled. After that it is rendered again: by
    the renderer, or as a shorter conversation that begins with the first prompt, states how many steps are left out
    and ends with the last turns. Their ids are those that were sampled, without special tokens except the end-of-turn
    token. Text that a renderer shows is data, which never becomes a special token.

    Args:
        chat: renders messages.
        policy: how prompts are made.
        trajectory: the turns so far, at least one, the last one with its `info`.
        observation: observation after the last action.
        context_ids: ids of the prompt and action of the last turn, and of the turns that it extends.
        tools: tools that the chat template lists.
        role: role of the messages that carry observations.

    Raises:
        TypeError: the renderer returned no messages.
    """
    turns, n = trajectory.turns, policy.history_length
    if policy.renderer is not None:
        history = turns if n is None else turns[len(turns) - min(n, len(turns)) :]
        first = turns[0].observation
        view = PromptView(trajectory.task, len(turns) + 1, first, history, observation, turns[-1].info)
        ids = chat.prompt_ids(_rendered(policy.renderer, view), tools=tools)
        if len(ids) > len(context_ids) and ids[: len(context_ids)] == context_ids:
            return Prompt(ids[len(context_ids) :], extends=True)
        return Prompt(ids, extends=False)
    if n is None or n >= len(turns):
        return Prompt(observation_ids(chat, turns[-1], observation, role), extends=True)
    return Prompt(_window(chat, trajectory, observation, n, tools, role), extends=False)


def _window(
    chat: ChatRenderer, trajectory: Trajectory, observation: str, n: int, tools: list[Any] | None, role: str
) -> list[int]:
    """The first prompt, then the last `n` turns. The observation before the first of them joins the first prompt."""
    turns = trajectory.turns
    left_out = len(turns) - n
    answers = [*(turn.observation for turn in turns[1:]), observation]  # after each turn's action
    note = f"This is step {len(turns) + 1}. Steps 1 to {left_out} are left out"
    note = f"{note}; step {left_out + 1} began with:" if n else f"{note}. You see now:"
    seen = "\n".join(_contents(turns[left_out - 1], answers[left_out - 1], role))
    messages = first_messages(trajectory.task, turns[0].observation)
    if messages[-1]["role"] == "user":
        messages[-1]["content"] = f"{content_text(messages[-1]['content'])}\n\n{note}\n\n{seen}"
    else:
        messages.append({"role": "user", "content": f"{note}\n\n{seen}"})
    ids = chat.prompt_ids(messages, tools=tools)
    for turn, answer in zip(turns[left_out:], answers[left_out:], strict=True):
        ids += chat.echo_ids(turn.action_ids, ended=not turn.cut) + observation_ids(chat, turn, answer, role)
    return ids


def observation_ids(chat: ChatRenderer, turn: Turn, answer: str, role: str = "user") -> list[int]:
    """Ids from a turn's action to the next one, in a conversation.

    Args:
        chat: renders messages.
        turn: the turn, with the `info` of its step.
        answer: observation after the turn's action.
        role: role of the messages that carry observations.
    """
    return chat.observation_ids(_contents(turn, answer, role), ended=not turn.cut, role=role)


def _contents(turn: Turn, answer: str, role: str) -> list[str]:
    """Texts of the messages that follow a turn's action."""
    return turn.info["tool_results"] if role == "tool" else [answer]


def _rendered(renderer: PromptRenderer, view: PromptView) -> list[dict[str, Any]]:
    messages = renderer(view)
    if (
        not isinstance(messages, list)
        or not messages
        or not all(isinstance(message, dict) and "role" in message for message in messages)
    ):
        raise TypeError(
            "`prompt_renderer` must return a list of messages ({'role': ..., 'content': ...}), got "
            f"{str(messages)[:200]!r}."
        )
    return messages
