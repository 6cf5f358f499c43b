"""The student of a finished run, if the run is the one that an experiment describes."""

from pathlib import Path
from typing import Any

from randcond.launch.config.identity import absent_settings, differences, identity_of
from randcond.launch.config.paths import student_folder
from randcond.launch.config.sections import Conditioning, Config, Student
from randcond.launch.errors import UserError
from randcond.launch.runtime.files import read_record
from randcond.launch.runtime.this_command import stage_command

_RULE = ("rule", "keep")  # of student: what it is, wherever it started from
_ABSENT = {
    **absent_settings(Conditioning, "run", above="conditioning."),
    **absent_settings(Student, "run", above="student."),
}


def trained_student(config: Config, weights: str) -> Path:
    """Returns the folder of the finished run's student with `weights` (raw or ema).

    Raises UserError if there is none, or if the run is that of another experiment.
    """
    folder = student_folder(config, weights)
    finished = (Path(config.paths.run) / "train.json").is_file()
    if finished and weights == "ema" and not folder.is_dir() and student_folder(config, "raw").is_dir():
        raise UserError(
            f"no EMA weights at {folder}: the run was trained with engine.ema=off; take its raw weights "
            f"(eval.weights=raw, or --weights raw of randcond export)"
        )
    if not finished or not folder.is_dir():
        raise UserError(f"no trained student at {folder}: train it with {stage_command('train')}")
    check_run(config)
    return folder


def check_run(config: Config) -> None:
    """Raises UserError if the finished run in the experiment's folder had another p(t) or student rule."""
    path = Path(config.paths.run) / "train.json"
    if not path.is_file():
        return
    stored = read_record(path).get("identity", {})
    expected = {
        "conditioning": identity_of(config.conditioning, "run"),
        "student": _rule(identity_of(config.student, "run")),
    }
    found = {"conditioning": stored.get("conditioning", {}), "student": _rule(stored.get("student", {}))}
    if stored and (wrong := differences(found, expected, _ABSENT)):
        raise UserError(
            f"paths.run: the run at {config.paths.run} is not that of {config.name}: {', '.join(map(str, wrong[:3]))}; "
            f"name its own experiment, or another paths.run"
        )


def _rule(student: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in student.items() if key in _RULE}
