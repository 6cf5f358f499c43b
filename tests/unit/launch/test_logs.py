"""Which log lines of a rank go to standard output, to standard error, and to its file."""

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest

from randcond.launch.runtime import progress
from randcond.launch.runtime.progress import Progress
from tests.support.patience import HANG

_RANK = """
import os, sys
from pathlib import Path
from randcond.launch.runtime.logs import FILE_ONLY, log, log_to
log_to(Path("rank.log"), int(sys.argv[1]))
print("a library's line", flush=True)
os.write(2, b"a line of C++\\n")
log.info("begun")
for number in range(50):
    log.info(f"between {number}")
    log.error(f"error: {number}")
log.info("a detail", extra=FILE_ONLY)
log.info("done")
"""


_BARS = """
import threading
from randcond.launch.runtime.logs import log, start_console
from randcond.launch.runtime.progress import Progress
start_console()
def count():
    for _ in Progress(range(2000), desc="counting", unit="thing", line_every=0.0, mininterval=0.0):
        pass
def write():
    for _ in range(2000):
        log.info("é")
threads = [threading.Thread(target=target) for target in (count, write, write)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
"""


def test_progress_and_lines_of_several_threads_do_not_wait_for_each_other(tmp_path: Path) -> None:
    """Progress goes to the standard error, so that a command's output can be piped. No line is lost."""
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    command = [sys.executable, "-c", _BARS]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=HANG)
    assert done.stdout.splitlines() == ["?"] * 4000
    assert done.stderr.splitlines()[-1].startswith("counting: 2,000 of 2,000 things (100%)")
    assert "\r" not in done.stderr


def test_what_takes_long_says_that_it_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as the first batch, before anything is counted."""
    said: list[str] = []
    monkeypatch.setattr(progress.log, "info", lambda text, **more: said.append(text))
    with Progress(total=2, desc="drawing", unit="batch", line_every=0.02) as bar:
        deadline = time.monotonic() + HANG
        while len(said) < 2:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        bar.update(2)
    before = len(said)
    time.sleep(0.1)
    assert len(said) == before and said[0] == "drawing: 0 of 2 batches (0%), 0 s so far"


@pytest.mark.parametrize("columns", [0, 80])
def test_a_terminal_without_a_width_gets_lines(columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    with os.fdopen(theirs, "w") as terminal, os.fdopen(ours, "rb"):
        monkeypatch.setattr(sys, "stderr", terminal)
        with Progress(total=1, desc="counting") as bar:
            assert bar.terminal == (columns > 0)


@pytest.mark.parametrize("rank", [0, 1])
def test_the_first_ranks_lines_and_every_ranks_errors_are_on_the_console(rank: int, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _RANK, str(rank)], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stderr.splitlines() == [f"error: {number}" for number in range(50)]
    shown = ["begun", *(f"between {number}" for number in range(50)), "done"]
    assert done.stdout.splitlines() == (shown if rank == 0 else [])


def test_a_ranks_file_has_everything_with_time_level_and_rank(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-c", _RANK, "3"], cwd=tmp_path, capture_output=True, check=True)
    lines = (tmp_path / "rank.log").read_text().splitlines()
    assert lines[:2] == ["a library's line", "a line of C++"]
    stamp = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d"
    assert all(re.fullmatch(rf"{stamp} (INFO|ERROR) rank 3: .+", line) for line in lines[2:]), lines[2:5]
    assert len(lines) == 2 + 1 + 100 + 2 and lines[-2].endswith("INFO rank 3: a detail")
