"""Where artefacts of an experiment are, and what paths in a configuration mean."""

from collections.abc import Sequence
from pathlib import Path

from randcond.launch.config.sections import Config

PACKAGE = Path(__file__).resolve().parent.parent.parent
EXPERIMENTS = PACKAGE / "launch" / "experiments"
TABLES = PACKAGE / "launch" / "tables"


def eval_folder(config: Config, weights: str | None = None) -> Path:
    """Where an evaluation is kept: a student's raw and EMA weights apart (default: those of `eval.weights`)."""
    if not config.trains:
        return Path(config.paths.reference)
    return Path(config.paths.run) / f"eval-{weights or config.eval.weights}"


def watched_folder(config: Config, step: int, weights: str) -> Path:
    """Where an evaluation while training is kept."""
    return Path(config.paths.run) / "evaluations" / f"step-{step:06d}" / weights


def student_folder(config: Config, weights: str) -> Path:
    """Where a run exports its student with raw or ema weights."""
    return Path(config.paths.run) / {"raw": "student", "ema": "student_ema"}[weights]


def resolve_path(path: str) -> Path:
    """A path of the configuration; `package:` stands for the folder randcond is installed in."""
    if path.startswith("package:"):
        return PACKAGE / path.removeprefix("package:")
    return Path(path)


def is_url(path: str) -> bool:
    """Whether a path is an address that fsspec opens (http, s3, ...)."""
    return "://" in path


def resolve_sources(sources: Sequence[str]) -> list[str]:
    """Caption sources of the configuration: URLs as they are, `package:` as in `resolve_path`."""
    return [str(resolve_path(source)) if source.startswith("package:") else source for source in sources]


def logs_folder(config: Config) -> Path:
    """Where the ranks' logs are kept."""
    return Path(config.home) / "logs"
