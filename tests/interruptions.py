"""Interrupts the demo in every stage, by Ctrl-C and by kill -9 of whatever part of it, and lets the same command go on.

`python -m tests.interruptions FOLDER [section.key=value ...]` does it at the demo's own size.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

COMMAND = [sys.executable, "-m", "randcond.launch.cli", "run", "all", "demo"]


def below(process: subprocess.Popen[Any]) -> list[psutil.Process]:
    """Everything a running `randcond` command has started."""
    return psutil.Process(process.pid).children(recursive=True)


def ranks(process: subprocess.Popen[Any]) -> list[psutil.Process]:
    """The stage processes among them."""
    found = []
    for child in below(process):
        try:
            words = child.cmdline()
        except psutil.Error:
            continue
        if "-m" in words and words[words.index("-m") + 1].startswith("randcond."):
            found.append(child)
    return found


def launcher(process: subprocess.Popen[Any], name: str) -> psutil.Process:
    """The deepspeed front end ("deepspeed") or its node process ("deepspeed.launcher.launch")."""
    for child in below(process):
        if any(word.endswith(name) for word in child.cmdline()[:5]):
            return child
    raise AssertionError(f"no {name} is running")


def wait_for(happened: Callable[[], bool], process: subprocess.Popen[Any], seconds: float = 600.0) -> None:
    """Waits until something happened; fails if the process ends before."""
    deadline = time.monotonic() + seconds
    while not happened():
        assert process.poll() is None, f"ended with {process.returncode} too early"
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.02)


def interrupt(folder: Path, overrides: list[str], sign: Callable[[], bool], strike: Callable[[Any], None]) -> int:
    """Starts the demo, strikes when the sign is there, waits for everything to be gone; returns the exit code."""
    with (folder / "log.txt").open("a") as log:
        process = subprocess.Popen([*COMMAND, *overrides], cwd=folder, stdout=log, stderr=log)
        wait_for(sign, process)
        time.sleep(0.3)
        children = below(process)
        strike(process)
        process.wait(timeout=120)
    _, alive = psutil.wait_procs(children, timeout=20)
    left = [child.cmdline() for child in alive if child.status() != psutil.STATUS_ZOMBIE]
    assert not left, f"outlived the command: {left}"
    return process.returncode


def interrupted_demo(folder: Path, overrides: list[str]) -> dict[str, Any]:
    """Runs the demo through an interruption in each stage and returns its report."""
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
        return lambda process: launcher(process, name).kill()

    blows: list[tuple[str, Callable[[], bool], Callable[[Any], None]]] = [
        ("pool, Ctrl-C", lambda: True, ctrl_c),
        ("pool, kill -9", there("pool"), kill_all),
        ("cache, Ctrl-C", there("cache/latents-00000.tar"), ctrl_c),
        ("cache, kill -9", there("cache/latents-*.tar", 2), kill_all),
        ("train, Ctrl-C", there("without/checkpoints/step-*"), ctrl_c),
        ("train, kill -9 of a rank", there("without/checkpoints/step-*", 2), kill_rank),
        (
            "train, kill -9 of the node's launcher",
            there("with/checkpoints/step-*"),
            kill_launcher("deepspeed.launcher.launch"),
        ),
        ("train, kill -9 of deepspeed", there("with/checkpoints/step-*", 2), kill_launcher("bin/deepspeed")),
        ("eval, Ctrl-C", there("with/train.json"), ctrl_c),
        ("eval, kill -9 of all", there("with/eval-ema/plan.json"), kill_all),
        ("report, Ctrl-C", there("with/eval-ema/scores.json"), ctrl_c),
    ]
    for name, sign, strike in blows:
        code = interrupt(folder, overrides, sign, strike)
        print(f"{name}: ended with {code}", flush=True)
        assert code != 0
    subprocess.run([*COMMAND, *overrides], cwd=folder, check=True, stdout=(folder / "log.txt").open("a"))
    return read_report(folder)


def read_report(folder: Path) -> dict[str, Any]:
    """The demo's report without what only a clock decides."""
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
