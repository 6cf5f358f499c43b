"""Logging by Python's `logging`: plain lines on the console; of several ranks, each writes a log file of its own.

A line in a rank's file has time, level and rank. What libraries and C++ code print goes to that file too, and not to
the console. The first rank's lines are on the console as well, and every rank's errors on its standard error.
"""

import faulthandler
import hashlib
import logging
import os
import sys
from contextlib import suppress
from io import TextIOWrapper
from pathlib import Path
from typing import Any, TextIO

from tqdm import tqdm

from randcond.launch.urls import hide_secrets

log = logging.getLogger("randcond")
FILE_ONLY = {"file_only": True}  # log.info(text, extra=FILE_ONLY): into the rank's file, not onto the console
SAID = "RANDCOND_SAID"  # environment: a folder with an empty file for each error that a rank of this job has shown
PROGRESS = {"progress": True}  # onto the standard error, where bars go, so that a command's output can be piped

_console: "_Console | None" = None
_to_file = False


class _Console(logging.Handler):
    """Plain lines. Errors and progress go to the standard error, the rest to the standard output.

    Only critical records show their traceback.
    """

    def __init__(self, out: TextIO | None = None, errors: TextIO | None = None) -> None:
        super().__init__()
        self._out, self._errors = out, errors

    def createLock(self) -> None:
        """Shares one lock with tqdm: a bar logs while it holds tqdm's lock, and a line takes bars off the console."""
        super().createLock()
        tqdm.set_lock(self.lock)

    @property
    def out(self) -> TextIO:
        """The console's standard output, asked for at each line: a test may have replaced it."""
        return self._out or sys.stdout

    @property
    def errors(self) -> TextIO:
        """The console's standard error."""
        return self._errors or sys.stderr

    def emit(self, record: logging.LogRecord) -> None:
        """Writes one record; a terminal that is gone, or a full disk behind it, ends nothing."""
        if getattr(record, "file_only", False):
            return
        text = record.getMessage()
        if record.levelno >= logging.ERROR and _another_rank_said(text):
            return
        if record.exc_info and record.levelno >= logging.CRITICAL:
            text = f"{text}\n{record.exc_text or logging.Formatter().formatException(record.exc_info)}"
        to_errors = record.levelno >= logging.ERROR or getattr(record, "progress", False)
        stream = self.errors if to_errors else self.out
        # Progress bars leave the console while the line is written. ValueError: the stream is closed.
        with suppress(OSError, ValueError), tqdm.external_write_mode(file=stream):
            print(text, file=stream, flush=True)


def _another_rank_said(text: str) -> bool:
    """Returns True if another rank of this host, or of the job, has shown the same error on the console."""
    folder = os.environ.get(SAID)
    if not folder or os.environ.get("WORLD_SIZE", "1") == "1":
        return False
    try:
        with open(os.path.join(folder, hashlib.sha256(text.encode(errors="replace")).hexdigest()), "x"):
            return False
    except OSError as error:  # another error: a folder that this host does not have, a full disk
        return isinstance(error, FileExistsError)


def _record_without_secrets(*args: Any, **options: Any) -> logging.LogRecord:
    """Makes a log record, of ours or of a library's, whose text and traceback hold no secrets."""
    record = logging.LogRecord(*args, **options)
    with suppress(
        KeyError, TypeError, ValueError
    ):  # a library's message that does not fit its arguments: logging reports it
        record.msg, record.args = hide_secrets(record.getMessage()), ()
    if record.exc_info:
        record.exc_text = hide_secrets(logging.Formatter().formatException(record.exc_info))
    return record


def start_console() -> None:
    """Shows the log on this process's console, from level INFO; a second call changes nothing.

    From now on no log line of this process holds a secret.
    """
    global _console
    if _console is None:
        logging.setLogRecordFactory(_record_without_secrets)
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, TextIOWrapper):
                stream.reconfigure(errors="replace")  # a console that has no é must not lose the line
        _console = _Console()
        log.addHandler(_console)
        log.setLevel(logging.INFO)
        log.propagate = False


def log_to(path: Path, rank: int) -> None:
    """From now on this process writes into a file, appended; only the first rank's lines stay on the console too."""
    global _console, _to_file
    start_console()
    assert _console is not None
    path.parent.mkdir(parents=True, exist_ok=True)
    flush()
    out, errors = (os.fdopen(os.dup(number), "w", errors="replace") for number in (1, 2))
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(file, 1)
    os.dup2(file, 2)
    log.removeHandler(_console)
    _console = _Console(out, errors)
    _console.setLevel(logging.INFO if rank == 0 else logging.ERROR)
    log.addHandler(_console)
    handler = _RankFile(os.fdopen(file, "w", buffering=1, errors="replace"))
    handler.setFormatter(logging.Formatter(f"%(asctime)s %(levelname)s rank {rank}: %(message)s", "%Y-%m-%d %H:%M:%S"))
    log.addHandler(handler)
    faulthandler.enable()
    _to_file = True


class _RankFile(logging.StreamHandler[TextIO]):
    """A rank's file; where its disk is full, the console is told all the same."""

    def handleError(self, record: logging.LogRecord) -> None:
        """Nothing: logging itself would print a traceback into the same full disk."""


def console_stream() -> TextIO:
    """Where a progress bar goes: the console's standard error, also once this process writes into a file."""
    return _console.errors if _console else sys.stderr


def writes_to_file() -> bool:
    """Whether this process has a log file of its own."""
    return _to_file


def dump_threads() -> None:
    """Writes where every thread is into the rank's log, and into it alone."""
    flush()
    if _to_file:
        faulthandler.dump_traceback(all_threads=True)


def flush() -> None:
    """Writes out what is buffered; before the process ends."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):  # a full disk; a stream that is closed
            stream.flush()
