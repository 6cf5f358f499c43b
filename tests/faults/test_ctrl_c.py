"""Ctrl-C during `randcond run`: no traceback, exit code 130, and one line that says how to go on."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.demo import TINY
from tests.support.interruptions import Blow, interrupt

STEPS = ["train.steps=4000", "train.sample_every=0", "train.checkpoint_every=2"]


@pytest.mark.heavy
@pytest.mark.parametrize("flags", [["--gpus", "1"], ["--gpus", "2"]], ids=["one process", "deepspeed"])
@pytest.mark.parametrize("when", ["at the start", "in training"])
def test_ctrl_c(world: Path, flags: list[str], when: str) -> None:
    run = world / "runs" / f"cut {flags[1]} {when}"
    words = ["run", "train", "demo-with", *TINY, *STEPS, f"paths.run={run}", *flags]
    check_interrupted(world, words, when, lambda: bool(list(run.glob("checkpoints/step-*"))))


@pytest.mark.slow
@pytest.mark.parametrize("when", ["at the start", "in training"])
def test_ctrl_c_under_torchrun(world: Path, when: str) -> None:
    run = world / "runs" / f"cut torchrun {when}"
    words = ["run", "train", "demo-with", *TINY, *STEPS, f"paths.run={run}", "--gpus", "2", "--launcher", "torchrun"]
    check_interrupted(world, words, when, lambda: bool(list(run.glob("checkpoints/step-*"))))


def check_interrupted(world: Path, words: list[str], when: str, trains: Callable[[], bool]) -> None:
    (world / "log.txt").unlink(missing_ok=True)
    sign = trains if when == "in training" else lambda: True
    code = interrupt(world, words, Blow("Ctrl-C", lambda process: process.send_signal(2), sign, delay=0.0))
    said = (world / "log.txt").read_text()
    assert code == 130, said
    for noise in ("Traceback", "KeyboardInterrupt", "ended with code", "exits with return code", "error"):
        assert noise not in said, said
    shown = "interrupted; finished work is kept. To go on, run the same command: randcond run train demo-with"
    assert said.count(shown) == 1 and said.rstrip().splitlines()[-1].startswith(shown)
