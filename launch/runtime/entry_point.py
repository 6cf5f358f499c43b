"""The entry every stage shares: `python -m randcond.PACKAGE [STAGE] EXPERIMENT [key=value ...] [--dry-run]`.

Reads the experiment, checks it, pins the threads, and turns the user's mistakes into one line instead of a traceback.
"""

import atexit
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable
from typing import Any, NoReturn

from randcond.launch.config.experiments import load_config, to_yaml
from randcond.launch.config.paths import logs_folder
from randcond.launch.config.sections import Config
from randcond.launch.errors import UserError
from randcond.launch.runtime.exit_codes import record_first_exit, report_error
from randcond.launch.runtime.logs import flush, log_to, start_console
from randcond.launch.runtime.network_interface import name_interface
from randcond.launch.runtime.processes import (
    end_with_parent,
    exit_when_preempted,
    limit_threads,
    name_accelerator,
    read_slurm_ranks,
)

Stage = Callable[[Config], None]


def stage_main(stages: dict[str, tuple[Stage, Stage]], argv: list[str] | None = None) -> None:
    """Runs one of a package's stages; `stages` maps a name to (check, run), both given the resolved configuration.

    `--dry-run` prints the resolved configuration and checks it against what is on disk, and does nothing else.
    `--local_rank=N`, which launchers append, is accepted and ignored. Of several ranks, each writes a log of its own.
    Ends this process with 0, or a code of `runtime/exit_codes.py`.
    """
    start_console()
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
            raise UserError(f"unknown flag {unknown[0]}; {usage}")
        stage = words.pop(0) if len(stages) > 1 else next(iter(stages))
        if stage not in stages:
            raise UserError(f"unknown stage {stage!r}; {usage}")
        if not words:
            raise UserError(f"no experiment given; {usage}")
        config = load_config(words[0], words[1:])
        check, run = stages[stage]
        read_slurm_ranks()
        name_interface()
        name_accelerator()
        end_with_parent()
        before = exit_when_preempted()
        limit_threads(config)
        check(config)
        if "--dry-run" in flags:
            print(to_yaml(config), end="")
            return
        if "RANK" in os.environ:
            rank = int(os.environ["RANK"])
            log_to(logs_folder(config) / f"{stage}-rank-{rank:04d}.log", rank)
        leave = _end
        try:
            run(config)
        except SystemExit as asked:
            leave(int(asked.code or 0))
        leave(0)
    except (Exception, KeyboardInterrupt) as error:
        leave(report_error(error))
    finally:
        flush()
        for number, handler in before.items():
            signal.signal(number, handler)


def _end_early(code: int) -> NoReturn:
    record_first_exit(code)
    sys.exit(code)


def _end(code: int) -> NoReturn:
    """Ends this process without taking its libraries apart.

    C++ threads that outlive their owners (gloo's, the rendezvous store's) now and then abort there, and the launcher
    would take a finished run for a lost rank, or a mistake for something that passes.
    """
    record_first_exit(code)
    for child in multiprocessing.active_children():  # loaders that an error left: they heed no signal, and atexit joins
        child.kill()
    threading._shutdown()  # type: ignore[attr-defined]  # what is being written is written
    atexit._run_exitfuncs()
    flush()
    os._exit(code)
