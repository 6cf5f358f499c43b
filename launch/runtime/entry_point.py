"""The entry point of every stage: `python -m randcond.PACKAGE [STAGE] EXPERIMENT [key=value ...] [--dry-run]`.

Reads and checks the experiment, and sets the number of CPU threads. Reports a user's mistake as one line without a
traceback.
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
from randcond.launch.machine.launcher_ranks import settle_ranks
from randcond.launch.machine.network_interface import name_interface
from randcond.launch.machine.user_folders import give_user_folders
from randcond.launch.runtime.exit_codes import record_first_exit, report_error
from randcond.launch.runtime.logs import flush, log, log_to, start_console
from randcond.launch.runtime.processes import (
    end_with_parent,
    exit_when_preempted,
    limit_threads,
    name_accelerator,
    read_slurm_ranks,
    take_interrupts,
)
from randcond.launch.runtime.this_command import remember_experiment

Stage = Callable[[Config], None]


def stage_main(stages: dict[str, tuple[Stage, Stage]], argv: list[str] | None = None) -> None:
    """Runs one of a package's stages, then ends this process with 0 or a code of `runtime/exit_codes.py`.

    `stages` maps a stage's name to two functions: (check, run). Both get the resolved configuration.
    `--dry-run` prints the resolved configuration, checks it against the files on disk, and does nothing else.
    `--local_rank=N`, which launchers append, is ignored. Each rank writes its own log file, unless RANDCOND_CONSOLE is
    set.
    """
    start_console()
    arguments = list(sys.argv[1:] if argv is None else argv)
    previous_handlers: dict[int, Any] = {}
    names = " | ".join(stages)
    usage = f"usage: [{names}] EXPERIMENT [section.key=value ...] [--dry-run]"
    arguments = [word for word in arguments if not word.startswith("--local_rank")]
    end: Callable[[int], Any] = _end_early
    if not arguments or {"--help", "-h"} & set(arguments):
        print(usage)
        return
    flags = [word for word in arguments if word.startswith("-")]
    words = [word for word in arguments if not word.startswith("-")]
    try:
        previous_handlers = take_interrupts()
        if unknown := [flag for flag in flags if flag not in {"--dry-run"}]:
            raise UserError(f"unknown flag {unknown[0]}; {usage}")
        stage = words.pop(0) if len(stages) > 1 else next(iter(stages))
        if stage not in stages:
            raise UserError(f"unknown stage {stage!r}; {usage}")
        if not words:
            raise UserError(f"no experiment given; {usage}")
        remember_experiment(words[0], words[1:])
        config = load_config(words[0], words[1:])
        check, run = stages[stage]
        previous_handlers |= _prepare(config)
        check(config)
        if "--dry-run" in flags:
            print(to_yaml(config), end="")
            return
        if stage != "pool" and not os.environ.get("RANDCOND_CONSOLE"):  # a pool has no ranks, and prints little
            rank = int(os.environ.get("RANK", "0"))
            log_to(logs_folder(config) / f"{stage}-rank-{rank:04d}.log", rank)
        end = _end
        try:
            run(config)
        except SystemExit as exit_request:
            end(int(exit_request.code or 0))
        end(0)
    except (Exception, KeyboardInterrupt) as error:
        end(report_error(error))
    finally:
        flush()
        for number, handler in previous_handlers.items():
            signal.signal(number, handler)


def _prepare(config: Config) -> dict[int, Any]:
    """Sets this process up for its machine and its launcher. Returns the previous signal handlers."""
    read_slurm_ranks()
    settle_ranks()
    if (note := give_user_folders()) and os.environ.get("RANK", "0") == "0":
        log.info(note)
    name_interface()
    name_accelerator()
    end_with_parent()
    limit_threads(config)
    return exit_when_preempted()


def _end_early(code: int) -> NoReturn:
    """Ends this process before its stage has started."""
    record_first_exit(code)
    sys.exit(code)


def _end(code: int) -> NoReturn:
    """Ends this process without running the destructors of its libraries.

    C++ threads that outlive their owners (those of gloo and of the rendezvous store) sometimes abort in a destructor.
    The launcher would then take a finished run for a lost rank, or a user's mistake for a temporary fault.
    """
    record_first_exit(code)
    # After an error, loader processes may still run. They ignore signals, and atexit would wait for them. The handler
    # that torch's DataLoader has set raises an error when a loader process is killed.
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for child in multiprocessing.active_children():
        child.kill()
    threading._shutdown()  # type: ignore[attr-defined]  # waits for threads that write files
    atexit._run_exitfuncs()
    flush()
    os._exit(code)
