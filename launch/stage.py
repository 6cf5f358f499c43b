"""The entry every stage shares: `python -m randcond.PACKAGE [STAGE] EXPERIMENT [key=value ...] [--dry-run]`.

Reads the experiment, checks it, pins the threads, and turns the user's mistakes into one line instead of a traceback.
"""

import ctypes
import os
import platform
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from randcond.launch.config import Config, load_config, to_yaml

Stage = Callable[[Config], None]


def stage_main(stages: dict[str, tuple[Stage, Stage]], argv: list[str] | None = None) -> None:
    """Runs one of a package's stages; `stages` maps a name to (check, run), both given the resolved configuration.

    `--dry-run` prints the resolved configuration and checks it against what is on disk, and does nothing else.
    `--local_rank=N`, which launchers append, is accepted and ignored. Exits 2 on the user's mistake, 130 on Ctrl-C.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    names = " | ".join(stages)
    usage = f"usage: [{names}] EXPERIMENT [section.key=value ...] [--dry-run]"
    arguments = [word for word in arguments if not word.startswith("--local_rank")]
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
        end_with_parent()
        limit_threads(config)
        check(config)
        if "--dry-run" in flags:
            print(to_yaml(config), end="")
            return
        run(config)
    except (ValueError, FileNotFoundError) as error:
        if os.environ.get("RANDCOND_TRACEBACK"):
            raise
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)


def write_config(folder: Path, config: Config) -> None:
    """Writes the resolved configuration beside an artefact; the first rank does it, for all."""
    if os.environ.get("RANK", "0") == "0":
        aside = folder / f".config.{os.getpid()}.part"
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
