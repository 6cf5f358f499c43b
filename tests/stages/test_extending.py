"""The examples of docs/extending.md are applied to a copy of the code; then it trains and evaluates with them."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.demo import TINY
from tests.support.runs import metrics

ROOT = Path(__file__).parents[2]
PACKAGES = ("launch", "model_zoo", "data", "train", "eval")
USED = [  # as the page says
    "conditioning.p=step_at",
    "conditioning.p_args={at: 0.7}",
    "train.losses.direction=0.5",
    "student.rule=channel-medium",
    "student.init=random",
    "eval.metrics=[digits, contrast]",
]


def diffs() -> str:
    """Returns the page's diffs, one after the other."""
    text = (ROOT / "docs/extending.md").read_text()
    assert all(word in text for word in USED)
    return "\n".join(re.findall(r"```diff\n(.*?)```", text, re.DOTALL))


def copied(folder: Path) -> Path:
    """Copies the packages, with the page's changes."""
    code = folder / "randcond"
    for name in PACKAGES:
        shutil.copytree(ROOT / name, code / name, ignore=shutil.ignore_patterns("__pycache__", "results"))
    subprocess.run(["git", "apply", "-C1"], cwd=code, input=diffs(), text=True, check=True)
    return code


def test_the_examples_fit_the_code(tmp_path: Path) -> None:
    code = copied(tmp_path)
    changed = re.findall(r"^\+\+\+ b/(.*)$", diffs(), re.MULTILINE)
    assert len(changed) == 8
    for how in (["check"], ["format", "--check"]):
        command = [sys.executable, "-m", "ruff", *how, "--config", str(ROOT / "pyproject.toml"), *changed]
        subprocess.run(command, cwd=code, check=True)


@pytest.mark.slow
def test_the_examples_train_and_are_scored(tmp_path: Path) -> None:
    copied(tmp_path)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    words = ["run", "all", "demo-with", *TINY, "train.steps=4", *USED, "eval.of=[student]"]
    command = [sys.executable, "-m", "randcond.launch.cli", *words]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    run = tmp_path / "runs/demo/with"
    assert "p(t) step_at of time replaces 30." in (run / "logs/train-rank-0000.log").read_text() + done.stdout
    assert all(0 < line["loss/direction"] < 2 for line in metrics(run))
    scores = json.loads((run / "eval-ema/scores.json").read_text())
    assert 0 < scores["splits"]["all"]["contrast"] < 1 and "contrast" in scores["intervals"]["all"]
    assert "contrast" in (run / "report.md").read_text()
