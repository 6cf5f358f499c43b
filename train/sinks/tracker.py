"""Sends to a tracker in a thread, so that a slow or broken one neither delays nor ends a training.

While a tracker is out of reach, what can't be sent waits in order. What a tracker that answers refuses is dropped. What
is still unsent at the end, or too much, is given up. All that is not sent is counted in the log.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import ClassVar

from randcond.launch.runtime.logs import log
from randcond.launch.urls import hide_secrets
from randcond.train.sinks.sink import Sink

MOST_WAITING = 20_000  # calls; more are given up, the oldest first
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 60.0  # seconds between two tries
REFUSALS = 3  # tries of a call that a tracker refuses
SILENCE = 20.0  # seconds without an answer to the first call after which the log says so: a client may try for minutes
LAST_TRY, LAST_TRY_OF_FAILED = 30.0, 5.0  # seconds after the end of the training in which what is waiting is sent


class Tracker(Sink):
    """Passes every call on to a sink that may fail. The sink is opened in the thread, too."""

    name: ClassVar[str] = "tracker"

    def __init__(self, kind: str, open_sink: Callable[[], Sink], abandon: Callable[[], None] = Sink.abandon) -> None:
        """`kind`: the sink's name, for the log. `abandon`: its Sink.abandon."""
        self.kind, self._open, self._abandon = kind, open_sink, abandon
        self._waiting: deque[Callable[[Sink], None]] = deque()
        self._lost = 0
        self._sink: Sink | None = None
        self._wake, self._closing = threading.Event(), threading.Event()
        self._began, self._is_silent = time.monotonic(), False
        self._end: float | None = None  # when to give up; None while the training runs
        self._thread = threading.Thread(target=self._send_all, name=kind, daemon=True)
        self._thread.start()

    def values(self, step: int, values: Mapping[str, float]) -> None:
        copied = dict(values)
        self._put(lambda sink: sink.values(step, copied))

    def picture(self, step: int, name: str, path: Path) -> None:
        self._put(lambda sink: sink.picture(step, name, path))

    def close(self, finished: bool) -> None:
        patience = LAST_TRY if finished else LAST_TRY_OF_FAILED
        self._put(lambda sink: sink.close(finished))
        self._end = time.monotonic() + patience
        self._closing.set()
        self._wake.set()
        self._thread.join(patience + 1)
        if self._thread.is_alive():
            self._abandon()
        lost = self._lost + max(0, len(self._waiting) - 1)  # without the call of close()
        if lost:
            log.warning(f"{self.kind}: {lost} values or pictures were not sent; metrics.jsonl has all values")

    def _put(self, call: Callable[[Sink], None]) -> None:
        if self._sink is None and not self._is_silent and time.monotonic() - self._began > SILENCE:
            self._is_silent = True
            log.warning(f"{self.kind}: no answer for {SILENCE:.0f} s; the training goes on, and values are kept for it")
        if len(self._waiting) >= MOST_WAITING:
            self._waiting.popleft()
            self._lost += 1
        self._waiting.append(call)
        self._wake.set()

    def _send_all(self) -> None:
        while self._end is None or (self._waiting and time.monotonic() < self._end):
            if not self._waiting:
                self._wake.wait(1.0)
                self._wake.clear()
                continue
            call = self._waiting[0]
            sent = self._send(call)
            if self._waiting and self._waiting[0] is call:  # not if it was given up meanwhile
                self._waiting.popleft()
                self._lost += not sent

    def _send(self, call: Callable[[Sink], None]) -> bool:
        """Sends one call, however long the tracker is out of reach. Returns False if it is refused, or given up."""
        pause, refusals, is_down = FIRST_PAUSE, 0, False
        while self._end is None or time.monotonic() < self._end:
            try:
                self._sink = self._sink or self._open()
                call(self._sink)
            except Exception as error:  # of the tracker's client, of its HTTP library, of the network
                said = hide_secrets(str(error) or type(error).__name__).splitlines()[0][:300]
                if self._sink is not None and self._sink.answers():
                    refusals += 1
                    if refusals == REFUSALS:
                        log.warning(f"{self.kind}: does not take a value or picture ({said})")
                        return False
                elif not is_down:
                    log.warning(f"{self.kind}: out of reach ({said}); the training goes on, and values are kept for it")
                    is_down = True
                if self._closing.wait(pause):
                    time.sleep(FIRST_PAUSE)
                pause = min(2 * pause, LONGEST_PAUSE)
                continue
            if is_down or self._is_silent:
                self._is_silent = False
                log.info(f"{self.kind}: answers again")
            return True
        return False
