"""Environment pool of a trainer: environments are made by factories, checked once and reused for every batch."""

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
class EnvironmentMetadata:
    """Environment metadata for the model card.

    Attributes:
        name: name of its class.
        split: its attribute `split`, `None` if it has none.
        arguments: arguments of `trl-agentic evaluate --environment` that make it; `None` if it cannot: the environment
            is tool-style, or its class is not at the top level of an importable module.
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
    """Pool that provides one environment for each rollout and grows when a batch needs more.

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
        self._reserved: tuple[int, list[EnvironmentHandle]] | None = None  # of a generation number
        self._tokenizer: PreTrainedTokenizerBase | None = None
        self._chat_template_kwargs: dict[str, Any] | None = None
        if self.uses_tools and options.kind == "process":
            raise ValueError(
                "`environment_workers='process'` is not for tool-style environments: reward functions read the "
                "instances, which must be in this process. Set 'thread', or define `step(self, action) -> StepResult`."
            )

    @property
    def uses_tools(self) -> bool:
        """Whether an environment is tool-style."""
        return any(_is_tool_style(probe) for probe in self._probes.values())

    def use_chat(self, tokenizer: PreTrainedTokenizerBase, chat_template_kwargs: dict[str, Any] | None) -> None:
        """Sets the tokenizer and the chat template arguments that tool-style environments parse answers with."""
        self._tokenizer, self._chat_template_kwargs = tokenizer, chat_template_kwargs

    def metadata(self, name: str | None) -> EnvironmentMetadata:
        """Metadata of the environment of that name. Arguments are those of a `partial`."""
        probe, factory = self._probes[name], self._factories[name]
        kind = type(probe)
        metadata = EnvironmentMetadata(kind.__name__, getattr(probe, "split", None), None)
        if _is_tool_style(probe) or kind.__module__ == "__main__" or "<locals>" in kind.__qualname__:
            return metadata
        is_ours = kind.__module__.startswith("trl_agentic.environments.")
        own = metadata.tag if is_ours else f"{kind.__module__}:{kind.__qualname__}"
        options = factory.keywords if isinstance(factory, partial) else {}
        simple = {key: value for key, value in options.items() if isinstance(value, str | int | float)}
        words = [f"{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in simple.items()]
        return EnvironmentMetadata(metadata.name, metadata.split, shlex.join([own, *words]))

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
                    "pass a dataset with one row per task, or define `tasks`."
                )
            own = list(probe.tasks())
            if not own:
                raise ValueError(f"{type(probe).__name__}.tasks() is empty: there is nothing to train on.")
            rows += [{**row, "environment": name} for row in own] if self._routed else own
        return rows

    def check(self, rows: Iterable[dict[str, Any]], names: Iterable[str | None] = ()) -> None:
        """Plays a short episode in each environment that `rows` select, on the first such row.

        Args:
            rows: dataset rows.
            names: further values of the column `environment`, which must exist.

        Raises:
            ValueError: a row selects an environment that does not exist, or as in [`check_environment`].
            TypeError: as in [`check_environment`].
        """
        checked: set[str | None] = set()
        for row in rows:
            name = self.name(row)
            if name not in checked and not _is_tool_style(self._probes[name]):
                probe = self._probes[name]
                check_methods(probe)
                handle = EnvironmentHandle(self._factories[name], replace(self._options, retries=0))
                try:
                    check_episode(handle, type(probe).__name__, self.reset_arguments(row))
                finally:
                    handle.close()
            checked.add(name)
            if len(checked) == len(self._factories):
                break
        for name in names:
            self.name({"environment": name})

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
        """Columns that are passed to `reset`.

        With one environment these are all columns. With a dictionary, `environment`, which only routes, and columns
        that are `None` are left out: environments that share a table need not share its columns.
        """
        if not self._routed:
            return dict(row)
        return {key: value for key, value in row.items() if key != "environment" and value is not None}

    def take(self, rows: list[dict[str, Any]]) -> list[EnvironmentHandle]:
        """Returns one environment for each row, all different. The next call may return the same ones again.

        Environments that [`reserve`] holds back are not among them.
        """
        reserved = self._reserved[1] if self._reserved is not None else []
        taken: list[EnvironmentHandle] = []
        free = {name: [h for h in handles if h not in reserved][::-1] for name, handles in self._handles.items()}
        for row in rows:
            name = self.name(row)
            if not free[name]:
                # The instance in a process is another object than the probe, and it is not tool-style.
                make = partial(self._make, name) if self._options.kind == "thread" else self._factories[name]
                free[name] = [EnvironmentHandle(make, self._options)]
                self._handles[name] += free[name]
            taken.append(free[name].pop())
        return taken

    def reserve(self, generation: int, rows: list[dict[str, Any]], reset: bool) -> list[EnvironmentHandle]:
        """Holds back one environment for each row until [`take_reserved`] or [`release`].

        Args:
            generation: number of the generation that will play these rows.
            rows: dataset rows of this process.
            reset: whether the episodes start now. The `reset` of the rollout then raises an error of its `reset`.
        """
        self.release()
        handles = self.take(rows)
        if reset:
            for handle, row in zip(handles, rows, strict=True):
                handle.prefetch_reset(**self.reset_arguments(row))
        self._reserved = generation, handles
        return handles

    def take_reserved(self, generation: int) -> list[EnvironmentHandle] | None:
        """Returns the environments reserved for a generation, `None` if there are none."""
        if self._reserved is None or self._reserved[0] != generation:
            return None
        handles, self._reserved = self._reserved[1], None
        return handles

    def release(self) -> None:
        """Ends the reservation, if there is one. Prefetched resets are discarded."""
        if self._reserved is not None:
            for handle in self._reserved[1]:
                handle.discard_prefetched()
            self._reserved = None

    def tools(self, row: dict[str, Any]) -> list[Callable[..., Any]] | None:
        """Methods that the chat template lists for a row; `None` if its environment is not tool-style."""
        if not self.is_tool_style(row):
            return None
        name = self.name(row)
        if name not in self._tools:
            self._tools[name] = self._with_tools(self._probes[name]).tools
        return self._tools[name]

    def close(self) -> None:
        """Closes all environments. An environment that hangs in a prefetched `reset` is abandoned."""
        pending = [handle.pending for handles in self._handles.values() for handle in handles]
        wait([answer for answer in pending if answer is not None], timeout=_CLOSE_SECONDS)
        for handles in self._handles.values():
            while handles:
                handles.pop().close()
        while self._probes:
            probe = self._probes.popitem()[1]
            if callable(getattr(probe, "close", None)):
                probe.close()

    def _make(self, name: str | None) -> Environment:
        instance = self._factories[name]()
        if instance is self._probes.get(name):
            raise ValueError(
                f"`environment_factory` returned the same {type(instance).__name__} twice, but every rollout needs "
                "its own instance. Pass the class, or a function that makes a new one."
            )
        return self._with_tools(instance) if _is_tool_style(instance) else instance

    def _with_tools(self, instance: Any) -> ToolEnvironment:
        if self._tokenizer is None:
            raise RuntimeError("`use_chat` must be called before a tool-style environment is played.")
        return ToolEnvironment(instance, self._tokenizer, self._chat_template_kwargs)


def _is_tool_style(instance: Any) -> bool:
    return not callable(getattr(instance, "step", None))
