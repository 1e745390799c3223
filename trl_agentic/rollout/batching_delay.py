"""The delay before a forward pass, in which environments that are working can still join it."""

from __future__ import annotations

import time


class BatchingDelay:
    """Decides how long an engine waits for environments that are working before its next forward pass.

    The wait starts when environments are called, and ends as soon as none of them is working. Environments that answer
    at once therefore always share a forward pass, which does not depend on the clock. The limit of the wait is
    `max(minimum, passes * duration of the last pass)` seconds. It applies in full as long as all environments answer
    within it, is divided by `backoff` each time that one does not, and doubles again each time that all do.

    Args:
        passes (`float`, *optional*, defaults to `2.0`):
            Longest wait, in durations of the last forward pass.
        minimum (`float`, *optional*, defaults to `0.02`):
            Seconds to which that product is raised where it is smaller.
        backoff (`float`, *optional*, defaults to `4.0`):
            Divisor of the limit after a wait that was too short. `1` keeps the limit.
        first (`float`, *optional*, defaults to `1.0`):
            Limit in seconds before the first forward pass, when environments are reset, which takes longer.
    """

    def __init__(self, passes: float = 2.0, minimum: float = 0.02, backoff: float = 4.0, first: float = 1.0):
        self._passes, self._minimum, self._backoff, self._first = passes, minimum, backoff, first
        self.reset()

    def reset(self) -> None:
        """Returns to the state before the first forward pass. The wait starts now."""
        self._full = self._first  # seconds of the limit if all environments answer within it
        self._share = 1.0  # the part of them that applies
        self.start()

    def start(self) -> None:
        """Starts the wait: environments were called."""
        self._since: float | None = time.perf_counter()  # `None` once the wait is over

    def remaining(self, busy: int) -> float:
        """Returns the seconds to wait for the `busy` environments that are working; 0 to go on without them."""
        if self._since is None:
            return 0.0
        if busy and (left := self._since + self._share * self._full - time.perf_counter()) > 0:
            return left
        self._since = None
        self._share = self._share / self._backoff if busy else min(2 * self._share, 1.0)
        return 0.0

    def record_pass(self, seconds: float, any_ended: bool) -> None:
        """Records the duration of a forward pass. If a turn ended in it, an environment is called: the wait starts."""
        self._full = max(self._minimum, self._passes * seconds)
        if any_ended:
            self.start()
