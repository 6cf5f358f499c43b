"""A process among its launcher, its scheduler and its parent: ranks, threads, signals."""

import ctypes
import os
import platform
import re
import signal
import sys
import threading
import time
from typing import Any

from randcond.launch.config.gpus import nvidia_here
from randcond.launch.config.sections import Config
from randcond.launch.runtime.exit_codes import PREEMPTED, record_first_exit

STOP_FILE = "RANDCOND_STOP_FILE"  # environment: a file whose appearance asks a training to save and end
RANKS_FROM = "RANDCOND_RANKS"  # environment: "slurm" where srun, not a launcher, says which rank this is
QUIET = {  # the libraries' start-up chatter; their errors still come through
    "TRANSFORMERS_VERBOSITY": "error",
    "DIFFUSERS_VERBOSITY": "error",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "PYTHONWARNINGS": "ignore::FutureWarning",
    "TORCH_CPP_LOG_LEVEL": "ERROR",
}


def name_accelerator() -> None:
    """Tells DeepSpeed of a machine without a GPU, before it looks for one and warns."""
    if not nvidia_here():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")


def exit_when_preempted() -> dict[int, Any]:
    """Makes SIGTERM and SIGUSR1 end this process at once with PREEMPTED; the handlers before, by signal.

    For what has nothing to save but finished shards and batches of images. A training listens itself, from its first
    step on. Slurm ends a job's other ranks by SIGTERM as soon as the first one has ended, so both mean the same.
    """
    return {number: signal.signal(number, _end_at_once) for number in (signal.SIGTERM, signal.SIGUSR1)}


def _end_at_once(number: int, frame: object) -> None:
    if number == signal.SIGUSR1:  # the notice. SIGTERM may be srun's, since another rank was killed: its code counts
        record_first_exit(PREEMPTED)
    os.write(2, b"asked to end; what is finished is kept\n")
    os._exit(PREEMPTED)


def read_slurm_ranks() -> None:
    """Takes rank and world size from srun, where the job's script says that srun starts the ranks."""
    if os.environ.get(RANKS_FROM) == "slurm":
        for name, theirs in (("RANK", "PROCID"), ("LOCAL_RANK", "LOCALID"), ("WORLD_SIZE", "STEP_NUM_TASKS")):
            os.environ[name] = os.environ[f"SLURM_{theirs}"]
        # "8(x2),4" for two hosts of 8 and one of 4; a script of ours starts as many on each.
        os.environ["LOCAL_SIZE"] = re.split(r"[(,]", os.environ["SLURM_STEP_TASKS_PER_NODE"])[0]


def end_with_parent() -> None:
    """Makes a rank end when its launcher or the `randcond run` above it dies: no rank trains on alone.

    The launcher's own processes do not see to that: a killed one leaves its ranks running.
    """
    if sys.platform == "linux" and "RANK" in os.environ:
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
    supervisor = os.environ.get("RANDCOND_SUPERVISOR")
    if supervisor and os.environ.get("RANDCOND_HOST", platform.node()) == platform.node():
        threading.Thread(target=_watch, args=(int(supervisor),), daemon=True).start()


def _watch(pid: int) -> None:
    while True:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            os.kill(os.getpid(), signal.SIGKILL)
        except PermissionError:
            pass
        time.sleep(1)


def limit_threads(config: Config) -> None:
    """Pins the CPU threads of this rank before torch is imported: results depend on their number in the last bits."""
    if config.engine.threads is not None:
        for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
            os.environ[variable] = str(config.engine.threads)
