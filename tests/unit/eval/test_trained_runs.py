"""A run is evaluated and reported as the experiment that it was trained by, and as no other."""

from pathlib import Path

import pytest

from randcond.eval.trained_runs import check_run, trained_student
from randcond.launch.config.experiments import load_config
from randcond.launch.config.identity import identity_of
from randcond.launch.config.sections import Config
from randcond.launch.errors import UserError
from randcond.launch.runtime.files import write_json


def finished(config: Config, **changes: object) -> None:
    """Writes what a finished run of an experiment leaves. changes: other settings of its p(t)."""
    run = Path(config.paths.run)
    (run / "student_ema").mkdir(parents=True, exist_ok=True)
    conditioning = {**identity_of(config.conditioning, "run"), **changes}
    identity = {"conditioning": conditioning, "student": identity_of(config.student, "run")}
    write_json(run / "train.json", {"steps": 4, "identity": identity})


def test_a_run_of_another_experiment_is_refused(tmp_path: Path) -> None:
    words = [f"paths.run={tmp_path / 'run'}"]
    config = load_config("demo-with", words)
    finished(config)
    assert trained_student(config, "ema") == tmp_path / "run/student_ema"
    check_run(load_config("demo-with", [*words, "train.lr=1", "eval.size=3", "student.seed=9"]))
    with pytest.raises(
        UserError, match=r"paths.run: the run at .* is not that of demo-without: conditioning\.p is 'exp"
    ):
        trained_student(load_config("demo-without", words), "ema")
    with pytest.raises(UserError, match=r"student\.rule is 'block-base' there, 'block-tiny' here"):
        check_run(load_config("demo-with", [*words, "student.rule=block-tiny"]))
    finished(config, p="linear")
    with pytest.raises(UserError, match=r"conditioning\.p is 'linear' there, 'exponential' here"):
        check_run(config)


def test_an_older_run_without_a_key_has_its_default(tmp_path: Path) -> None:
    config = load_config("demo-with", [f"paths.run={tmp_path / 'run'}"])
    finished(config)
    identity = {"conditioning": {"p": "exponential"}, "student": {"rule": "block-base"}}
    write_json(tmp_path / "run/train.json", {"steps": 4, "identity": identity})
    check_run(config)
    write_json(tmp_path / "run/train.json", {"steps": 4})
    check_run(config)
