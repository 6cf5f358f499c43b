"""Notices that this process stood still: it was stopped by a signal, or its host was paused or had no CPU time for it.

Such a process has heard nothing from the others meanwhile, so it must not blame them for their silence.
"""

import time


class Standstill:
    """Watches the clock of a loop that calls tick() in every round."""

    def __init__(self, limit: float) -> None:
        """`limit`: a round that takes longer than this many seconds is a standstill."""
        self.limit = limit
        self.seconds = 0.0  # duration of the last standstill
        self._last = self._ended = time.monotonic()

    def start(self) -> None:
        """Starts to watch: the time before does not count."""
        self._last = time.monotonic()

    def tick(self) -> float:
        """Returns the seconds that this process has just stood still, 0.0 if it has not."""
        now = time.monotonic()
        gap, self._last = now - self._last, now
        if gap <= self.limit:
            return 0.0
        self.seconds, self._ended = gap, now
        return gap

    def is_recent(self, period: float) -> bool:
        """Returns True if a standstill ended less than `period` seconds ago."""
        return bool(self.seconds) and time.monotonic() - self._ended < period
