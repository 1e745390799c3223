"""Sources of inference engines: each opens an engine that samples with the current weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from typing import Any, Protocol

from trl_agentic.rollout.engines import Engine, Sampling, transformers_engine
from trl_agentic.rollout.prefetch import ServerEngine
from trl_agentic.rollout.weight_sync import WeightSync


class EngineSource(Protocol):
    """Opens inference engines with the current weights of the policy."""

    def open(self, sampling: Sampling) -> AbstractContextManager[Engine]:
        """Context with an engine. Every process enters it together."""
        ...

    def invalidate(self) -> None:
        """The weights have changed without an optimizer step."""
        ...


class TransformersSource:
    """Source of engines that sample with the model that is trained.

    Args:
        unwrapped: context with the model, ready for generation.
        eos_token_ids: ids that end a turn.
        pad_token_id: id of the padding.
        step: returns the number of the current optimizer step.
        any_active: reports whether any process has an active rollout, given whether this one has; only for parameters
            that are sharded, where sampling is a collective operation.
    """

    def __init__(
        self,
        unwrapped: Callable[[], AbstractContextManager[Any]],
        eos_token_ids: list[int],
        pad_token_id: int,
        step: Callable[[], int],
        any_active: Callable[[bool], bool] | None,
    ):
        self._unwrapped, self._eos_token_ids, self._pad_token_id = unwrapped, eos_token_ids, pad_token_id
        self._step, self._any_active = step, any_active
        self.samples_in_step = any_active is not None
        """Whether all processes take part in every forward pass."""

    @contextmanager
    def open(self, sampling: Sampling) -> Iterator[Engine]:
        """See [`EngineSource`]."""
        with self._unwrapped() as model:
            yield transformers_engine(
                model,
                self._eos_token_ids,
                self._pad_token_id,
                sampling,
                any_active=self._any_active,
                policy_step=self._step(),
            )

    def invalidate(self) -> None:
        """See [`EngineSource`]. The engine reads the weights that are trained."""


class VLLMSource:
    """Source of engines that sample with vLLM.

    Args:
        sync: keeps vLLM at the current weights.
        make: makes an engine for these sampling parameters.
    """

    def __init__(self, sync: WeightSync, make: Callable[[Sampling], ServerEngine]):
        self.sync, self._make = sync, make

    @contextmanager
    def open(self, sampling: Sampling) -> Iterator[Engine]:
        """See [`EngineSource`].

        Raises:
            RuntimeError: vLLM lost the current weights in the meantime.
        """
        with self.sync.current(), closing(self._make(sampling)) as engine:
            yield engine
            self.sync.check()

    def detached(self, sampling: Sampling) -> ServerEngine:
        """An engine on the weights that servers have now. The caller closes it and then calls `sync.check`."""
        with self.sync.current():
            return self._make(sampling)

    def invalidate(self) -> None:
        """See [`EngineSource`]."""
        self.sync.invalidate()
