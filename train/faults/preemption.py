"""A scheduler's wish that the run end soon: SIGTERM, SIGUSR1, or the request file of the command that started it.

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
    """Listens from the moment it is made; `wanted` is asked once a step, by all ranks."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._asked = False
        path = os.environ.get(STOP_FILE)
        # One rank per host looks: under torchrun each host has a command of its own.
        looks = engine.rank == 0 or os.environ.get("LOCAL_RANK") == "0"
        self._file = Path(path) if path and looks else None
        self._looked = 0.0
        for number in SIGNALS:
            signal.signal(number, self._ask)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self._asked = True

    def wanted(self) -> bool:
        """Whether any rank has been asked to end; the same answer on all of them."""
        if self._file and time.monotonic() - self._looked > 1.0:
            self._looked = time.monotonic()
            self._asked = self._asked or _listed(self._file)
        return self.engine.any(self._asked)


def _listed(path: Path) -> bool:
    """Whether a file is there, by its folder's list: NFS keeps for up to a minute that a file is not there."""
    try:
        return path.name in os.listdir(path.parent)
    except FileNotFoundError:
        return False


def ignore_in_worker(_: int = 0) -> None:
    """For loader processes: a signal to the whole tree must not take the loader from a rank that still saves."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
