"""The batches of an epoch, some of them read before their time."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Any


Batch = list[dict[str, Any]]


class Lookahead(Iterator[Batch]):
    """Hands on the batches of an epoch in their order, and tells which ones come later.

    Args:
        source: the batches, as the data loader gives them. With several processes each reads equally far.
    """

    def __init__(self, source: Iterator[Batch]):
        self.source = source
        self._given: deque[Batch] = deque()  # from the one that was last asked about
        self._held: deque[Batch] = deque()  # read, and not handed on yet

    def __next__(self) -> Batch:
        batch = self._held.popleft() if self._held else next(self.source)
        self._given.append(batch)
        return batch

    def after(self, batch: Batch, distance: int) -> Batch | None:
        """The batch that comes `distance` places after `batch`; `None` if the epoch ends before.

        Args:
            batch: the very list that was handed on, not before the one of the last call; of another, nothing is known.
            distance: at least 1.
        """
        while self._given and self._given[0] is not batch:
            self._given.popleft()
        if not self._given:
            return None
        while len(self._given) + len(self._held) <= distance:
            try:
                self._held.append(next(self.source))
            except StopIteration:
                return None
        return [*self._given, *self._held][distance]
