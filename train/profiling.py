"""A torch profiler trace of a window of steps, for chrome://tracing or Perfetto."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch


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
        print(f"profile of steps {window[0]} to {window[1]}: {path}", flush=True)

    active = window[1] - max(window[0], first + 1) + 1
    schedule = torch.profiler.schedule(wait=before - warmup, warmup=warmup, active=active, repeat=1)
    with torch.profiler.profile(schedule=schedule, on_trace_ready=write, acc_events=True) as profile:
        yield profile.step
