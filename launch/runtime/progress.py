"""Progress: a bar on a terminal; elsewhere, and in a rank's log, a line every half minute.

A drop-in for tqdm, which counts, times and draws. Carriage returns never reach a pipe or a file.
"""

import os
import threading
import time
from typing import Any

from tqdm import tqdm

from randcond.launch.runtime.logs import FILE_ONLY, PROGRESS, console_stream, log, writes_to_file

LINE_EVERY = 30.0  # seconds between two lines


class Progress(tqdm):  # type: ignore[type-arg]
    """tqdm with lines instead of a bar where no terminal shows it; a context, like tqdm."""

    def __init__(self, *args: Any, line_every: float = LINE_EVERY, **options: Any) -> None:
        """As tqdm; `line_every`: seconds between two lines."""
        stream = console_stream()
        self.terminal = _has_width(stream)
        self.line_every = line_every
        self._said = time.monotonic()
        self._sink = None if self.terminal else open(os.devnull, "w")  # noqa: SIM115 (closed with the bar)
        options |= {"file": self._sink or stream, "mininterval": 1.0}
        super().__init__(*args, **options)
        self._first = self._last = self.n
        self._ended = threading.Event()
        if not self.disable and self.line_every > 0:
            threading.Thread(target=self._remind, daemon=True).start()

    def _remind(self) -> None:
        """Writes a line when it is time for one, although nothing was counted meanwhile."""
        while not self._ended.wait(self.line_every):
            if time.monotonic() - self._said >= self.line_every:
                self._say()

    def display(self, msg: str | None = None, pos: int | None = None) -> Any:
        """Draws the bar, or writes a line when it is time for one."""
        if time.monotonic() - self._said >= self.line_every:
            self._say()
        return super().display(msg, pos)

    def close(self) -> None:
        """Ends it, with a last line where lines are written."""
        if hasattr(self, "_ended"):
            self._ended.set()
        if not self.disable and hasattr(self, "_last") and self.n > self._last:
            self._say()
        super().close()
        if self._sink:
            self._sink.close()

    def _say(self) -> None:
        self._said, self._last = time.monotonic(), self.n
        if not self.terminal:
            log.info(self.line(), extra=PROGRESS)
        elif writes_to_file():
            log.info(self.line(), extra=FILE_ONLY)

    def line(self) -> str:
        """`caching: 12 of 63 shards (19 %), 3 min left`."""
        facts = self.format_dict
        done = f"{self._amount(self.n)} of {self._amount(self.total)}" if self.total else self._amount(self.n)
        if self.unit != "B":
            done = f"{done} {_plural(self.unit)}"
        if self.total:
            done = f"{done} ({self.n / self.total:.0%})"
        parts = [f"{self.desc}: {done}" if self.desc else done]
        if facts["postfix"]:
            parts.append(str(facts["postfix"]))
        new = self.n - getattr(self, "_first", 0)
        if self.total and 0 < self.n < self.total and new > 0:
            parts.append(f"{duration(facts['elapsed'] / new * (self.total - self.n))} left")
        elif self.total and self.n >= self.total:
            parts.append(f"took {duration(facts['elapsed'])}")
        elif self.total:
            parts.append(f"{duration(facts['elapsed'])} so far")
        return ", ".join(parts)

    def _amount(self, count: float) -> str:
        """`1,200`; bytes as `1.20kB`."""
        return self.format_sizeof(count, self.unit) if self.unit == "B" else f"{count:,}"


def _has_width(stream: Any) -> bool:
    """Returns True if a stream is a terminal that can show a bar. Some recorders of a session have 0 columns."""
    try:
        return stream.isatty() and os.get_terminal_size(stream.fileno()).columns > 0
    except (OSError, ValueError):  # no file descriptor
        return False


def _plural(unit: str) -> str:
    return unit if unit.endswith("s") else f"{unit}{'es' if unit.endswith('ch') else 's'}"


def duration(seconds: float) -> str:
    """Returns a duration in words.

    >>> duration(40), duration(160), duration(12_000)
    ('40 s', '2 min 40 s', '3 h 20 min')
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
