"""What can be known to be wrong with an experiment before any work: keys, sources, sizes, captions, folders."""

import torch

from randcond.data.conditioning import probability_table
from randcond.data.contents import contents
from randcond.eval.check import check_evaluation
from randcond.launch.batch import batch_shape
from randcond.launch.config import Config, resolve_path
from randcond.model_zoo.features import projectors
from randcond.model_zoo.students import find_rule, student_config
from randcond.model_zoo.teacher import unet_config


def check_training(config: Config, ranks: int) -> None:
    """Raises ValueError or FileNotFoundError naming the key, before any network is loaded."""
    probability_table(config.conditioning.p, config.conditioning.p_args, timesteps=1000)
    batch_shape(config.train.global_batch, ranks, config.engine.micro_batch)
    rule = find_rule(config.student.rule)
    if rule.teacher_name is None and config.student.init == "teacher":
        raise ValueError(f"student.init: {config.student.rule} differs from the teacher in width; use init: random")
    teacher = unet_config(resolve_path(config.teacher.path))
    with torch.device("meta"):
        projectors((rule.model, student_config(config.student.rule, teacher)), teacher, rule)


def check_all(config: Config, ranks: int) -> None:
    """The same for every stage: what evaluation would refuse is refused before the cache is drawn."""
    if config.trains:
        check_training(config, ranks)
        contents(config)
    check_evaluation(config)
