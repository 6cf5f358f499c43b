"""`python -m randcond.train EXPERIMENT`, and what `deepspeed --module randcond.train` executes on every rank."""

from randcond.launch.config import Config
from randcond.launch.stage import stage_main


def check(config: Config) -> None:
    """What can be known to be wrong before the first step."""
    from randcond.data.conditioning import probability_table
    from randcond.data.ranks import world_size
    from randcond.train.engine import batch_shape

    probability_table(config.conditioning.p, config.conditioning.p_args, 1000)
    batch_shape(config.train.global_batch, max(world_size(), config.engine.processes), config.engine.micro_batch)

    from randcond.launch.config import resolve_path
    from randcond.model_zoo.students import find_rule
    from randcond.model_zoo.teacher import local_folder

    find_rule(config.student.rule)
    local_folder(resolve_path(config.teacher.path))


def train(config: Config) -> None:
    """Trains the experiment's student."""
    from randcond.train.loop import run

    run(config)


if __name__ == "__main__":
    stage_main({"train": (check, train)})
