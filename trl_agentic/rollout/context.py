"""What the policy reads before each turn, and from trajectories to the rows that the model is trained on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from trl_agentic.rollout.chat import ChatRenderer, content_text
from trl_agentic.types import Prompt, Trajectory, Turn, View


Renderer = Callable[[View], list[dict[str, Any]]]


@dataclass(frozen=True, slots=True)
class Context:
    """How much of a rollout its prompts show.

    Attributes:
        history_length: pairs of observation and action that stand before the current observation; `None` for all.
        renderer: makes the messages of every prompt from a [`View`]. If `None`, the prompt is the conversation itself,
            of which the oldest turns are left out.
    """

    history_length: int | None = None
    renderer: Renderer | None = None


FULL = Context()


def first_messages(task: dict[str, Any], observation: str | None) -> list[dict[str, Any]]:
    """Messages of a rollout's first prompt: the row's `prompt`, then the first observation.

    An observation is appended to the last message if that is the user's, as TRL does, and is a user message of its own
    otherwise. `prompt` may be absent, a list of messages or a string.

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
    """The messages that a rollout began with; an empty one if it failed before there was any, or if only a renderer
    knows what the policy read."""
    observation = trajectory.turns[0].observation if trajectory.turns else None
    if observation or trajectory.task.get("prompt"):
        return first_messages(trajectory.task, observation)
    return [{"role": "user", "content": ""}]


def completion_messages(trajectory: Trajectory, observation_role: str) -> list[dict[str, str]]:
    """The messages after the first prompt: answers and observations in turn; an empty answer if there was none."""
    if not trajectory.turns:
        return [{"role": "assistant", "content": ""}]
    messages: list[dict[str, str]] = []
    for k, turn in enumerate(trajectory.turns):
        if k:
            messages.append({"role": observation_role, "content": turn.observation})
        messages.append({"role": "assistant", "content": turn.action})
    return messages


def first_prompt(
    chat: ChatRenderer, context: Context, task: dict[str, Any], observation: str, tools: list[Any] | None = None
) -> Prompt:
    """Prompt of a rollout's first turn.

    Args:
        chat: renders messages.
        context: how prompts are made.
        task: the dataset row.
        observation: what `reset` returned.
        tools: tools that the chat template lists.

    Raises:
        TypeError: the renderer returned no messages.
        ValueError: there is nothing to show.
    """
    if context.renderer is None:
        messages = first_messages(task, observation)
    else:
        messages = _rendered(context.renderer, View(task, 1, observation, [], observation, {}))
    return Prompt(chat.prompt_ids(messages, tools=tools), extends=False)


def next_prompt(
    chat: ChatRenderer,
    context: Context,
    trajectory: Trajectory,
    observation: str,
    row_ids: list[int],
    tools: list[Any] | None = None,
    role: str = "user",
) -> Prompt:
    """Prompt of the turn after the last one of a trajectory.

    As long as nothing is left out it continues what the policy read and sampled. After that it is made anew: by the
    renderer, or as a shorter conversation that begins with the first prompt, says how many steps are left out, and
    ends with the last turns. Their ids are those that were sampled, without special tokens except the one that ends a
    turn; all that a renderer shows is data, of which no special token can come.

    Args:
        chat: renders messages.
        context: how prompts are made.
        trajectory: the turns so far, at least one, the last one with its `info`.
        observation: the answer to the last action.
        row_ids: all ids of the run of turns that the last one ends, its action included.
        tools: tools that the chat template lists.
        role: role of the messages that carry observations.

    Raises:
        TypeError: the renderer returned no messages.
    """
    turns, n = trajectory.turns, context.history_length
    if context.renderer is not None:
        history = turns if n is None else turns[len(turns) - min(n, len(turns)) :]
        first = turns[0].observation
        view = View(trajectory.task, len(turns) + 1, first, history, observation, turns[-1].info)
        ids = chat.prompt_ids(_rendered(context.renderer, view), tools=tools)
        if len(ids) > len(row_ids) and ids[: len(row_ids)] == row_ids:
            return Prompt(ids[len(row_ids) :], extends=True)
        return Prompt(ids, extends=False)
    if n is None or n >= len(turns):
        return Prompt(observation_ids(chat, turns[-1], observation, role), extends=True)
    return Prompt(_window(chat, trajectory, observation, n, tools, role), extends=False)


def _window(
    chat: ChatRenderer, trajectory: Trajectory, observation: str, n: int, tools: list[Any] | None, role: str
) -> list[int]:
    """The first prompt, then the last `n` turns; what was seen before the first of them joins the first prompt."""
    turns = trajectory.turns
    left_out = len(turns) - n
    answers = [*(turn.observation for turn in turns[1:]), observation]  # to each turn's action
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
        turn: the turn that was answered, with its `info`.
        answer: the observation.
        role: role of the messages that carry observations.
    """
    return chat.observation_ids(_contents(turn, answer, role), ended=not turn.cut, role=role)


def _contents(turn: Turn, answer: str, role: str) -> list[str]:
    """Texts of the messages that answer a turn's action."""
    return turn.info["tool_results"] if role == "tool" else [answer]


def _rendered(renderer: Renderer, view: View) -> list[dict[str, Any]]:
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


@dataclass(slots=True)
class Row:
    """One training sequence: a prompt, then sampled and observed tokens.

    Attributes:
        rollout: index of the trajectory that the row comes from.
        prompt_ids: ids before the first action.
        completion_ids: ids from the first action on.
        turn_ids: for each completion id, the turn of the trajectory that sampled it, -1 for an observed id.
        logprobs: for each completion id, its sampling log-probability, 0 for an observed id; `None` if unknown.
    """

    rollout: int
    prompt_ids: list[int]
    completion_ids: list[int] = field(default_factory=list)
    turn_ids: list[int] = field(default_factory=list)
    logprobs: list[float] | None = None


def trajectory_rows(trajectory: Trajectory, rollout: int) -> list[Row]:
    """Rows of one trajectory. A maximal run of turns that extend one another shares a row.

    With the full history in every prompt that is one row for the rollout: prompt, action, observation, action, ...
    A trajectory without turns has no rows.
    """
    rows: list[Row] = []
    for k, turn in enumerate(trajectory.turns):
        if not turn.extends or not rows:
            rows.append(Row(rollout, prompt_ids=turn.prompt_ids, logprobs=None if turn.logprobs is None else []))
            observed = []
        else:
            observed = turn.prompt_ids
        row = rows[-1]
        row.completion_ids = row.completion_ids + observed + turn.action_ids
        row.turn_ids = row.turn_ids + [-1] * len(observed) + [k] * len(turn.action_ids)
        if row.logprobs is not None:
            if turn.logprobs is None:
                raise ValueError(f"Turn {k} of rollout {rollout} has no log-probabilities, but earlier turns have.")
            row.logprobs = row.logprobs + [0.0] * len(observed) + turn.logprobs
    return rows
