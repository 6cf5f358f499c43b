"""Exit codes of stages, and the record of the first rank that fails."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from randcond.launch.runtime.exit_codes import FIRST_EXIT

_STAGE = """
import atexit, ctypes, signal, sys, threading, time
from randcond.launch.errors import UserError
from randcond.launch.runtime.entry_point import stage_main
libc = ctypes.CDLL(None)
def run(config):
    libc.__cxa_atexit(libc.abort, None, None)  # as a library whose threads are still there at the end
    atexit.register(print, "put away")
    threading.Thread(target=lambda: (time.sleep(0.3), print("written"))).start()
    print("done")
    if sys.argv[1] == "2":
        raise UserError("a mistake")
    if sys.argv[1].startswith("SIG"):
        signal.raise_signal(getattr(signal, sys.argv[1]))
    if sys.argv[1] == "1":
        raise ValueError("a bug")
    sys.exit(int(sys.argv[1]))
stage_main({"train": (lambda config: None, run)}, ["demo-with"])
"""


@pytest.mark.parametrize("code", [0, 1, 2, 75])
def test_a_stage_ends_with_its_own_code_whatever_its_libraries_do(code: int, tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", _STAGE, str(code)], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (code, ""), done.stderr
    log = next(tmp_path.rglob("train-rank-0000.log")).read_text()  # what libraries print goes there
    printed = [line for line in log.splitlines() if line in ("done", "written", "put away")]
    assert printed == ["done", "written", "put away"], log
    assert {1: "in run\nValueError: a bug", 2: "error: a mistake"}.get(code, "") in done.stderr


def test_a_developer_sees_everything_on_the_console(tmp_path: Path) -> None:
    environment = {**os.environ, "RANDCOND_CONSOLE": "1"}
    command = [sys.executable, "-c", _STAGE, "0"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "done\nwritten\nput away\n"), done.stderr


@pytest.mark.heavy
def test_the_first_of_several_ranks_that_ends_badly_is_kept(tmp_path: Path) -> None:
    """A rank that ends with 0 is not recorded. Ranks that are stopped later do not replace the first one."""
    first = tmp_path / "first"
    for word in ("0", "2", "SIGTERM", "1"):
        environment = {**os.environ, FIRST_EXIT: str(first)}
        subprocess.run([sys.executable, "-c", _STAGE, word], cwd=tmp_path, env=environment, capture_output=True)
        assert first.exists() == (word != "0")
    assert first.read_text() == "2\n"
    first.unlink()
    for word in ("SIGTERM", "SIGUSR1"):  # from srun after a rank was killed; from Slurm before its time limit
        done = subprocess.run([sys.executable, "-c", _STAGE, word], cwd=tmp_path, env=environment, capture_output=True)
        assert (done.returncode, first.exists()) == (75, word == "SIGUSR1")
    assert first.read_text() == "75\n"
