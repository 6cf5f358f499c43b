"""Ctrl-C reaches a process wherever it is."""

import subprocess
import sys

IN_A_FINALIZER = """
import os, signal, time
signal.signal(signal.SIGINT, signal.SIG_DFL)  # the parent may have been started in the background of a shell
from randcond.launch.runtime.processes import take_interrupts
take_interrupts()
class Held:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.01)
held = Held()
try:
    del held
    time.sleep(60)
except KeyboardInterrupt:
    print("interrupted")
"""


def test_ctrl_c_in_a_finalizer_is_raised_after_it() -> None:
    """Python drops the exceptions of finalizers: it prints a traceback and goes on."""
    done = subprocess.run([sys.executable, "-c", IN_A_FINALIZER], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("interrupted\n", "")
