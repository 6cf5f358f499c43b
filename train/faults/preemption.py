"""Preemption requests: SIGTERM, SIGUSR1, or the request file of the command that started the run.

All ranks agree at the end of every step, so that all save the same step.
"""

import os
import signal
import time
from pathlib import Path
from types import FrameType

from randcond.launch.runtime.processes import STOP_FILE
from randcond.train.engine import Engine

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class Preemption:
    """Handles preemption signals from its construction on. All ranks call requested() once per step."""

    def __init__(self, engine: Engine) -> None:
        """Installs the signal handlers."""
        self.engine = engine
        self._requested = False
        path = os.environ.get(STOP_FILE)
        # One rank per host checks the file, because under torchrun every host has its own command and its own file.
        checks_file = engine.rank == 0 or os.environ.get("LOCAL_RANK") == "0"
        self._file = Path(path) if path and checks_file else None
        self._last_check = 0.0
        for number in SIGNALS:
            signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._requested = True

    def requested(self) -> bool:
        """Returns True on all ranks if any rank received a preemption request. Every rank must call it."""
        if self._file and time.monotonic() - self._last_check > 1.0:
            self._last_check = time.monotonic()
            self._requested = self._requested or _exists(self._file)
        return self.engine.any_rank(self._requested)


def _exists(path: Path) -> bool:
    """Returns True if the file exists.

    Lists the folder instead of asking for the file, because NFS may report a new file as absent for up to a minute.
    """
    try:
        return path.name in os.listdir(path.parent)
    except FileNotFoundError:
        return False


def ignore_signals(_: int = 0) -> None:
    """Makes a loader process ignore preemption signals and Ctrl-C.

    A signal may be sent to all processes of a run. A rank needs its loader until it has saved, and ends it itself.
    """
    for number in (*SIGNALS, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
