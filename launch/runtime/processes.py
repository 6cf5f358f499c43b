"""Sets up a process for its launcher and scheduler: ranks, CPU threads, signals, and its end with its parent."""

import ctypes
import os
import platform
import re
import signal
import sys
import threading
import time
from types import FrameType
from typing import Any

from randcond.launch.config.sections import Config
from randcond.launch.machine.visible_gpus import gpus_here
from randcond.launch.runtime.exit_codes import INTERRUPTED, PREEMPTED, record_first_exit

STOP_FILE = "RANDCOND_STOP_FILE"  # environment: path of a file; a training saves and ends when it appears
SUPERVISOR = "RANDCOND_SUPERVISOR"  # environment: process id of the `randcond run` that started this process
RANKS_FROM = "RANDCOND_RANKS"  # environment: "slurm" if srun starts the ranks, without a launcher
QUIET = {  # environment that silences start-up messages of libraries; their errors are still shown
    "TRANSFORMERS_VERBOSITY": "error",
    "DIFFUSERS_VERBOSITY": "error",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "PYTHONWARNINGS": "ignore::FutureWarning",
    "TORCH_CPP_LOG_LEVEL": "ERROR",
}


def name_accelerator() -> None:
    """Where no GPU is visible: tells DeepSpeed so, which would otherwise search for one and warn."""
    if not gpus_here():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")


def exit_when_preempted() -> dict[int, Any]:
    """Makes SIGTERM and SIGUSR1 end this process at once with PREEMPTED. Returns the previous handlers by signal.

    This suits stages that have nothing to save but finished shards and batches of images. A training installs its own
    handlers before its first step. Slurm sends SIGTERM to a job's other ranks as soon as the first one has ended, so
    both signals mean the same.
    """
    return {number: signal.signal(number, _end_at_once) for number in (signal.SIGTERM, signal.SIGUSR1)}


def take_interrupts() -> dict[int, Any]:
    """Makes Ctrl-C raise KeyboardInterrupt in this process, once. Returns the previous handler by signal.

    `randcond run` ignores Ctrl-C for its stages until they can handle it, and may send it again. In the background of
    a shell it stays ignored.
    """
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN and SUPERVISOR not in os.environ:
        return {}
    return {signal.SIGINT: signal.signal(signal.SIGINT, _interrupt)}


def _interrupt(number: int, frame: FrameType | None) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a second one must not cut the last lines of this process
    while frame:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            os._exit(INTERRUPTED)  # libraries make other errors of an import that is cut; nothing is to be saved yet
        if frame.f_code.co_name == "__del__":  # Python would print the exception and go on
            signal.signal(signal.SIGINT, _interrupt)
            later = threading.Timer(0.02, os.kill, (os.getpid(), signal.SIGINT))
            later.daemon = True
            later.start()
            return
        frame = frame.f_back
    raise KeyboardInterrupt


def _end_at_once(number: int, frame: object) -> None:
    # SIGUSR1 is Slurm's notice before the time limit. SIGTERM may come from srun because another rank was killed. Then
    # the code of that rank counts.
    if number == signal.SIGUSR1:
        record_first_exit(PREEMPTED)
    os.write(2, b"preempted; finished work is kept\n")
    os._exit(PREEMPTED)


def read_slurm_ranks() -> None:
    """Takes rank and world size from srun's environment if the job's script says that srun starts the ranks."""
    if os.environ.get(RANKS_FROM) == "slurm" and "SLURM_STEP_NUM_TASKS" in os.environ:  # else a shell in the job
        for name, theirs in (("RANK", "PROCID"), ("LOCAL_RANK", "LOCALID"), ("WORLD_SIZE", "STEP_NUM_TASKS")):
            os.environ[name] = os.environ[f"SLURM_{theirs}"]
        # "8(x2),4" is two hosts with 8 tasks and one with 4. Our job scripts start the same number on each.
        os.environ["LOCAL_SIZE"] = re.split(r"[(,]", os.environ["SLURM_STEP_TASKS_PER_NODE"])[0]


def prepare_child() -> None:
    """Makes the kernel kill this process when its parent dies. Ctrl-C is ignored until the stage can handle it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _die_with_parent()


def _die_with_parent() -> None:
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)


def end_with_parent() -> None:
    """Makes a rank end when its launcher or the `randcond run` above it dies, so that no rank goes on alone.

    Launchers don't do this: the ranks of a killed launcher go on.
    """
    if "RANK" in os.environ:
        _die_with_parent()
    supervisor = os.environ.get(SUPERVISOR)
    if supervisor and os.environ.get("RANDCOND_HOST", platform.node()) == platform.node():
        threading.Thread(target=_die_with, args=(int(supervisor),), daemon=True).start()


def _die_with(pid: int) -> None:
    """Kills this process when process `pid` is gone. Checks once per second."""
    while True:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            os.kill(os.getpid(), signal.SIGKILL)
        except PermissionError:
            pass
        time.sleep(1)


def limit_threads(config: Config) -> None:
    """Sets the number of CPU threads of this rank. Call it before torch is imported.

    The last bits of results depend on this number.
    """
    os.environ.update(thread_limits(config.engine.threads))


def thread_limits(threads: int | None) -> dict[str, str]:
    """Returns the environment that limits the CPU threads of torch and its libraries; {} for None."""
    return {} if threads is None else dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(threads))
