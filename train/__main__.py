"""`python -m randcond.train EXPERIMENT`, and what `deepspeed --module randcond.train` executes on every rank."""

from randcond.launch.config.sections import Config
from randcond.launch.runtime.entry_point import stage_main


def check(config: Config) -> None:
    """Fails on what can be known to be wrong before the first step."""
    from randcond.launch.runtime.ranks import world_size
    from randcond.train.checks import check_grid, check_training

    check_training(config, world_size())
    check_grid(config)


def train(config: Config) -> None:
    """Trains the experiment's student."""
    from randcond.train.loop import run

    run(config)


if __name__ == "__main__":
    stage_main({"train": (check, train)})
