"""`python -m randcond.train EXPERIMENT`. `deepspeed --module randcond.train` runs this module on every rank."""

from randcond.launch.config.sections import Config
from randcond.launch.runtime.entry_point import stage_main


def check(config: Config) -> None:
    """Checks the experiment before any work starts. Raises UserError if a key or an input is wrong."""
    from randcond.launch.runtime.ranks import world_size
    from randcond.train.checks import check_grid, check_training

    check_training(config, world_size())
    check_grid(config)


def train(config: Config) -> None:
    """Trains the student of the experiment."""
    from randcond.train.loop import run

    run(config)


if __name__ == "__main__":
    stage_main({"train": (check, train)})
