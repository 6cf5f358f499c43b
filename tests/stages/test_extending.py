"""The examples of docs/extending.md are applied to a copy of the code; then it trains and evaluates with them."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.support import flow_teachers
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
    "eval.metrics=[digits,contrast]",
]
FAMILY = ["teacher.path=TEACHER", "student.rule=depth-2+2"]
ENGINE = ["engine.kind=ddp", "engine.precision=fp32"]


def diffs() -> str:
    """Returns the page's diffs, one after the other."""
    text = (ROOT / "docs/extending.md").read_text()
    assert all(word in text for word in [*USED, *FAMILY, *ENGINE])
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
    assert len(changed) == 15
    for how in (["check"], ["format", "--check"]):
        command = [sys.executable, "-m", "ruff", *how, "--config", str(ROOT / "pyproject.toml"), *changed]
        subprocess.run(command, cwd=code, check=True)


def changed_code(folder: Path, *words: str) -> str:
    """Runs a module of the changed copy in a folder, with the arguments after it. Returns its output."""
    environment = {**os.environ, "PYTHONPATH": f"{folder}{os.pathsep}{ROOT}"}
    command = [sys.executable, "-m", *words]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_the_examples_train_and_are_scored(tmp_path: Path) -> None:
    copied(tmp_path)
    words = ["run", "all", "demo-with", *TINY, "train.steps=4", *USED, "eval.of=[student]"]
    printed = changed_code(tmp_path, "randcond.launch.cli", *words)
    run = tmp_path / "runs/demo/with"
    assert "p(t) step_at of time replaces 30." in (run / "logs/train-rank-0000.log").read_text() + printed
    assert all(0 < line["loss/direction"] < 2 for line in metrics(run))
    scores = json.loads((run / "eval-ema/scores.json").read_text())
    assert 0 < scores["splits"]["all"]["contrast"] < 1 and "contrast" in scores["intervals"]["all"]
    assert "contrast" in (run / "report.md").read_text()


@pytest.mark.slow
def test_the_example_of_an_engine_trains_as_zero(tmp_path: Path) -> None:
    """On two ranks. A checkpoint of one resumes on the other."""
    copied(tmp_path)
    words = ["demo-with", *TINY, "engine.processes=2", "engine.precision=fp32", "train.grad_clip=0.5"]
    for stage in ("pool", "cache"):
        changed_code(tmp_path, "randcond.launch.cli", "run", stage, *words)
    train = ("randcond.launch.cli", "run", "train", *words)
    changed_code(tmp_path, *train, "paths.run=runs/zero")
    changed_code(tmp_path, *train, *ENGINE, "paths.run=runs/ddp", "train.steps=8")
    changed_code(tmp_path, *train, "paths.run=runs/ddp")  # four more steps, on ZeRO-1
    ours = metrics(tmp_path / "runs/ddp")
    theirs = metrics(tmp_path / "runs/zero")
    assert [line["step"] for line in ours] == [line["step"] for line in theirs]
    for key in ("loss/total", "grad_norm"):
        assert [line[key] for line in ours] == pytest.approx([line[key] for line in theirs], rel=1e-4)
    assert "ddp" in changed_code(tmp_path, "randcond.launch.cli", "plan", *words, *ENGINE)


@pytest.mark.slow
def test_the_example_of_a_family_is_its_pipeline_and_trains(tmp_path: Path) -> None:
    copied(tmp_path)
    teacher = flow_teachers.aura_flow(tmp_path / "TEACHER")
    changed_code(tmp_path, "tests.support.example_family", str(teacher))
    things = ("cat", "dog", "table", "tree")
    captions = [f"{number} {thing}" for number in ("one", "two", "a red", "a blue") for thing in things]
    (tmp_path / "captions.txt").write_text("\n".join(captions) + "\n")
    drawn = {"steps": 2, "sampler": "teacher", "resolution": 128}
    mine = {
        "teacher": {"dtype": "fp32", "text_tokens": 16},
        "cache": {"captions": ["captions.txt"], "size": 16, "batch": 8, "shard_size": 16, **drawn},
        "pool": {"sources": ["captions.txt"]},
        "train": {"global_batch": 4, "workers": 0, "steps": 4, "checkpoint_every": 2, "log_every": 1},
        "engine": {"precision": "fp32", "threads": 1},
        "eval": {"captions": ["captions.txt"], "size": 4, "metrics": [], "protocol": "native", **drawn},
        "paths": {"run": "runs/run", "cache": "runs/cache", "pool": "runs/pool", "reference": "runs/teacher"},
    }
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(mine))
    printed = changed_code(tmp_path, "randcond.launch.cli", "run", "all", "mine.yaml", *FAMILY)
    assert "runs/run/student" in printed
    assert len(metrics(tmp_path / "runs/run")) == 4
    assert "depth-2+2" in changed_code(tmp_path, "randcond.launch.cli", "students", "--teacher", str(teacher))
