"""Where the time from a process's start to its first step goes, by part: a line in the log, and startup.json."""

import time
from pathlib import Path

import psutil

from randcond.data.files import write_json


class Startup:
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
            print(f"first step done {whole:.1f} s after the start: {said}", flush=True)
            write_json(folder / "startup.json", {part: round(seconds, 3) for part, seconds in self.parts.items()})
