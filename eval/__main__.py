"""`python -m randcond.eval EXPERIMENT`; the report is `python -m randcond.eval.report EXPERIMENT|TABLE`."""

from randcond.launch.config import Config, eval_folder
from randcond.launch.stage import stage_main, write_config


def check(config: Config) -> None:
    """Fails on captions the judge cannot read before any image is drawn."""
    from randcond.data.digits.world import read_label
    from randcond.eval.generate import choose_prompts

    for caption in choose_prompts(config).captions:
        read_label(caption)


def evaluate(config: Config) -> None:
    """Draws and scores teacher and student."""
    from randcond.eval.run import run

    run(config)
    write_config(eval_folder(config), config)


if __name__ == "__main__":
    stage_main({"eval": (check, evaluate)})
