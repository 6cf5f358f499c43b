"""What can be known to be wrong with an experiment before any work: keys, sources, sizes, captions, folders."""

from functools import cache

import torch

from randcond.data.cache.latent_source import latent_source
from randcond.data.captions.sources import expand
from randcond.data.inputs.catalogue import collecting_missing
from randcond.data.stream.conditioning import probability_table
from randcond.eval.checks import check_evaluation
from randcond.eval.images.prompts import choose_prompts
from randcond.launch.config.batch import batch_shape, shard_group
from randcond.launch.config.paths import is_url, resolve_path, resolve_sources
from randcond.launch.config.sections import Config
from randcond.launch.errors import UserError
from randcond.model_zoo.networks import unet_of
from randcond.model_zoo.students.features import projectors
from randcond.model_zoo.students.registry import find_rule, student_config


def check_training(config: Config, ranks: int) -> None:
    """Raises UserError naming the key, before any network is loaded."""
    probability_table(config.conditioning.p, config.conditioning.p_args, timesteps=1000)
    engine = config.engine
    batch_shape(config.train.global_batch, ranks, engine.micro_batch)
    if engine.kind == "fsdp" and engine.shard_group:
        shard_group(engine.sharding, engine.shard_group, ranks, ranks)
    rule = find_rule(config.student.rule)
    if rule.teacher_name is None and config.student.init == "teacher":
        raise UserError(f"student.init: {config.student.rule} differs from the teacher in width; use init: random")
    _check_pairs(str(resolve_path(config.teacher.path)), config.student.rule)


def check_grid(config: Config) -> None:
    """Raises UserError where a training has no captions for its sample grids: the first may come after hours."""
    if 0 < config.train.sample_every <= config.train.steps:
        try:
            choose_prompts(config)
        except UserError as error:
            raise type(error)(f"{error}; train.sample_every=0 trains without sample grids") from None


@cache
def _check_pairs(path: str, name: str) -> None:
    """Raises UserError where the student's rule or its feature pairs don't suit the teacher."""
    teacher, rule = unet_of(path), find_rule(name)  # of a published teacher without asking the hub
    with torch.device("meta"):
        projectors((rule.model, student_config(name, teacher)), teacher, rule)


def check_all(config: Config, ranks: int, missing: list[str] | None = None) -> None:
    """The same for every stage: what evaluation would refuse is refused before the cache is drawn.

    `missing`: takes what is not there yet, instead of an error; what depends on it goes unchecked.
    """
    if config.trains:
        check_training(config, ranks)
        if not is_url(config.paths.cache):  # one that is drawn and on a server needs its sources no more
            with collecting_missing(missing):
                latent_source(config)
        for source in resolve_sources([*config.pool.read, *config.pool.also]):
            with collecting_missing(missing):
                expand(source)
    check_evaluation(config, missing)
