"""The environments of a trainer: made by factories, checked once, reused from batch to batch."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable, Iterable
from concurrent.futures import wait
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from transformers import PreTrainedTokenizerBase

from trl_agentic.environments.base import Environment, check_episode, check_methods
from trl_agentic.environments.handle import EnvironmentHandle, WorkerOptions
from trl_agentic.environments.tools import ToolEnvironment


Factory = Callable[[], Any]
_CLOSE_SECONDS = 5.0


@dataclass(frozen=True)
class EnvironmentFacts:
    """What a model card tells of an environment.

    Attributes:
        name: name of its class.
        split: its attribute `split`, `None` if it has none.
        arguments: what `trl-agentic evaluate --environment` takes to make it; `None` if that cannot: it is tool-style,
            or its class is not at the top of a module that others can import.
    """

    name: str
    split: str | None
    arguments: str | None

    @property
    def tag(self) -> str:
        """`alfworld` for `ALFWorldEnv`."""
        return re.sub("(env|environment)$", "", self.name.lower()) or self.name.lower()

    def __str__(self) -> str:
        return f"`{self.name}`" + (f" (split `{self.split}`)" if self.split else "")


class EnvironmentPool:
    """Hands out one environment for each rollout and grows when a batch needs more.

    Args:
        factory (`Callable` or `dict[str, Callable]`):
            Makes an instance: an [`Environment`], or a TRL tool-style environment (no `step`). With a dictionary, a
            row's `environment` selects the factory.
        options ([`~trl_agentic.environments.handle.WorkerOptions`], *optional*):
            How environments run.

    Raises:
        ValueError: `factory` is missing or an empty dictionary, or a tool-style environment is to run in a process.
        TypeError: a factory is not callable.
    """

    def __init__(
        self,
        factory: Factory | dict[str, Factory] | None,
        options: WorkerOptions = WorkerOptions(),  # noqa: B008
    ):
        if not factory:
            raise ValueError(
                "`environment_factory` is missing: pass a callable that returns an environment, or a dictionary of "
                "them that the rows' `environment` selects from."
            )
        self._routed = isinstance(factory, dict)
        self._factories: dict[str | None, Factory] = {}
        if isinstance(factory, dict):
            self._factories.update(factory)
        else:
            self._factories[None] = factory
        for name, make in self._factories.items():
            if not callable(make):
                where = "`environment_factory`" if name is None else f"`environment_factory[{name!r}]`"
                raise TypeError(
                    f"{where} must be callable, got {type(make).__name__}. Pass the class, not an instance."
                )
        self._options = options
        self._handles: dict[str | None, list[EnvironmentHandle]] = {name: [] for name in self._factories}
        self._probes = {name: make() for name, make in self._factories.items()}
        self._tools: dict[str | None, list[Callable[..., Any]]] = {}
        self._ahead: tuple[list[dict[str, Any]], list[EnvironmentHandle]] | None = None
        if self.uses_tools and options.kind == "process":
            raise ValueError(
                "`environment_workers='process'` is not for tool-style environments: reward functions read the "
                "instances, which must be in this process. Set 'thread', or define `step(self, action) -> StepResult`."
            )

    @property
    def uses_tools(self) -> bool:
        """Whether an environment is tool-style."""
        return any(_is_tool_style(probe) for probe in self._probes.values())

    def facts(self, name: str | None) -> EnvironmentFacts:
        """What can be told of the environment of that name. Arguments are those of a `partial`."""
        probe, factory = self._probes[name], self._factories[name]
        kind = type(probe)
        facts = EnvironmentFacts(kind.__name__, getattr(probe, "split", None), None)
        if _is_tool_style(probe) or kind.__module__ == "__main__" or "<locals>" in kind.__qualname__:
            return facts
        is_ours = kind.__module__.startswith("trl_agentic.environments.")
        own = facts.tag if is_ours else f"{kind.__module__}:{kind.__qualname__}"
        options = factory.keywords if isinstance(factory, partial) else {}
        told = {key: value for key, value in options.items() if isinstance(value, str | int | float)}
        words = [f"{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in told.items()]
        return EnvironmentFacts(facts.name, facts.split, shlex.join([own, *words]))

    def is_tool_style(self, row: dict[str, Any]) -> bool:
        """Whether the environment that a row selects is tool-style."""
        return _is_tool_style(self._probes[self.name(row)])

    def tasks(self) -> list[dict[str, Any]]:
        """The environments' own task lists, for training without a dataset.

        Raises:
            ValueError: an environment has no `tasks` method, or it lists none.
        """
        rows: list[dict[str, Any]] = []
        for name, probe in self._probes.items():
            if not callable(getattr(probe, "tasks", None)):
                raise ValueError(
                    f"`train_dataset` is missing and {type(probe).__name__} has no method `tasks() -> list[dict]`: "
                    "pass a dataset with one row a task, or define `tasks`."
                )
            own = list(probe.tasks())
            if not own:
                raise ValueError(f"{type(probe).__name__}.tasks() is empty: there is nothing to train on.")
            rows += [{**row, "environment": name} for row in own] if self._routed else own
        return rows

    def check(self, rows: Iterable[dict[str, Any]]) -> None:
        """Checks each environment on its first row. Errors are those of [`check_environment`].

        Raises:
            ValueError: a row selects an environment that there is none of.
        """
        checked: set[str | None] = set()
        for row in rows:
            name = self.name(row)
            probe = self._probes[name]
            if name not in checked and not _is_tool_style(probe):
                check_methods(probe)
                handle = EnvironmentHandle(self._factories[name], replace(self._options, retries=0))
                try:
                    check_episode(handle, type(probe).__name__, self.reset_arguments(row))
                finally:
                    handle.close()
            checked.add(name)
            if len(checked) == len(self._factories):
                return

    def name(self, row: dict[str, Any]) -> str | None:
        """Name of the environment that a row selects, `None` if there is only one."""
        if not self._routed:
            return None
        name = row.get("environment")
        if name not in self._factories:
            raise ValueError(
                f"A row has `environment={name!r}`, which is not in `environment_factory`: "
                f"{sorted(map(str, self._factories))}."
            )
        return name

    def reset_arguments(self, row: dict[str, Any]) -> dict[str, Any]:
        """The columns that `reset` gets.

        All of them, if there is one environment. With a dictionary neither `environment`, which only routes, nor
        columns that are `None`: environments that share a table need not share its columns.
        """
        if not self._routed:
            return dict(row)
        return {key: value for key, value in row.items() if key != "environment" and value is not None}

    def take(
        self,
        rows: list[dict[str, Any]],
        tokenizer: PreTrainedTokenizerBase,
        chat_template_kwargs: dict[str, Any] | None = None,
    ) -> list[EnvironmentHandle]:
        """One environment for each row, all different; they are taken again by the next call.

        Those of [`reserve`] are kept for the very list of rows that it was given.
        """
        kept: list[EnvironmentHandle] = []
        if self._ahead is not None:
            known, kept = self._ahead
            if known is rows:
                self._ahead = None
                return kept
        taken: list[EnvironmentHandle] = []
        free = {name: [h for h in handles if h not in kept][::-1] for name, handles in self._handles.items()}
        for row in rows:
            name = self.name(row)
            if not free[name]:
                # What a process makes is another object than the one probed, and not tool-style.
                in_thread = partial(self._make, name, tokenizer, chat_template_kwargs)
                make = in_thread if self._options.kind == "thread" else self._factories[name]
                free[name] = [EnvironmentHandle(make, self._options)]
                self._handles[name] += free[name]
            taken.append(free[name].pop())
        return taken

    def reserve(
        self,
        rows: list[dict[str, Any]],
        tokenizer: PreTrainedTokenizerBase,
        chat_template_kwargs: dict[str, Any] | None = None,
        reset: bool = True,
    ) -> list[EnvironmentHandle]:
        """The environments that [`take`] will give for `rows`; nobody else gets them until then.

        With `reset` they begin their episodes; an error is raised by the `reset` that asks for it. What was reserved
        before and not taken is free again.
        """
        self._ahead = None
        handles = self.take(rows, tokenizer, chat_template_kwargs)
        if reset:
            for handle, row in zip(handles, rows, strict=True):
                handle.reset_ahead(**self.reset_arguments(row))
        self._ahead = rows, handles
        return handles

    def free(self) -> None:
        """Gives up what was reserved."""
        self._ahead = None

    def tools(
        self,
        row: dict[str, Any],
        tokenizer: PreTrainedTokenizerBase,
        chat_template_kwargs: dict[str, Any] | None = None,
    ) -> list[Callable[..., Any]] | None:
        """The methods that the chat template lists for a row; `None` if its environment is not tool-style."""
        if not self.is_tool_style(row):
            return None
        name = self.name(row)
        if name not in self._tools:
            self._tools[name] = ToolEnvironment(self._probes[name], tokenizer, chat_template_kwargs).tools
        return self._tools[name]

    def close(self) -> None:
        """Closes all environments; one that hangs in a `reset` that began ahead is left behind."""
        pending = [handle.pending for handles in self._handles.values() for handle in handles]
        wait([answer for answer in pending if answer is not None], timeout=_CLOSE_SECONDS)
        for handles in self._handles.values():
            while handles:
                handles.pop().close()
        while self._probes:
            probe = self._probes.popitem()[1]
            if callable(getattr(probe, "close", None)):
                probe.close()

    def _make(
        self, name: str | None, tokenizer: PreTrainedTokenizerBase, chat_template_kwargs: dict[str, Any] | None
    ) -> Environment:
        instance = self._factories[name]()
        if instance is self._probes.get(name):
            raise ValueError(
                f"`environment_factory` returned one and the same {type(instance).__name__} twice, but every rollout "
                "needs an instance of its own. Pass the class, or a function that makes a new one."
            )
        return ToolEnvironment(instance, tokenizer, chat_template_kwargs) if _is_tool_style(instance) else instance


def _is_tool_style(instance: Any) -> bool:
    return not callable(getattr(instance, "step", None))
