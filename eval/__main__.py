"""The evaluation stage: `python -m randcond.eval EXPERIMENT`. `randcond.eval.report` writes the report."""

from randcond.launch.config.paths import resolve_path
from randcond.launch.config.sections import Config
from randcond.launch.runtime.entry_point import stage_main


def check(config: Config) -> None:
    """Raises UserError if teacher, captions, metrics or protocol are wrong; called before any image is drawn."""
    from randcond.eval.checks import check_evaluation, check_made  # imports torch; stage_main() must set threads first
    from randcond.model_zoo.families.faults.look import check_teacher

    if config.trains:
        check_teacher(resolve_path(config.teacher.path))
    check_evaluation(config)
    check_made(config)


def evaluate(config: Config) -> None:
    """Draws and scores the images of teacher and student."""
    from randcond.eval.stage import run
    from randcond.launch.device.batches import with_eval_batch

    run(with_eval_batch(config))


if __name__ == "__main__":
    stage_main({"eval": (check, evaluate)})
