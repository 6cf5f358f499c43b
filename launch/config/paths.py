"""Folders of an experiment's artefacts, and the meaning of paths in a configuration."""

from collections.abc import Sequence
from pathlib import Path

from randcond.launch.config.sections import Config

PACKAGE = Path(__file__).resolve().parent.parent.parent
EXPERIMENTS = PACKAGE / "launch" / "experiments"
TABLES = PACKAGE / "launch" / "tables"


def eval_folder(config: Config, weights: str | None = None) -> Path:
    """Returns the folder of an evaluation. A student's raw and EMA weights have different folders.

    `weights`: "raw" or "ema"; None: `eval.weights`.
    """
    if not config.trains:
        return Path(config.paths.reference)
    return Path(config.paths.run) / f"eval-{weights or config.eval.weights}"


def watched_folder(config: Config, step: int, weights: str) -> Path:
    """Returns the folder of an evaluation during training."""
    return Path(config.paths.run) / "evaluations" / f"step-{step:06d}" / weights


def student_folder(config: Config, weights: str) -> Path:
    """Returns the folder that a run exports its student to, with raw or EMA weights."""
    return Path(config.paths.run) / {"raw": "student", "ema": "student_ema"}[weights]


def exported_weights(config: Config) -> list[str]:
    """Returns the weights that a run exports students of: raw and, unless `engine.ema` is off, ema."""
    return ["raw"] if config.engine.ema == "off" else ["raw", "ema"]


def resolve_path(path: str) -> Path:
    """Returns a path of the configuration. `package:` is replaced by the folder that randcond is installed in."""
    if path.startswith("package:"):
        return PACKAGE / path.removeprefix("package:")
    return Path(path)


def is_url(path: str) -> bool:
    """Returns True for a URL that fsspec opens (http, s3, ...)."""
    return "://" in path


def resolve_sources(sources: Sequence[str]) -> list[str]:
    """Returns caption sources with `package:` resolved as in `resolve_path`, and everything else unchanged."""
    return [str(resolve_path(source)) if source.startswith("package:") else source for source in sources]


def logs_folder(config: Config) -> Path:
    """Returns the folder of the ranks' logs."""
    return Path(config.home) / "logs"
