"""Weight synchronisation: which weights vLLM has, when it needs the current ones, and whether it still has them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol


logger = logging.getLogger(__name__)

NEVER = -1  # step number of weights that vLLM does not have


class WeightSync(Protocol):
    """Keeps vLLM at the weights of the current optimizer step."""

    def current(self) -> AbstractContextManager[None]:
        """Context in which vLLM has the current weights. Every process enters it together."""
        ...

    def invalidate(self) -> None:
        """The weights have changed without an optimizer step: they are sent before the next use."""
        ...

    def check(self) -> None:
        """Raises an error if vLLM has lost the weights that it was sent."""
        ...


class ColocateWeightSync:
    """Weight synchronisation with a vLLM engine in this process.

    Args:
        generation: TRL's `VLLMGeneration`.
        step: returns the number of the current optimizer step.
        sleeps: whether vLLM gives up its memory, the weights included, between uses. It then needs them every time.
        profile: context that measures the time of sending.
    """

    def __init__(
        self,
        generation: Any,
        step: Callable[[], int],
        sleeps: bool,
        profile: Callable[[str], AbstractContextManager[None]],
    ):
        self._generation, self._step, self._sleeps, self._profile = generation, step, sleeps, profile
        self._sent = NEVER

    @contextmanager
    def current(self) -> Iterator[None]:
        """See [`WeightSync`]."""
        if self._sleeps or self._step() != self._sent:
            with self._profile("sync_weights"):
                self._generation.sync_weights()
            self._sent = self._step()
        if self._sleeps:
            self._generation.llm.wake_up(tags=["kv_cache"])
        try:
            yield
        finally:
            if self._sleeps:
                self._generation.llm.sleep(level=2)

    def invalidate(self) -> None:
        """See [`WeightSync`]."""
        self._sent = NEVER

    def check(self) -> None:
        """See [`WeightSync`]. An engine in this process does not restart."""


class ServerWeightSync:
    """Weight synchronisation with one or more vLLM servers.

    A server that was restarted has the weights of its checkpoint. Before the rollouts of a generation it is joined
    again and gets the current ones. A restart during the rollouts raises an error, since its samples are those of
    other weights.

    Args:
        generation: TRL's `VLLMGeneration`, which sends to its `vllm_client`.
        urls: base URLs of the servers.
        clients: TRL's client of each server; `None` in processes that do not send.
        started_at: returns the start time of a server's process. A different time than before means a restart.
        step: returns the number of the current optimizer step.
        device: device of the weights that are sent.
        barrier: waits for all processes.
        profile: context that measures the time of sending.
    """

    def __init__(
        self,
        generation: Any,
        urls: Sequence[str],
        clients: Sequence[Any],
        started_at: Callable[[str], float],
        step: Callable[[], int],
        device: Any,
        barrier: Callable[[], None],
        profile: Callable[[str], AbstractContextManager[None]],
    ):
        self._generation, self._urls, self._clients, self._started_at = generation, list(urls), clients, started_at
        self._step, self._device, self._barrier, self._profile = step, device, barrier, profile
        self._starts = [started_at(url) for url in urls]
        self._sent = NEVER

    @contextmanager
    def current(self) -> Iterator[None]:
        """See [`WeightSync`]."""
        if self._step() != self._sent:
            with self._profile("sync_weights"):
                for i in reversed(range(len(self._urls))):  # TRL's own client comes last and stays
                    self._send_to(i)
                self._barrier()  # only the first process sends, and all of them sample next
            self._sent = self._step()
        yield

    def invalidate(self) -> None:
        """See [`WeightSync`]."""
        self._sent = NEVER

    def check(self) -> None:
        """See [`WeightSync`].

        Raises:
            RuntimeError: a server was restarted.
        """
        for url in self._urls:
            self.check_server(url)

    def check_server(self, url: str) -> None:
        """Raises an error if the server was restarted after it was sent weights. Can be called from any thread.

        Raises:
            RuntimeError: it was.
        """
        if self._started_at(url) != self._starts[self._urls.index(url)]:
            raise RuntimeError(
                f"The vLLM server at {url} was restarted during the rollouts and has the weights of its checkpoint. "
                "Nothing was trained on its samples: continue from the last checkpoint (`resume_from_checkpoint`)."
            )

    def _send_to(self, i: int) -> None:
        client, url = self._clients[i], self._urls[i]
        known, self._starts[i] = self._starts[i], self._started_at(url)
        if client is not None and self._starts[i] != known:
            logger.warning("The vLLM server at %s was restarted. It is joined again for weight transfer.", url)
            client.close_communicator()
            client.init_communicator(device=self._device)
        self._generation.vllm_client = client
        self._generation.sync_weights()
