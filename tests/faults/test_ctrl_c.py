"""Ctrl-C during `randcond run`: no traceback, exit code 130, and one line that says how to go on."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.demo import TINY
from tests.support.interruptions import Blow, interrupt

STEPS = ["train.steps=4000", "train.sample_every=0", "train.checkpoint_every=2"]


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("ranks", "when"),
    [
        (1, "at the start"),
        (1, "in training"),
        (2, "at the start"),
        pytest.param(2, "in training", marks=pytest.mark.slow),
    ],
)
def test_ctrl_c(world: Path, ranks: int, when: str) -> None:
    """With two ranks under deepspeed's launcher."""
    run = world / "runs" / f"cut {ranks} {when}"
    words = ["run", "train", "demo-with", *TINY, *STEPS, f"paths.run={run}", "--gpus", str(ranks)]
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
