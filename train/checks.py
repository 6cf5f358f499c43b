"""Checks of an experiment before any work starts: keys, sources, sizes, captions, folders."""

from functools import cache
from pathlib import Path

import torch
from diffusers import DDPMScheduler

from randcond.data.cache.latent_source import latent_source
from randcond.data.captions.pool import check_sources_unchanged
from randcond.data.captions.sources import expand
from randcond.data.inputs.catalogue import collecting_missing
from randcond.data.inputs.fetch import check_packages
from randcond.data.stream.conditioning import probability_table, times_of
from randcond.data.teacher_settings import check_settings
from randcond.eval.checks import check_evaluation, check_made
from randcond.eval.images.prompts import choose_prompts
from randcond.launch.config.engines import batch_shape, shard_group
from randcond.launch.config.paths import is_url, resolve_path, resolve_sources
from randcond.launch.config.sections import Config
from randcond.launch.errors import UserError
from randcond.launch.install.extras import need
from randcond.launch.runtime.files import read_record
from randcond.launch.runtime.logs import log
from randcond.model_zoo.checkpoints.hub import is_hub_id
from randcond.model_zoo.checkpoints.schedule import process_of, stored_scheduler
from randcond.model_zoo.families.faults.look import check_teacher
from randcond.model_zoo.families.registry import family_of_folder
from randcond.model_zoo.networks import Networks, denoiser_of
from randcond.model_zoo.process.discrete_betas import DiscreteBetas
from randcond.model_zoo.process.process import Process
from randcond.model_zoo.process.rectified_flow import RectifiedFlow
from randcond.model_zoo.students.features import projectors
from randcond.model_zoo.students.registry import find_rule, student_of
from randcond.train.build import check_start
from randcond.train.schedule import check_schedule
from randcond.train.sinks.open_sinks import check_sinks
from randcond.train.state.kept_work import check_kept
from randcond.train.state.origin import trained_size


def check_training(config: Config, ranks: int) -> None:
    """Checks the training keys without loading any weights. Raises UserError naming the key."""
    if config.train.eval_every:
        need("eval", f"train.eval_every={config.train.eval_every}")
    engine = config.engine
    batch_shape(config.train.global_batch, ranks, engine.micro_batch)
    _check_latents(config)
    if engine.shard_group:
        shard_group(engine.engine_kind, engine.shard_group, ranks, ranks)
    rule = find_rule(config.student.full_rule)
    if not rule.copies and config.student.init == "teacher":
        raise UserError(
            f"student.init: the layer widths of {config.student.rule} differ from the teacher's; use init: random"
        )
    check_sinks(config)
    check_teacher(resolve_path(config.teacher.path))
    _check_against_teacher(config)
    _check_feature_pairs(str(resolve_path(config.teacher.path)), config.student.full_rule)
    if config.student.earlier:
        _check_earlier(config)
    check_schedule(config.train)
    check_steps(config)


def _check_latents(config: Config) -> None:
    """Raises UserError if captions give fewer latents than a batch needs. The number of images is not known yet."""
    cache, batch = config.cache, config.train.global_batch
    key, latents = ("cache.used", cache.used) if cache.used else ("cache.size", cache.size)
    if cache.captions and latents < batch:
        raise UserError(
            f"train.global_batch: {batch} is larger than {key} ({latents}); a batch must not contain a sample twice; "
            f"lower it or draw more latents"
        )


def _check_against_teacher(config: Config) -> None:
    """Raises UserError naming a setting that does not suit the teacher."""
    folder = resolve_path(config.teacher.path)
    networks = check_settings(config, "cache", "eval")
    if not is_hub_id(folder):
        process: Process = process_of(stored_scheduler(folder), folder, family_of_folder(folder).flow)
    elif networks:  # a published teacher, whose scheduler may not be here yet
        process = RectifiedFlow(1000) if networks.denoiser.family.flow else DiscreteBetas(DDPMScheduler())
    else:
        probability_table(config.conditioning.p, config.conditioning.p_args, timesteps=1000)
        return
    times_of(config, process)
    if not networks:
        return
    _compare_sizes(config, networks, folder)
    _check_unused(config, networks)
    if config.train.losses.frequency and networks.denoiser.family.stack(networks.denoiser.config):
        raise UserError(
            "train.losses.frequency: it compares images, but the features of a transformer are rows of tokens; set it "
            "to 0"
        )


def _check_unused(config: Config, networks: Networks) -> None:
    """Raises UserError naming a setting of the engine that would do nothing with this teacher.

    Warns of one that belongs to a run, so that an older run goes on.
    """
    engine, family = config.engine, networks.denoiser.family
    if engine.attention not in ("auto", "sdpa") and not family.chooses_attention:
        raise UserError(
            f"engine.attention: {engine.attention} is for U-Nets; the attention of {family.name} keeps torch's SDPA: "
            f"use engine.attention=auto"
        )
    if engine.channels_last is True and family.stack(networks.denoiser.config):
        raise UserError("engine.channels_last: is for U-Nets; a transformer has rows of tokens: use auto or false")
    if config.train.feature_loss != "plain" and not config.train.losses.feature:
        log.warning(f"train.feature_loss: {config.train.feature_loss} has no effect, because train.losses.feature is 0")


def _compare_sizes(config: Config, networks: Networks, teacher: Path) -> None:
    """Warns if images are drawn in another size than that of the student's latents, or than its teacher was trained on.

    `teacher`: its folder.
    """
    own = networks.denoiser.latent_shape[1] * networks.pixels_per_latent
    trained, drawn = (resolution or own for resolution in (config.cache.resolution, config.eval.resolution))
    if trained != drawn:
        log.warning(
            f"eval.resolution: images are drawn with {drawn} pixels, but the student is trained on latents of "
            f"{trained}; eval.resolution={trained} draws its own size"
        )
    if (size := trained_size(teacher)) not in (None, trained):
        log.warning(
            f"cache.resolution: latents are of {trained} pixels, but this teacher is a student that was trained on "
            f"{size}; cache.resolution={size} eval.resolution={size} are its size"
        )


def check_grid(config: Config) -> None:
    """Checks the captions of the sample grids. Raises UserError if they are missing or invalid.

    The first grid may be drawn hours after the start. This check reports the error before the first step.
    """
    if 0 < config.train.sample_every <= config.train.steps:
        try:
            choose_prompts(config)
        except UserError as error:
            raise type(error)(f"{error}; or set train.sample_every=0 to train without sample grids") from None


def _check_earlier(config: Config) -> None:
    """Raises UserError if the earlier student that training starts from does not fit. Loads no weights."""
    teacher = denoiser_of(str(resolve_path(config.teacher.path)))
    student = student_of(config.student.full_rule, teacher)
    check_start(student.denoiser.blank(), Path(config.student.earlier))


def check_steps(config: Config) -> None:
    """Raises UserError if the run is finished with more steps than it is asked for."""
    path = Path(config.paths.run) / "train.json"
    done = read_record(path, "steps")["steps"] if path.is_file() else 0
    if done > config.train.steps:
        raise UserError(
            f"train.steps: {config.train.steps} is too small, because the run at {config.paths.run} is finished with "
            f"{done} steps. Its student can't be trained less: restore train.steps={done}, or raise it to train on, "
            f"or give another paths.run"
        )


@cache
def _check_feature_pairs(teacher_path: str, rule_name: str) -> None:
    """Raises UserError if the student rule or one of its feature pairs does not fit the teacher."""
    teacher = denoiser_of(teacher_path)  # for a published teacher this needs no network access
    with torch.device("meta"):
        projectors(student_of(rule_name, teacher), teacher)


def check_all(config: Config, ranks: int, missing: list[str] | None = None) -> None:
    """Checks the inputs of all stages, so that an evaluation error is reported before the cache is drawn.

    `missing`: if given, a missing input is appended to this list instead of raising an error, and the checks that need
    it are skipped. Raises UserError naming the key or the input.
    """
    if config.trains:
        check_training(config, ranks)
        if is_url(config.paths.cache):  # a cache on a server is complete and does not need its sources
            check_packages(config.paths.cache)
        else:
            with collecting_missing(missing):
                latent_source(config)
        for source in resolve_sources([*config.pool.read, *config.pool.also]):
            with collecting_missing(missing):
                expand(source)
        check_kept(config)
        check_sources_unchanged(config)
    check_evaluation(config, missing)
    check_made(config)
