"""Timings of a run: the parts of the startup, data stalls, a profiler trace of a window of steps."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import torch

from randcond.launch.runtime.files import write_json
from randcond.launch.runtime.logs import log


class DataStalls:
    """Measures how long the device waited for data.

    On a GPU, only the time after its queue ran empty counts. It is the time between two CUDA events: one recorded
    before the wait, after the queued work, and one recorded after the wait. The events are read in seconds(), so that
    measuring does not wait for the device. On a CPU, the whole wait counts.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._seconds = 0.0
        self._events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    @contextmanager
    def wait(self) -> Iterator[None]:
        """A context to enter around code that waits for data."""
        started, before = time.monotonic(), self._record_event()
        try:
            yield
        finally:
            after = self._record_event()
            if before and after:
                self._events.append((before, after))
            else:
                self._seconds += time.monotonic() - started

    def seconds(self) -> float:
        """Returns the seconds since the previous call. Waits for the device."""
        if self._events:
            self._events[-1][1].synchronize()
        total = self._seconds + sum(before.elapsed_time(after) for before, after in self._events) / 1e3
        self._seconds, self._events = 0.0, []
        return total

    def _record_event(self) -> torch.cuda.Event | None:
        if self.device.type != "cuda":
            return None
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self.device))
        return event


SHOWN = 0.5  # seconds; shorter parts are in startup.json only


class StartupTimer:
    """Measures the parts of the time from the start of this process to the end of the first step."""

    def __init__(self) -> None:
        self._last = psutil.Process().create_time()
        self.parts: dict[str, float] = {}  # seconds

    def mark(self, part: str) -> None:
        """Ends a part. It began when the previous part ended."""
        now = time.time()
        self.parts[part] = now - self._last
        self._last = now

    def finish(self, folder: Path, is_rank_0: bool) -> None:
        """Ends the last part, after the first step. Rank 0 logs the parts and writes them to `folder`/startup.json."""
        self.mark("first step")
        if is_rank_0:
            total = sum(self.parts.values())
            parts = ", ".join(f"{part} {seconds:.1f} s" for part, seconds in self.parts.items() if seconds >= SHOWN)
            log.info(f"first step done {total:.1f} s after the start: {parts}")
            write_json(folder / "startup.json", {part: round(seconds, 3) for part, seconds in self.parts.items()})


@contextmanager
def trace_window(window: list[int], first: int, folder: Path, rank: int) -> Iterator[Callable[[], None]]:
    """Yields a function to call after every step. Writes profile/rank-NNNN.json.gz after step `window[1]`.

    `window`: the first and the last step of the trace, or empty for no trace; `first`: the step the run resumes from.
    There is no overhead if the window is empty or lies before `first`.
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
        log.info(f"profile of steps {window[0]} to {window[1]} written to {path}")

    active = window[1] - max(window[0], first + 1) + 1
    schedule = torch.profiler.schedule(wait=before - warmup, warmup=warmup, active=active, repeat=1)
    with torch.profiler.profile(schedule=schedule, on_trace_ready=write, acc_events=True) as profile:
        yield profile.step
