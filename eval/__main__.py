"""`python -m randcond.eval EXPERIMENT`; the report is `python -m randcond.eval.report.report EXPERIMENT|TABLE`."""

from randcond.launch.config.sections import Config
from randcond.launch.runtime.entry_point import stage_main


def check(config: Config) -> None:
    """Fails on what is wrong with captions, metrics or protocol before any image is drawn."""
    from randcond.eval.checks import check_evaluation  # imports torch, whose threads are not pinned before now

    check_evaluation(config)


def evaluate(config: Config) -> None:
    """Draws and scores teacher and student."""
    from randcond.eval.stage import run

    run(config)


if __name__ == "__main__":
    stage_main({"eval": (check, evaluate)})
