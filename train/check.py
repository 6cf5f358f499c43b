"""What can be known to be wrong with an experiment before its first step."""

from randcond.data.conditioning import probability_table
from randcond.data.ranks import world_size
from randcond.launch.config import Config, resolve_path
from randcond.model_zoo.students import find_rule
from randcond.model_zoo.teacher import local_folder
from randcond.train.engine import batch_shape


def check(config: Config) -> None:
    """Raises ValueError or FileNotFoundError naming the key, before any network is loaded."""
    probability_table(config.conditioning.p, config.conditioning.p_args, timesteps=1000)
    batch_shape(config.train.global_batch, world_size(), config.engine.micro_batch)
    if find_rule(config.student.rule).teacher_name is None and config.student.init == "teacher":
        raise ValueError(f"student.init: {config.student.rule} differs from the teacher in width; use init: random")
    local_folder(resolve_path(config.teacher.path))
