"""How a stage's process ends."""

import subprocess
import sys
from pathlib import Path

import pytest

_STAGE = """
import atexit, ctypes, sys, threading, time
from randcond.launch.stage import stage_main
libc = ctypes.CDLL(None)
def run(config):
    libc.__cxa_atexit(libc.abort, None, None)  # as a library whose threads are still there at the end
    atexit.register(print, "put away")
    threading.Thread(target=lambda: (time.sleep(0.3), print("written"))).start()
    print("done")
    if sys.argv[1] == "2":
        raise ValueError("a mistake")
    if sys.argv[1] == "1":
        raise RuntimeError("a bug")
    sys.exit(int(sys.argv[1]))
stage_main({"train": (lambda config: None, run)}, ["demo-with"])
"""


@pytest.mark.parametrize("code", [0, 1, 2, 75])
def test_a_stage_ends_with_its_own_code_whatever_its_libraries_do(code: int, tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", _STAGE, str(code)], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (code, "done\nwritten\nput away\n"), done.stderr
    assert {1: "RuntimeError: a bug", 2: "error: a mistake"}.get(code, "") in done.stderr
