"""How long the device had nothing to do because the data came late."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class Waiting:
    """Sums what the device lost to waits for the loader.

    On a GPU a wait counts from where its queue ran empty: the time between an event behind what was queued and one
    behind the wait, read when the sum is asked for, so that nothing waits for the device. On a CPU all of it counts.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._seconds = 0.0
        self._events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    @contextmanager
    def __call__(self) -> Iterator[None]:
        """Around what waits for data."""
        began, queued = time.monotonic(), self._event()
        try:
            yield
        finally:
            behind = self._event()
            if queued and behind:
                self._events.append((queued, behind))
            else:
                self._seconds += time.monotonic() - began

    def seconds(self) -> float:
        """The sum since it was last asked for; waits for the device."""
        if self._events:
            self._events[-1][1].synchronize()
        lost = self._seconds + sum(queued.elapsed_time(behind) for queued, behind in self._events) / 1e3
        self._seconds, self._events = 0.0, []
        return lost

    def _event(self) -> torch.cuda.Event | None:
        if self.device.type != "cuda":
            return None
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self.device))
        return event
