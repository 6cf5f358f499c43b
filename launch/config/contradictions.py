"""Checks a configuration for settings that contradict each other, and for numbers out of range."""

import operator
from typing import TYPE_CHECKING

from randcond.launch.config.engines import AUTO

if TYPE_CHECKING:
    from randcond.launch.config.sections import Config


_LARGEST = (1 << 63) - 1  # of a 64-bit integer


def check_config(config: "Config") -> None:
    """Raises ValueError if a setting is wrong. The message names the key and says what to do."""
    _check_ranges(config)
    if config.cache.used is not None and config.cache.used > config.cache.size:
        raise ValueError(f"cache.used: {config.cache.used} is more than cache.size, {config.cache.size}")
    if config.pool.excluded_only and not config.cache.exclude:
        raise ValueError("pool.excluded_only: needs words in cache.exclude")
    if config.pool.size and not config.pool.whole:
        raise ValueError(
            "pool.whole: is missing; name the folder of the full pool from which pool.size captions are taken"
        )
    if config.train.eval_every and not config.eval.metrics:
        raise ValueError("train.eval_every: evaluations during training need a metric; name one in eval.metrics")
    if not config.eval.of:
        raise ValueError("eval.of: is empty; name teacher, student or both")
    for name in ("run", "cache", "pool") if config.trains else ():
        if not getattr(config.paths, name):
            raise ValueError(f"paths.{name}: is missing")
    if config.engine.precision == "bf16" and not config.engine.spec.accumulates_in_fp32:
        raise ValueError(
            f"engine.precision: {config.engine.engine_kind} would accumulate gradients in bf16; "
            f"use engine.zero_stage=1 (same numbers, less memory), or engine.precision=fp32"
        )
    if not any(vars(config.train.losses).values()):
        raise ValueError("train.losses: every weight is 0; nothing would be learned")
    if config.train.skip_nonfinite and not config.engine.spec.skips_steps:
        raise ValueError(
            f"train.skip_nonfinite: {config.engine.engine_kind} can't skip a step; use engine.zero_stage=1 or "
            f"engine.kind=fsdp"
        )
    if config.train.profile and not (
        len(config.train.profile) == 2 and 1 <= config.train.profile[0] <= config.train.profile[1]
    ):
        raise ValueError(f"train.profile: expected [first, last] step of the trace, got {config.train.profile}")
    graph = config.engine.teacher_graph is True
    if graph and config.engine.compile not in ("whole", AUTO):
        raise ValueError("engine.teacher_graph: needs engine.compile=whole")
    if config.engine.teacher == "sharded" and (graph or config.engine.teacher_fp8):
        raise ValueError("engine.teacher: a sharded teacher can't use engine.teacher_graph or engine.teacher_fp8")
    if config.teacher.in_8_bits and (config.engine.teacher == "sharded" or config.engine.teacher_fp8):
        raise ValueError(
            f"teacher.dtype: {config.teacher.dtype} can't be combined with engine.teacher=sharded or engine.teacher_fp8"
        )
    if config.trains and config.engine.ema == "off":
        _check_raw(config)
    if config.trains and bool(config.cache.captions) == bool(config.cache.images):
        raise ValueError("cache.captions: give exactly one of cache.captions (to draw) and cache.images (to encode)")
    if config.train.keep_every % config.train.checkpoint_every:
        raise ValueError(
            f"train.keep_every: must be a multiple of train.checkpoint_every ({config.train.checkpoint_every}), "
            f"got {config.train.keep_every}"
        )
    if len(config.train.betas) != 2:
        raise ValueError(f"train.betas: expected two numbers, got {config.train.betas}")
    _check_start(config)
    _check_keep(config)
    if config.cache.batch is not None and config.cache.shard_size % config.cache.batch:
        raise ValueError(
            f"cache.shard_size: must be a multiple of cache.batch ({config.cache.batch}), so that a shard holds "
            f"whole compute batches; got {config.cache.shard_size}"
        )


def _check_raw(config: "Config") -> None:
    """Raises ValueError naming the key if an evaluation needs EMA weights."""
    cure = "or keep EMA weights with engine.ema=cpu, which takes no memory of the device"
    if config.eval.weights == "ema":
        raise ValueError(f"eval.weights: is ema, but engine.ema is off; use eval.weights=raw, {cure}")
    if config.train.eval_every and "ema" in config.train.eval_weights:
        raise ValueError(f"train.eval_weights: has ema, but engine.ema is off; use train.eval_weights=[raw], {cure}")


def _check_start(config: "Config") -> None:
    """Raises ValueError if the start of the student's weights is named twice, or is no path."""
    init, words = config.student.init, ("random", "teacher")
    if init in words:
        return
    if "/" not in init:
        raise ValueError(
            f"student.init: must be 'random' or 'teacher', or the folder of an earlier student, with a slash "
            f"(RUN/student_ema, ./NAME); got {init!r}"
        )
    if config.student.start_from:
        raise ValueError(
            f"student.start_from: names an earlier student, and so does student.init ({init}); remove "
            f"student.start_from, the older of the two keys"
        )


def _check_keep(config: "Config") -> None:
    """Raises ValueError if the blocks that a student keeps don't go with its rule."""
    rule, keep = config.student.rule, config.student.keep
    if keep is None:
        return
    counts = rule.removeprefix("depth-").split("+")  # of one kind of block, or of several
    if rule == counts[0] or not all(map(str.isdigit, counts)) or sum(map(int, counts)) != len(keep):
        raise ValueError(
            f"student.keep: names {len(keep)} blocks, but student.rule is {rule}; use student.rule=depth-{len(keep)}"
        )
    if len(keep) < 2:
        raise ValueError(f"student.keep: expected at least 2 blocks, got {keep}")


def _check_ranges(config: "Config") -> None:
    """Raises ValueError naming the key if a number is outside its range. Does not check keys that are null."""
    at_least = {
        1: """cache.used cache.resolution cache.steps cache.batch cache.shard_size train.steps train.global_batch
            train.log_every train.checkpoint_every train.keep_checkpoints train.eval_size engine.processes
            engine.threads engine.micro_batch engine.shard_group engine.heartbeat engine.timeout eval.size
            eval.steps eval.resolution eval.batch eval.compbench.images eval.compbench.batch""",
        0: """cache.local_gb pool.size pool.min_length pool.max_length pool.min_similarity pool.min_width
            pool.min_height train.lr train.warmup train.weight_decay train.eps train.grad_clip train.workers
            train.keep_every train.sample_every train.eval_every train.skip_nonfinite train.losses.output
            train.losses.feature train.losses.task train.losses.spatial train.losses.frequency train.seed
            student.seed cache.seed pool.seed eval.seed eval.shown cache.guidance eval.guidance""",
    }
    least = {key: number for number, keys in at_least.items() for key in keys.split()}
    for key, number in (least | ({"cache.size": 1} if config.trains else {})).items():
        value = operator.attrgetter(key)(config)
        if value is not None and value < number:
            raise ValueError(f"{key}: must be at least {number}, got {value}")
        if isinstance(value, int) and value > _LARGEST:
            raise ValueError(f"{key}: must be at most {_LARGEST}, got {value}")
    train = config.train
    shares = [("conditioning.null", config.conditioning.null), ("train.ema_decay", train.ema_decay)]
    shares += [("train.decay", train.decay), ("train.min_lr", train.min_lr)]
    for key, share in shares + [("train.betas", beta) for beta in train.betas]:
        if not 0 <= share <= 1:
            raise ValueError(f"{key}: must be between 0 and 1, got {share}")
    if 1 in config.train.betas:
        raise ValueError(f"train.betas: must be below 1, got {config.train.betas}: such an average never changes")
    if train.shift is not None and train.shift <= 0:
        raise ValueError(f"train.shift: must be above 0, got {train.shift}")
    if config.teacher.text_tokens is not None and config.teacher.text_tokens < 1:
        raise ValueError(f"teacher.text_tokens: must be at least 1, got {config.teacher.text_tokens}")
    if config.teacher.text_cache_gb < 0:
        raise ValueError(f"teacher.text_cache_gb: must be at least 0, got {config.teacher.text_cache_gb}")
    if config.engine.peak_tflops is not None and config.engine.peak_tflops <= 0:
        raise ValueError(f"engine.peak_tflops: must be above 0, got {config.engine.peak_tflops}")
