"""TRL's tool-style environments (`reset`, public methods that are tools, `get_reward`) behind our protocol."""

from __future__ import annotations

import asyncio
import inspect
import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from transformers import PreTrainedTokenizerBase
from transformers.utils import get_json_schema

from trl_agentic.types import StepResult


_NO_TOOLS = ("reset", "finish", "get_reward", "tasks", "close")


class ToolEnvironment:
    """Plays a TRL environment: the policy's tool calls are method calls, an answer without a call ends the episode.

    Args:
        instance (`Any`):
            Object with a `reset` method, whose other public methods are the tools. `get_reward()`, `tasks()`,
            `close()` and `finish(answer) -> StepResult` are optional and no tools: `finish` gets the text of the turn
            without a call and returns that turn's reward and `info`; the episode ends with it.
        tokenizer (`PreTrainedTokenizerBase`):
            Tokenizer that parses the model's tool calls; TRL's `add_response_schema` must know its chat template.
        chat_template_kwargs (`dict`, *optional*):
            Extra arguments of the chat template. The text with which it opens an answer is parsed as part of it.

    Raises:
        ValueError: the instance has no `reset`, or no tools.
    """

    def __init__(
        self,
        instance: Any,
        tokenizer: PreTrainedTokenizerBase,
        chat_template_kwargs: dict[str, Any] | None = None,
    ):
        methods = {name: getattr(instance, name) for name, _ in inspect.getmembers(type(instance), inspect.isfunction)}
        name = type(instance).__name__
        if "reset" not in methods:
            raise ValueError(f"The environment {name} has no `reset` method: define `reset(self, **row)`.")
        self.instance = instance
        self._tokenizer = tokenizer
        opening = [{"role": "user", "content": ""}]
        self._prefix = tokenizer.apply_chat_template(
            opening, add_generation_prompt=True, tokenize=False, **(chat_template_kwargs or {})
        )
        self._tools: dict[str, Callable[..., Any]] = {
            key: method for key, method in methods.items() if key not in _NO_TOOLS and not key.startswith("_")
        }
        if not self._tools:
            raise ValueError(
                f"The environment {name} has neither a `step` method nor public methods to use as tools: define "
                "`step(self, action) -> StepResult`, or at least one tool method with type hints and a docstring."
            )
        self._schemas = [get_json_schema(tool) for tool in self._tools.values()]

    @property
    def tools(self) -> list[Callable[..., Any]]:
        """The methods that the chat template lists."""
        return list(self._tools.values())

    def reset(self, /, **row: Any) -> str:
        """Resets the instance. Its result, if any, is appended to the last user message."""
        return self.instance.reset(**row) or ""

    def step(self, action: str) -> StepResult:
        """Runs the tool calls of one answer. The result of a failing call is its error, as in TRL.

        Raises:
            ConnectionError: a service that a tool needs is not available.
        """
        from trl.chat_template_utils import parse_response

        ids = self._tokenizer(action, add_special_tokens=False)["input_ids"]
        message = parse_response(self._tokenizer, ids, self._prefix, self._schemas)
        calls = message.get("tool_calls") or []
        if not calls:
            return self._finish(message.get("content") or "")
        results = [self._call(call["function"]) for call in calls]
        texts = [text for text, _ in results]
        valid = all(ok for _, ok in results)
        return StepResult("\n".join(texts), info={"tool_results": texts, "is_action_valid": valid})

    def reward(self) -> float:
        """The instance's own reward for the finished episode, 0 if it has no `get_reward`."""
        if not callable(getattr(self.instance, "get_reward", None)):
            return 0.0
        reward = self.instance.get_reward()
        return float(asyncio.run(_resolve(reward)) if inspect.isawaitable(reward) else reward)

    def close(self) -> None:
        """Closes the instance if it can be closed."""
        if callable(getattr(self.instance, "close", None)):
            self.instance.close()

    def _finish(self, answer: str) -> Any:
        if not callable(getattr(self.instance, "finish", None)):
            return StepResult(observation="", terminated=True)
        result = self.instance.finish(answer)
        return replace(result, terminated=True) if isinstance(result, StepResult) else result

    def _call(self, function: dict[str, Any]) -> tuple[str, bool]:
        name, arguments = function["name"], function.get("arguments") or {}
        if name not in self._tools:
            return json.dumps({"error": f"There is no tool named {name!r}."}), False
        try:
            result = self._tools[name](**(json.loads(arguments) if isinstance(arguments, str) else arguments))
            if inspect.isawaitable(result):
                result = asyncio.run(_resolve(result))
        except ConnectionError:  # not a mistake of the policy
            raise
        except Exception as error:  # the policy sees its mistake and can correct it
            return json.dumps({"error": str(error)}), False
        return str(result), True


async def _resolve(awaitable: Any) -> Any:
    return await awaitable
