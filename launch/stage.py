"""The entry every stage shares: `python -m randcond.PACKAGE [STAGE] EXPERIMENT [key=value ...] [--dry-run]`.

Reads the experiment, checks it, pins the threads, and turns the user's mistakes into one line instead of a traceback.
"""

import atexit
import contextlib
import ctypes
import errno
import multiprocessing
import os
import platform
import re
import secrets
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from randcond.launch.config import Config, load_config, to_yaml
from randcond.launch.gpus import nvidia_here
from randcond.launch.interface import name_interface
from randcond.launch.logs import finish_console, log_to, say_everywhere

Stage = Callable[[Config], None]

MISTAKE = 2  # the user's: the same command would end the same way
LOST_RANK = 69  # a rank died, hangs or is out of reach: the same command goes on
PREEMPTED = 75  # asked to end, all is saved: the same command goes on
STOP_FILE = "RANDCOND_STOP_FILE"  # environment: a file whose appearance asks a training to save and end
RANKS_FROM = "RANDCOND_RANKS"  # environment: "slurm" where srun, not a launcher, says which rank this is
FIRST_END = "RANDCOND_FIRST_END"  # environment: a file for the code of the first rank that does not end well
# A full disk, a folder that can't be written. Other errors of the system may pass: a stale file handle, a lost line.
_DISK_OR_PATH = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOENT, errno.ENOTDIR}
_LASTING = {None, *_DISK_OR_PATH}


def exit_code(error: BaseException) -> int:
    """With which code a process ends on an error: whether the same command would end the same way."""
    if isinstance(error, OSError):
        number = error.errno
        if number is None and (said := re.findall(r"\[Errno (\d+)\]", str(error))):
            number = int(said[-1])  # out of a loader's process torch brings an error's text alone
        passing = isinstance(error, ConnectionError | TimeoutError) or number not in _LASTING
        return LOST_RANK if passing else MISTAKE
    return MISTAKE if isinstance(error, ValueError) else LOST_RANK


def stage_main(stages: dict[str, tuple[Stage, Stage]], argv: list[str] | None = None) -> None:
    """Runs one of a package's stages; `stages` maps a name to (check, run), both given the resolved configuration.

    `--dry-run` prints the resolved configuration and checks it against what is on disk, and does nothing else.
    `--local_rank=N`, which launchers append, is accepted and ignored. Of several ranks, each writes a log of its own.
    Ends this process with 0, 2 on the user's mistake, 69 when a rank is lost, 75 when asked to end and saved, 130 on
    Ctrl-C.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    before: dict[int, Any] = {}
    names = " | ".join(stages)
    usage = f"usage: [{names}] EXPERIMENT [section.key=value ...] [--dry-run]"
    arguments = [word for word in arguments if not word.startswith("--local_rank")]
    leave: Callable[[int], Any] = _end_early
    if not arguments or {"--help", "-h"} & set(arguments):
        print(usage)
        return
    flags = [word for word in arguments if word.startswith("-")]
    words = [word for word in arguments if not word.startswith("-")]
    try:
        if unknown := [flag for flag in flags if flag not in {"--dry-run"}]:
            raise ValueError(f"unknown flag {unknown[0]}; {usage}")
        stage = words.pop(0) if len(stages) > 1 else next(iter(stages))
        if stage not in stages:
            raise ValueError(f"unknown stage {stage!r}; {usage}")
        if not words:
            raise ValueError(f"no experiment given; {usage}")
        config = load_config(words[0], words[1:])
        check, run = stages[stage]
        adopt_slurm_ranks()
        name_interface()
        name_accelerator()
        end_with_parent()
        before = end_when_asked()
        limit_threads(config)
        check(config)
        if "--dry-run" in flags:
            print(to_yaml(config), end="")
            return
        if "RANK" in os.environ:
            rank = int(os.environ["RANK"])
            log_to(logs_folder(config) / f"{stage}-rank-{rank:04d}.log", show=rank == 0)
        leave = _end
        try:
            run(config)
        except SystemExit as asked:
            leave(int(asked.code or 0))
        leave(0)
    except (ValueError, OSError) as error:
        if os.environ.get("RANDCOND_TRACEBACK"):
            raise
        say_everywhere(f"error: {error}", error=True)
        leave(exit_code(error))
    except KeyboardInterrupt:
        leave(130)
    except Exception:
        traceback.print_exc()
        leave(1)
    finally:
        finish_console()
        for number, handler in before.items():
            signal.signal(number, handler)


def keep_first_end(code: int) -> None:
    """Writes down the code of the job's first rank that does not end well, where the job's script asks for it.

    srun then asks the other ranks to end, and says the largest code of all: it would hide why the first one did.
    """
    path = os.environ.get(FIRST_END)
    if path and code:
        with contextlib.suppress(OSError), open(path, "x") as file:  # there already: another rank was the first
            file.write(f"{code}\n")


def _end_early(code: int) -> NoReturn:
    keep_first_end(code)
    sys.exit(code)


def _end(code: int) -> NoReturn:
    """Ends this process without taking its libraries apart.

    C++ threads that outlive their owners (gloo's, the rendezvous store's) now and then abort there, and the launcher
    would take a finished run for a lost rank, or a mistake for something that passes.
    """
    keep_first_end(code)
    for child in multiprocessing.active_children():  # loaders that an error left: they heed no signal, and atexit joins
        child.kill()
    threading._shutdown()  # type: ignore[attr-defined]  # what is being written is written
    atexit._run_exitfuncs()
    finish_console()
    os._exit(code)


def name_accelerator() -> None:
    """Tells DeepSpeed of a machine without a GPU, before it looks for one and warns."""
    if not nvidia_here():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")


def end_when_asked() -> dict[int, Any]:
    """Makes SIGTERM and SIGUSR1 end this process at once with PREEMPTED; the handlers before, by signal.

    For what has nothing to save but finished shards and batches of images. A training listens itself, from its first
    step on. Slurm ends a job's other ranks by SIGTERM as soon as the first one has ended, so both mean the same.
    """
    return {number: signal.signal(number, _end_at_once) for number in (signal.SIGTERM, signal.SIGUSR1)}


def _end_at_once(number: int, frame: object) -> None:
    if number == signal.SIGUSR1:  # the notice. SIGTERM may be srun's, since another rank was killed: its code counts
        keep_first_end(PREEMPTED)
    os.write(2, b"asked to end; what is finished is kept\n")
    os._exit(PREEMPTED)


def logs_folder(config: Config) -> Path:
    """Where the ranks' logs are kept."""
    return Path(config.home) / "logs"


def adopt_slurm_ranks() -> None:
    """Takes rank and world size from srun, where the job's script says that srun starts the ranks."""
    if os.environ.get(RANKS_FROM) == "slurm":
        for name, theirs in (("RANK", "PROCID"), ("LOCAL_RANK", "LOCALID"), ("WORLD_SIZE", "STEP_NUM_TASKS")):
            os.environ[name] = os.environ[f"SLURM_{theirs}"]
        # "8(x2),4" for two hosts of 8 and one of 4; a script of ours starts as many on each.
        os.environ["LOCAL_SIZE"] = re.split(r"[(,]", os.environ["SLURM_STEP_TASKS_PER_NODE"])[0]


def write_config(folder: Path, config: Config, keep: bool = False) -> None:
    """Writes the resolved configuration beside an artefact; the first rank does it, for all.

    `keep`: what is there stays, of whoever made the artefact; and a folder that can't be written stays without.
    """
    if keep and ((folder / "config.yaml").is_file() or not os.access(folder, os.W_OK)):
        return
    if os.environ.get("RANK", "0") == "0":
        aside = folder / f".config.{secrets.token_hex(8)}.part"  # several jobs, in containers of one process number
        aside.write_text(to_yaml(config))
        os.replace(aside, folder / "config.yaml")


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
