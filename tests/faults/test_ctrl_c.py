"""Ctrl-C during `randcond run`: no traceback, exit code 130, and one line that says how to go on."""

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from randcond.launch.cluster.commands import Step
from randcond.launch.cluster.supervise import run_steps
from tests.support.demo import TINY
from tests.support.interruptions import Blow, interrupt

STEPS = ["train.steps=4000", "train.sample_every=0", "train.checkpoint_every=2"]


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("ranks", "launcher", "when"),
    [
        (1, "", "at the start"),
        (1, "", "in training"),
        (2, "", "at the start"),
        pytest.param(2, "", "in training", marks=pytest.mark.slow),
        (2, "deepspeed", "at the start"),
        pytest.param(2, "deepspeed", "in training", marks=pytest.mark.slow),
        pytest.param(2, "torchrun", "at the start", marks=pytest.mark.slow),
        pytest.param(2, "torchrun", "in training", marks=pytest.mark.slow),
    ],
)
def test_ctrl_c(world: Path, ranks: int, launcher: str, when: str) -> None:
    """Without a launcher the stages are forked."""
    run = world / "runs" / f"cut {ranks} {launcher} {when}"
    words = ["run", "train", "demo-with", *TINY, *STEPS, f"paths.run={run}", "--gpus", str(ranks)]
    words += ["--launcher", launcher] if launcher else []
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


def test_ctrl_c_between_two_steps(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Also where the shell has it ignored, as for a command in the background."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    asks = f"import os, signal; os.kill({os.getpid()}, signal.SIGINT)"
    try:
        with pytest.raises(SystemExit) as ended:
            run_steps([Step("first", [sys.executable, "-c", asks]), Step("second", ["false"])])
        assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)
    said = capsys.readouterr().out
    assert ended.value.code == 130
    assert said.count("interrupted; finished work is kept") == 1 and "[2/2]" not in said
