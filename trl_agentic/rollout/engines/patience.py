"""Waiting for quick environments, and not for slow ones."""

from __future__ import annotations

import time


class Patience:
    """For how long environments at work are waited for before the next forward pass, to be served together.

    Up to two forward passes, as long as all of them answer in time; each time that one does not, a quarter as long.
    The first time, when environments are reset, a second.
    """

    least_most = 0.02  # seconds

    def __init__(self) -> None:
        self._allowed = self._most = 1.0
        self._since: float | None = time.perf_counter()  # when environments were called last; `None`: that is settled

    def left(self, busy: int) -> float:
        """Seconds to wait for the `busy` environments, 0 to go on without them."""
        if self._since is None:
            return 0.0
        if busy and (left := self._since + self._allowed - time.perf_counter()) > 0:
            return left
        self._since = None
        self._allowed = self._allowed / 4 if busy else min(2 * self._allowed, self._most)
        return 0.0

    def passed(self, seconds: float, any_ended: bool) -> None:
        """A forward pass took so long; if a turn ended in it, its environment was called."""
        self._most = max(self.least_most, 2 * seconds)
        self._allowed = min(self._allowed, self._most)
        if any_ended:
            self._since = time.perf_counter()
