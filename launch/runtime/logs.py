"""One log file per rank; the first rank's output goes to the console too, every rank's errors to the standard error.

The rank writes into its file itself, so that nothing is lost when it is killed; a thread shows the file's end on the
console.
"""

import faulthandler
import os
import sys
import threading
import time
from contextlib import nullcontext, suppress
from pathlib import Path

_console: tuple[int, int] | None = None  # this process's standard output and error, kept once both go to a file
_mirror: "_Mirror | None" = None


class _Mirror(threading.Thread):
    """Copies what a file gains to a file descriptor."""

    def __init__(self, path: Path, out: int) -> None:
        super().__init__(name="console", daemon=True)
        self.file, self.out = path.open("rb"), out
        self.file.seek(0, os.SEEK_END)
        self.lock = threading.RLock()

    def run(self) -> None:
        while True:
            self.copy()
            time.sleep(0.2)

    def copy(self, without: bytes = b"") -> None:
        """Shows what is new in the file, but for a line that is shown elsewhere."""
        with self.lock:
            while data := self.file.read(65536):
                with suppress(OSError):  # the terminal is gone; the file is not
                    os.write(self.out, data.replace(without, b"", 1) if without else data)


def log_to(path: Path, show: bool) -> None:
    """From now on this process writes into a file, appended; `show` keeps it on the console as well."""
    global _console, _mirror
    path.parent.mkdir(parents=True, exist_ok=True)
    _console = os.dup(1), os.dup(2)
    sys.stdout.flush()
    sys.stderr.flush()
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    if show:
        _mirror = _Mirror(path, _console[0])
        _mirror.start()
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.close(file)
    faulthandler.enable()


def say_everywhere(text: str, error: bool = False) -> None:
    """A line into the log and onto the console, whichever rank it is; an error onto the standard error."""
    finish_console()
    with _mirror.lock if _mirror else nullcontext():
        with suppress(OSError):  # a full disk: the console is told all the same
            print(text, file=sys.stderr if error else sys.stdout, flush=True)
        if _console is not None and (error or _mirror is None):
            line = f"{text}\n".encode()
            with suppress(OSError):  # the terminal is gone; the file is not
                os.write(_console[error], line)
            if _mirror is not None:
                _mirror.copy(without=line)
    finish_console()


def dump_threads() -> None:
    """Writes where every thread is into the log, and into the log alone."""
    finish_console()
    if _console is not None:
        with _mirror.lock if _mirror else nullcontext():
            faulthandler.dump_traceback(all_threads=True)


def finish_console() -> None:
    """Shows what the console still lacks; before the process ends."""
    with suppress(OSError):  # a full disk
        sys.stdout.flush()
        sys.stderr.flush()
    if _mirror is not None:
        _mirror.copy()
