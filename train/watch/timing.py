"""Where a run's time goes: the start-up by part, stalls for data, a profiler trace of a window of steps."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import torch

from randcond.launch.runtime.files import write_json
from randcond.launch.runtime.logs import log


class DataStalls:
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


class StartupTimer:
    """Splits the time since this process began; `mark` ends a part."""

    def __init__(self) -> None:
        self._last = psutil.Process().create_time()
        self.parts: dict[str, float] = {}  # seconds

    def mark(self, part: str) -> None:
        """Ends a part: all that was done since the last one ended."""
        now = time.time()
        self.parts[part] = now - self._last
        self._last = now

    def first_step(self, folder: Path, chief: bool) -> None:
        """Ends the last part; the first rank says and writes where the time went."""
        self.mark("first step")
        if chief:
            whole = sum(self.parts.values())
            said = ", ".join(f"{part} {seconds:.1f}" for part, seconds in self.parts.items())
            log.info(f"first step done {whole:.1f} s after the start: {said}")
            write_json(folder / "startup.json", {part: round(seconds, 3) for part, seconds in self.parts.items()})


@contextmanager
def trace_window(window: list[int], first: int, folder: Path, rank: int) -> Iterator[Callable[[], None]]:
    """Yields what is called after every step; writes profile/rank-NNNN.json.gz once step `window[1]` is done.

    `first`: the steps done before. A window that is over already, or none, costs nothing.
    """
    if not window or window[1] <= first:
        yield lambda: None
        return
    before = max(0, window[0] - first - 1)
    warmup = min(1, before)
    path = folder / "profile" / f"rank-{rank:04d}.json.gz"
    path.parent.mkdir(parents=True, exist_ok=True)

    def write(profile: torch.profiler.profile) -> None:
        profile.export_chrome_trace(str(path))
        log.info(f"profile of steps {window[0]} to {window[1]}: {path}")

    active = window[1] - max(window[0], first + 1) + 1
    schedule = torch.profiler.schedule(wait=before - warmup, warmup=warmup, active=active, repeat=1)
    with torch.profiler.profile(schedule=schedule, on_trace_ready=write, acc_events=True) as profile:
        yield profile.step
