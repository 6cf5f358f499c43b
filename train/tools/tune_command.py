"""`randcond tune`: measures which batch sizes use this machine's device best.

In: an experiment. Out: samples per second for each micro-batch of the training step, and for each compute batch of
caching and evaluation, with the keys to set in the YAML. It runs on random latents and a fixed caption, so that the
teacher is the only input it needs.
"""

import gc
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import psutil
import torch

from randcond.data.stream.batch import Batch
from randcond.data.teacher_of import load_teacher
from randcond.launch.config.experiments import load_config
from randcond.launch.config.protocols import protocol_of
from randcond.launch.config.sections import Config
from randcond.launch.device.out_of_memory import is_memory
from randcond.launch.errors import UserError
from randcond.launch.runtime.files import write_json
from randcond.model_zoo.kernels.compilation import compile_drawing
from randcond.model_zoo.kernels.fp8 import fp8_teacher
from randcond.model_zoo.sampler import decode, draw_latents, to_bytes
from randcond.model_zoo.students.registry import build_student
from randcond.model_zoo.teacher import Teacher
from randcond.train.build import build_step, choose_kernels
from randcond.train.engine import build_engine
from randcond.train.engine.switches import decided

CAPTION = "a photograph"
NEAR_BEST = 0.97  # share of the best speed; the smallest batch that reaches it is proposed
ATTENTION_BATCH = 64  # the batch at which the attention backends are compared
MIN_SECONDS = 2.0  # of measurement per batch size


@dataclass(frozen=True)
class Measured:
    """The measurement of one batch size."""

    batch: int
    samples_per_second: float
    memory_gb: float  # peak GPU memory; without a GPU, host memory


def tune(
    experiment: str,
    *overrides: str,
    what: str = "train,cache,eval",
    largest: int = 512,
    out: str | None = None,
) -> None:
    """Measures the fastest micro-batch of training and the fastest compute batches of caching and evaluation.

    Doubles the batch size until memory runs out or the speed no longer grows. Proposes the smallest size that reaches
    97 % of the best speed. Run it on one GPU, with the same `engine:` settings as the training: engine.compile,
    engine.attention, engine.channels_last.

    experiment   a name or a YAML file
    overrides    any key of the YAML

    --what LIST      what to measure, out of train, cache, eval (default: all three)
    --largest N      the largest batch size to try (default 512)
    --out FILE       write the results to this JSON file

    cache.batch and eval.batch change the results in the last bits. Choose them before the first image is drawn.

    examples     randcond tune demo-with --largest 64
                 randcond tune mine.yaml engine.compile=whole --what train
    """
    names = [name for name in what.split(",") if name]
    if unknown := set(names) - PROBES.keys():
        raise UserError(f"--what: unknown {', '.join(sorted(unknown))}; choose from {', '.join(PROBES)}")
    config = load_config(experiment, overrides)
    if not config.trains:
        raise UserError(f"{experiment}: has no student; randcond tune needs an experiment that trains one")
    if config.engine.threads:
        torch.set_num_threads(config.engine.threads)
    if largest < 1:
        raise UserError(f"--largest: must be at least 1, got {largest}")
    if "cache" in names and config.cache.images:
        raise UserError("--what: this experiment's cache encodes real images, which needs no tuning; leave out cache")
    found: dict[str, list[Measured]] = {}
    for name in names:
        key, prepare = PROBES[name]
        run = prepare(config)
        print(f"\n{name} ({key})\n  {'batch':>6}{'samples/s':>12}{'memory GB':>12}", flush=True)
        found[key] = []
        for measured in doubling(run, largest):
            found[key].append(measured)
            row = f"{measured.batch:6}{measured.samples_per_second:12.2f}{measured.memory_gb:12.2f}"
            print(f"  {row}", flush=True)
        del run
        gc.collect()
    best = {key: proposed(sizes) for key, sizes in found.items()}
    if out:
        data = {key: [asdict(size) for size in sizes] for key, sizes in found.items()}
        write_json(Path(out), {"measured": data, "proposed": best})
    print("\nproposed: " + " ".join(f"{key}={batch}" for key, batch in best.items()))
    micro = best.get("engine.micro_batch")
    if micro and config.train.global_batch % micro:
        print(
            f"note: train.global_batch is {config.train.global_batch}; it must be a multiple of ranks x "
            f"engine.micro_batch"
        )


def proposed(sizes: list[Measured]) -> int:
    """Returns the smallest batch that reaches `NEAR_BEST` of the best speed. `sizes`: ordered by batch."""
    best = max(size.samples_per_second for size in sizes)
    return next(size.batch for size in sizes if size.samples_per_second >= NEAR_BEST * best)


def doubling(run: Callable[[int], int], largest: int) -> Iterator[Measured]:
    """Measures batch sizes 1, 2, 4, ... up to `largest`. Stops if memory runs out, or after two sizes without a gain.

    `run`: processes one batch of the given size and returns the number of samples.
    Raises UserError if a batch of 1 does not fit into memory.
    """
    best, without_gain, batch = 0.0, 0, 1
    while batch <= largest and without_gain < 2:
        try:
            measured = _timed(run, batch)
        except (MemoryError, RuntimeError) as error:
            if not is_memory(error):
                raise
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            if batch == 1:
                raise UserError(
                    "out of memory: a batch of 1 does not fit this device; "
                    "`randcond run check EXPERIMENT` says which settings would"
                ) from None
            return
        yield measured
        without_gain = 0 if measured.samples_per_second > best / NEAR_BEST else without_gain + 1
        best = max(best, measured.samples_per_second)
        if not torch.cuda.is_available() and psutil.virtual_memory().available < 1.5e9 * measured.memory_gb:
            return
        batch *= 2


def _timed(run: Callable[[int], int], batch: int) -> Measured:
    cuda = torch.cuda.is_available()
    run(batch)  # warm-up: compilation and the choice of kernels
    if cuda:
        torch.cuda.reset_peak_memory_stats()
        torch.cuda.synchronize()
    started, samples, seconds = time.perf_counter(), 0, 0.0
    while not samples or seconds < MIN_SECONDS:
        samples += run(batch)
        if cuda:
            torch.cuda.synchronize()
        seconds = time.perf_counter() - started
    memory = torch.cuda.max_memory_allocated() if cuda else psutil.Process().memory_info().rss
    return Measured(batch, samples / seconds, memory / 1e9)


def _prepare_training(config: Config) -> Callable[[int], int]:
    """Returns a function that runs the training step (teacher, student, losses, engine) on a batch of a given size."""
    shard_group = 1 if config.engine.spec.in_groups else None  # there is only one rank
    single_rank = replace(config.engine, processes=1, micro_batch=None, shard_group=shard_group)
    config = replace(config, engine=single_rank, train=replace(config.train, global_batch=1))
    teacher = load_teacher(config)
    config = replace(config, engine=decided(config.engine, teacher)[0])
    if config.cache.resolution:
        teacher.latent_side = config.cache.resolution // teacher.pixels_per_latent
    module, distil = build_step(config, teacher)
    engine = build_engine(config, module)
    if config.engine.teacher_fp8:
        fp8_teacher(teacher)
    with TemporaryDirectory() as folder:
        large_batch = replace(config, train=replace(config.train, global_batch=ATTENTION_BATCH))
        choose_kernels(large_batch, teacher, module.network, engine, Path(folder))

    def run(batch: int) -> int:
        losses = distil(engine.forward, noise_batch(teacher, batch), engine.dtype)
        engine.backward(losses.total)
        engine.step(config.train.lr, config.train.ema_decay)
        return batch

    return run


def _prepare_caching(config: Config) -> Callable[[int], int]:
    """Returns a function that draws a batch of latents with the teacher."""
    teacher = load_teacher(config)
    pipe = teacher.pipeline(config.cache.sampler)
    compile_drawing(pipe, config.cache.compile)
    return _prepare_drawing(pipe, config.cache.steps, config.cache.guidance, text_tokens=config.teacher.text_tokens)


def _prepare_evaluation(config: Config) -> Callable[[int], int]:
    """Returns a function that draws and decodes a batch of images with the largest network that is evaluated.

    It does not run the feature extractors, so that their memory is not included.
    """
    teacher = load_teacher(config)
    protocol = protocol_of(config.eval)
    network = None
    if "teacher" not in config.eval.of:
        network = build_student(config.student.full_rule, teacher.architecture, 0)
        network.to(teacher.device, teacher.dtype).eval().requires_grad_(False)
    pipe = teacher.pipeline(protocol.sampler, network)
    compile_drawing(pipe, config.eval.compile)
    return _prepare_drawing(
        pipe, protocol.steps, protocol.guidance, config.eval.resolution, True, config.teacher.text_tokens
    )


def _prepare_drawing(
    pipe: Any,
    steps: int | None,
    guidance: float | None,
    resolution: int | None = None,
    decode_images: bool = False,
    text_tokens: int | None = None,
) -> Callable[[int], int]:
    def run(batch: int) -> int:
        seeds = list(range(batch))
        latents = draw_latents(pipe, [CAPTION] * batch, seeds, steps, guidance, batch, resolution, text_tokens)
        if decode_images:
            to_bytes(decode(pipe, latents)).cpu()
        return batch

    return run


def noise_batch(teacher: Teacher, size: int, seed: int = 0) -> Batch:
    """Returns a batch as the stream makes them, with random latents [size, C, h, w] (fp16) and timesteps [size]."""
    generator = torch.Generator().manual_seed(seed)
    return Batch(
        latents=torch.randn(size, *teacher.latent_shape, generator=generator).half(),
        token_ids=teacher.tokenizers([CAPTION] * size),
        key=torch.arange(size),
        caption_id=torch.arange(size),
        timesteps=torch.randint(0, teacher.timesteps, (size,), generator=generator),
        noise_seed=torch.arange(size) + seed * size,
        replaced=torch.zeros(size, dtype=torch.bool),
        null=torch.zeros(size, dtype=torch.bool),
        unreplaced_in_batch=size,
    )


# name -> (the key to set, the function that prepares the measurement)
PROBES: dict[str, tuple[str, Callable[[Config], Callable[[int], int]]]] = {
    "train": ("engine.micro_batch", _prepare_training),
    "cache": ("cache.batch", _prepare_caching),
    "eval": ("eval.batch", _prepare_evaluation),
}
