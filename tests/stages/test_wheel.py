"""A wheel of randcond, installed outside of the clone with what it requires: every file is there, and commands run."""

import json
import subprocess
import zipfile
from pathlib import Path

import pytest

from tests.support.demo import TINY
from tests.support.environments import ROOT, build_wheel, environment
from tests.support.patience import HANG

PACKAGES = ("launch", "model_zoo", "data", "train", "eval")
OF_THE_CLONE = ("launch/containers", "launch/tables/results")  # no command reads them
ONE_RANK = [*TINY, "engine.processes=1"]
# Calls the command line once for each list of words, and prints each exit code and the last line of each output.
CALLS = """
import contextlib, io, json, sys
from randcond.launch.cli import main
def call(words):
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        try:
            main(words)
            code = 0
        except SystemExit as ended:
            code = ended.code
    return code, out.getvalue().strip()
print(json.dumps([call(words) for words in json.loads(sys.argv[1])]))
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_wheel(tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def trainer(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns the programs of an environment with the wheel and what a training needs, without extras."""
    return environment(tmp_path_factory.mktemp("trainer") / "environment", wheel)


def run(program: Path, folder: Path, *words: str, code: int = 0) -> str:
    """Runs a program in a folder that has nothing of the clone, and returns its output."""
    done = subprocess.run([str(program), *words], cwd=folder, capture_output=True, text=True, timeout=HANG)
    assert done.returncode == code, f"{words}\n{done.stdout}{done.stderr}"
    return done.stdout + done.stderr


@pytest.mark.heavy
def test_the_wheel_has_every_file_that_is_read_and_no_test(wheel: Path) -> None:
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", *PACKAGES]
    files = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    tracked = {name for name in files if (ROOT / name).is_file() and not name.startswith(OF_THE_CLONE)}
    inside = set(zipfile.ZipFile(wheel).namelist())
    assert {name for name in inside if ".dist-info/" not in name} == {f"randcond/{name}" for name in tracked}


@pytest.mark.heavy
def test_commands_run_outside_of_the_clone_and_name_the_extras_they_lack(trainer: Path, tmp_path: Path) -> None:
    (tmp_path / "captions.txt").write_text("a cat\n")
    show = {
        "demo-with": ["list"],
        "train.steps": ["config", "train"],
    }
    show |= {"GPU-hours": ["plan", "demo"]}
    fail = {
        "the report needs torch-fidelity": ["report", "demo"],
        "randcond eval stats needs torch-fidelity": ["eval", "stats", "images", "out"],
        "asking a language model needs openai, aiolimiter": ["concepts", "split", "out", "captions.txt", "model=m"],
        "s3://bucket/a.txt needs s3fs": ["pool", "build", "out", "s3://bucket/a.txt"],
    }
    asked = {**show, **fail}
    answers = json.loads(run(trainer / "python", tmp_path, "-c", CALLS, json.dumps(list(asked.values()))))
    for (text, words), (code, said) in zip(asked.items(), answers, strict=True):
        assert text in said, (words, said)
        assert code == (2 if text in fail else 0), (words, said)
        if text in fail:
            assert said.startswith("error: ") and len(said.splitlines()) == 1, (words, said)
            assert "not installed here: pip install 'randcond[" in said, (words, said)


@pytest.mark.heavy
def test_a_trainer_without_the_evaluation_is_told_before_any_work(trainer: Path, tmp_path: Path) -> None:
    said = run(trainer / "randcond", tmp_path, "run", "all", "demo-with", *ONE_RANK, code=2)
    assert "error: demo-with: the evaluation needs torch-fidelity, " in said and "Traceback" not in said
    assert "pip install 'randcond[eval]'" in said and not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_a_trainer_trains_and_with_the_extra_also_evaluates(wheel: Path, trainer: Path, tmp_path: Path) -> None:
    for words in (["list"], ["config", "train"], ["students", "--rule", "block-base"], ["plan", "demo"]):
        assert run(trainer / "randcond", tmp_path, *words)
    for stage in ("pool", "cache", "train"):
        run(trainer / "randcond", tmp_path, "run", stage, "demo-with", *ONE_RANK)
    assert list(tmp_path.rglob("*.tar")) and list(tmp_path.rglob("train.json"))
    run(trainer / "randcond", tmp_path, "export", "demo-with", *ONE_RANK, "--out", "exported")
    with_eval = environment(tmp_path / "with-eval", wheel, "eval")
    run(with_eval / "randcond", tmp_path, "run", "all", "demo-with", *ONE_RANK)
    assert list(tmp_path.rglob("report.html"))
