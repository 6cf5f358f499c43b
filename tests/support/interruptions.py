"""Interrupts every stage of the demo by Ctrl-C or kill -9, and resumes it with the same command.

`python -m tests.support.interruptions FOLDER [section.key=value ...]` does this with the demo at its real size.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from tests.support import warm
from tests.support.patience import HANG

Running = subprocess.Popen[Any] | warm.Process

FRONT = "deepspeed.launcher.runner"  # the front end of the launcher
NODE = "deepspeed.launcher.launch"  # the process that starts the ranks of one host
FORKS = "randcond.launch.cluster.fork_server"  # without a launcher: forks the ranks
DEEPSPEED = ("--launcher", "deepspeed")
RANDCOND = [sys.executable, "-m", "randcond.launch.cli"]


def below(process: Running) -> list[psutil.Process]:
    """Returns all processes that a running `randcond` command has started."""
    return psutil.Process(process.pid).children(recursive=True)


def ranks(process: Running) -> list[psutil.Process]:
    """Returns the stage processes of a running `randcond` command."""
    found = []
    for child in below(process):
        try:
            words = child.cmdline()
        except psutil.Error:
            continue
        module = words[words.index("-m") + 1] if "-m" in words else ""
        if module.startswith("randcond.") and not module.startswith("randcond.launch."):
            found.append(child)
    return found


def launcher(process: Running, name: str) -> psutil.Process:
    """Waits for a process that starts ranks, and returns it. `name`: FRONT, NODE or FORKS."""
    found: list[psutil.Process] = []

    def runs() -> bool:
        for child in below(process):
            with suppress(psutil.Error):
                if any(word.endswith(name) for word in child.cmdline()[:5]):
                    found.append(child)
        return bool(found)

    wait_for(runs, process)
    return found[0]


def wait_for(happened: Callable[[], bool], process: Running, seconds: float = HANG) -> None:
    """Waits until `happened` returns True. Fails if the process ends first."""
    deadline = time.monotonic() + seconds
    while not happened():
        assert process.poll() is None, f"ended with {process.returncode} too early"
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.02)


def wait_until_gone(processes: list[psutil.Process]) -> None:
    """Waits until every process has ended. A zombie counts as ended: its new parent has just not collected it yet."""

    def runs(process: psutil.Process) -> bool:
        try:
            return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False

    deadline = time.monotonic() + HANG
    while left := [process for process in processes if runs(process)]:
        assert time.monotonic() < deadline, f"outlived the command: {[process.cmdline() for process in left]}"
        time.sleep(0.02)


@dataclass
class Blow:
    """An interruption of a command: `strike` is called `delay` seconds after `sign` first returns True."""

    what: str
    strike: Callable[[Any], None]
    sign: Callable[[], bool] = lambda: True
    delay: float = 0.5
    flags: tuple[str, ...] = ()  # of the command


def interrupt(folder: Path, words: list[str], blow: Blow) -> int:
    """Starts `randcond WORDS`, interrupts its stage and waits until all processes have ended; returns the exit code."""
    with (folder / "log.txt").open("a") as out:
        process = subprocess.Popen([*RANDCOND, *words, *blow.flags], cwd=folder, stdout=out, stderr=out)
        wait_for(lambda: bool(ranks(process)) and blow.sign(), process)
        time.sleep(blow.delay)
        children = below(process)
        assert ranks(process), f"{words}: the stage was over before {blow.what}"
        blow.strike(process)
        process.wait(timeout=HANG)
    wait_until_gone(children)
    return process.returncode


def interrupted_demo(folder: Path, overrides: list[str]) -> dict[str, Any]:
    """Runs the demo stage by stage, interrupts each stage and runs its command again; returns the report."""
    demo = folder / "runs" / "demo"

    def there(pattern: str, count: int = 1) -> Callable[[], bool]:
        return lambda: len(list(demo.glob(pattern))) >= count

    def ctrl_c(process: Any) -> None:
        process.send_signal(signal.SIGINT)

    def kill_all(process: Any) -> None:
        process.kill()

    def kill_rank(process: Any) -> None:
        ranks(process)[-1].kill()

    def kill_launcher(name: str) -> Callable[[Any], None]:
        def kill(process: Any) -> None:
            found = launcher(process, name)
            time.sleep(8.0)
            found.kill()

        return kill

    stages: list[tuple[str, str, list[Blow]]] = [
        ("pool", "demo-with", [Blow("Ctrl-C", ctrl_c, delay=0.0), Blow("kill -9", kill_all, delay=0.0)]),
        (
            "cache",
            "demo-with",
            [
                Blow("Ctrl-C", ctrl_c, there("cache/latents-00000.tar"), delay=0.0),
                Blow("kill -9", kill_all, there("cache/plan.json"), delay=0.0),
            ],
        ),
        ("train", "demo-without", []),
        ("eval", "demo-without", []),
        (
            "train",
            "demo-with",
            [
                Blow("Ctrl-C", ctrl_c, there("with/checkpoints/step-*")),
                Blow("kill -9 of all", kill_all, there("with/checkpoints/step-*", 2)),
                Blow("kill -9 of a rank", kill_rank, there("with/checkpoints/step-*", 3)),
                Blow("kill -9 of the process that forks", kill_launcher(FORKS), delay=0.0),
                Blow("kill -9 of the node's launcher", kill_launcher(NODE), delay=0.0, flags=DEEPSPEED),
                Blow("kill -9 of deepspeed", kill_launcher(FRONT), delay=0.0, flags=DEEPSPEED),
            ],
        ),
        (
            "eval",
            "demo-with",
            [
                Blow("Ctrl-C", ctrl_c, delay=4.0),
                Blow("kill -9", kill_all, there("with/eval-ema/plan.json"), delay=0.0),
            ],
        ),
        ("report", "demo", [Blow("Ctrl-C", ctrl_c), Blow("kill -9", kill_all, delay=2.0)]),
    ]
    for stage, name, blows in stages:
        words = ["run", stage, name, *overrides]
        for blow in blows:
            code = interrupt(folder, words, blow)
            print(f"{stage}, {blow.what}: ended with {code}", flush=True)
            assert code != 0
        with (folder / "log.txt").open("a") as out:
            subprocess.run([*RANDCOND, *words], cwd=folder, check=True, stdout=out, stderr=out)
        print(f"{stage} {name}: done by the same command", flush=True)
    return read_report(folder)


def read_report(folder: Path) -> dict[str, Any]:
    """Returns the demo's report without the training times, which differ between equal runs."""
    report = json.loads((folder / "runs/demo/report.json").read_text())
    for arm in report["arms"].values():
        arm.pop("seconds")
    return report


if __name__ == "__main__":
    where = Path(sys.argv[1])
    where.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("PYTHONUNBUFFERED", "1")
    print(
        json.dumps({name: arm["digit_accuracy"] for name, arm in interrupted_demo(where, sys.argv[2:])["arms"].items()})
    )
