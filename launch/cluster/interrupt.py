"""Ends the processes of a stage after Ctrl-C: its ranks first, so that neither they nor their launcher show tracebacks.

Launchers report how their ranks ended, some with tracebacks. So they are stopped while the ranks end, and then killed.
"""

import signal
import time
from contextlib import suppress
from typing import Protocol

import psutil

PATIENCE = 15.0  # seconds until the ranks have ended
AGAIN = 0.5  # seconds; a rank that is still starting ignores Ctrl-C


class Running(Protocol):
    """A command that runs."""

    pid: int

    def poll(self) -> int | None:
        """Returns the exit code, or None while it runs."""


def end_ranks(command: Running) -> None:
    """Sends Ctrl-C to the ranks below a command, or to itself if it is the stage, until they have ended."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline and command.poll() is None:
        try:
            processes = [psutil.Process(command.pid), *psutil.Process(command.pid).children(recursive=True)]
        except psutil.NoSuchProcess:
            return
        stages = [process for process in processes if _is_stage(process)]
        numbers = {process.pid for process in stages}
        ranks = [process for process in stages if _parent(process) not in numbers]  # not the loaders that they forked
        for process in processes:
            if _is_launcher(process):
                _send(process, signal.SIGSTOP)
        if not ranks:
            return
        for process in ranks:
            _send(process, signal.SIGINT)
        psutil.wait_procs(ranks, AGAIN)


def _module(process: psutil.Process) -> str:
    """Returns the module that a process runs (`python -m MODULE`), "" if it runs none."""
    try:
        words = process.cmdline() if process.status() != psutil.STATUS_ZOMBIE else []
    except psutil.Error:
        return ""
    place = words.index("-m") if "-m" in words[:4] else len(words)
    return "".join(words[place + 1 : place + 2])


def _is_launcher(process: psutil.Process) -> bool:
    return _module(process).startswith(("deepspeed.", "randcond.launch."))


def _is_stage(process: psutil.Process) -> bool:
    return _module(process).startswith("randcond.") and not _is_launcher(process)


def _parent(process: psutil.Process) -> int:
    try:
        return int(process.ppid())
    except psutil.Error:
        return 0


def _send(process: psutil.Process, number: signal.Signals) -> None:
    with suppress(psutil.Error):
        process.send_signal(number)
