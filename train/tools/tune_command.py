"""`randcond tune`: the batch sizes at which this machine's device is full, found by trying them.

In: an experiment. Out: samples per second of the training step by micro-batch, and of drawing by compute batch, with
the keys to write into the YAML. Latents and captions are made up: nothing but the teacher need be there.
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

from randcond.launch.config.experiments import load_config
from randcond.launch.config.paths import resolve_path
from randcond.launch.config.protocols import protocol_of
from randcond.launch.config.sections import Config
from randcond.launch.errors import UserError
from randcond.launch.runtime.files import write_json
from randcond.launch.runtime.ranks import device
from randcond.model_zoo.denoiser.configuration import plain_config
from randcond.model_zoo.kernels.compilation import compile_drawing
from randcond.model_zoo.kernels.fp8 import fp8_teacher
from randcond.model_zoo.sampler import decode, draw_latents, to_bytes
from randcond.model_zoo.students.registry import build_student
from randcond.model_zoo.teacher import Teacher
from randcond.train.build import build_step, choose_kernels
from randcond.train.engine import build_engine

CAPTION = "a photograph"
ENOUGH = 0.97  # of the best speed: the smallest batch that reaches it is the one to take
RACED = 64  # samples at once for which attention's backends race
SECONDS = 2.0  # that each size is timed for, at least a call


@dataclass(frozen=True)
class Measured:
    """One batch size, tried."""

    batch: int
    samples_per_second: float
    memory_gb: float  # at most held, of the device


def tune(
    experiment: str,
    *overrides: str,
    what: str = "train,cache,eval",
    largest: int = 512,
    out: str | None = None,
) -> None:
    """Finds the micro-batch of training and the compute batches of caching and evaluation that fill this device.

    Sizes double until memory ends or speed does not grow; the smallest within 3 % of the best is proposed. Try it on
    one GPU with the `engine:` settings of the run: engine.compile, engine.attention, engine.channels_last.

    experiment   a name or a YAML file
    overrides    any key of the YAML

    --what LIST      of train, cache, eval (default: all three)
    --largest N      no batch above this is tried (default 512)
    --out FILE       the same as JSON

    Results of caching and evaluation depend on their batch in the last bits: settle it before the first image.

    examples     randcond tune demo-with --largest 64
                 randcond tune mine.yaml engine.compile=whole --what train
    """
    wanted = [word for word in what.split(",") if word]
    if unknown := set(wanted) - PROBES.keys():
        raise UserError(f"--what: of {', '.join(PROBES)}, got {', '.join(sorted(unknown))}")
    config = load_config(experiment, overrides)
    if not config.trains:
        raise UserError(f"{experiment}: has no student; a published model's eval.batch is tried by its evaluation")
    if config.engine.threads:
        torch.set_num_threads(config.engine.threads)
    if largest < 1:
        raise UserError(f"--largest: must be at least 1, got {largest}")
    if "cache" in wanted and config.cache.images:
        raise UserError("--what: the cache encodes real images, which takes little: leave cache out")
    found: dict[str, list[Measured]] = {}
    for name in wanted:
        key, probe = PROBES[name]
        work = probe(config)
        print(f"\n{name} ({key})\n  {'batch':>6}{'samples/s':>12}{'memory GB':>12}", flush=True)
        found[key] = []
        for measured in doubling(work, largest):
            found[key].append(measured)
            said = f"{measured.batch:6}{measured.samples_per_second:12.2f}{measured.memory_gb:12.2f}"
            print(f"  {said}", flush=True)
        del work
        gc.collect()
    best = {key: proposed(sizes) for key, sizes in found.items()}
    if out:
        data = {key: [asdict(size) for size in sizes] for key, sizes in found.items()}
        write_json(Path(out), {"measured": data, "proposed": best})
    print("\nproposed: " + " ".join(f"{key}={batch}" for key, batch in best.items()))
    micro = best.get("engine.micro_batch")
    if micro and config.train.global_batch % micro:
        print(f"train.global_batch, {config.train.global_batch}, must be a multiple of ranks x engine.micro_batch")


def proposed(sizes: list[Measured]) -> int:
    """The smallest batch that is nearly as fast as the fastest."""
    best = max(size.samples_per_second for size in sizes)
    return next(size.batch for size in sizes if size.samples_per_second >= ENOUGH * best)


def doubling(run: Callable[[int], int], largest: int) -> Iterator[Measured]:
    """Sizes 1, 2, 4, ... with their speed, until memory ends, `largest` is passed or two doublings gained nothing.

    `run` does the work at a size once; how many samples that were. Raises UserError when not even one fits.
    """
    best, idle, batch = 0.0, 0, 1
    while batch <= largest and idle < 2:
        try:
            measured = _timed(run, batch)
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()
            if batch == 1:
                raise UserError("not even a batch of 1 fits this device; see `randcond plan` for what would") from None
            return
        yield measured
        idle = 0 if measured.samples_per_second > best / ENOUGH else idle + 1
        best = max(best, measured.samples_per_second)
        if not torch.cuda.is_available() and psutil.virtual_memory().available < 1.5e9 * measured.memory_gb:
            return
        batch *= 2


def _timed(run: Callable[[int], int], batch: int) -> Measured:
    cuda = torch.cuda.is_available()
    run(batch)  # what is compiled or chosen at a first call
    if cuda:
        torch.cuda.reset_peak_memory_stats()
        torch.cuda.synchronize()
    began, samples, spent = time.perf_counter(), 0, 0.0
    while not samples or spent < SECONDS:
        samples += run(batch)
        if cuda:
            torch.cuda.synchronize()
        spent = time.perf_counter() - began
    held = torch.cuda.max_memory_allocated() if cuda else psutil.Process().memory_info().rss
    return Measured(batch, samples / spent, held / 1e9)


def _step(config: Config) -> Callable[[int], int]:
    """The training step: teacher, student, losses, engine."""
    alone = 1 if config.engine.sharding == "hybrid" else None  # of a host's ranks this is the only one
    single = replace(config.engine, processes=1, micro_batch=None, shard_group=alone)
    config = replace(config, engine=single, train=replace(config.train, global_batch=1))
    teacher = Teacher.load(resolve_path(config.teacher.path), config.teacher.dtype, device())
    if config.cache.images and config.cache.resolution:
        teacher.latent_side = config.cache.resolution // teacher.pipe.vae_scale_factor
    module, distil = build_step(config, teacher)
    engine = build_engine(config, module)
    if config.engine.teacher_fp8:
        fp8_teacher(teacher)
    with TemporaryDirectory() as folder:
        usual = replace(config, train=replace(config.train, global_batch=RACED))
        choose_kernels(usual, teacher, module.unet, engine, Path(folder))

    def run(batch: int) -> int:
        losses = distil(engine.forward, noise_batch(teacher, batch), engine.dtype)
        engine.backward(losses.total)
        engine.step(config.train.lr, config.train.ema_decay)
        return batch

    return run


def _caching(config: Config) -> Callable[[int], int]:
    """Latents by the teacher."""
    teacher = Teacher.load(resolve_path(config.teacher.path), config.teacher.dtype, device())
    pipe = teacher.pipeline(config.cache.sampler)
    compile_drawing(pipe, config.cache.compile)
    return _drawing(pipe, config.cache.steps, config.cache.guidance)


def _evaluating(config: Config) -> Callable[[int], int]:
    """Images by the largest network that is evaluated, decoded; the extractors, and their memory, are left out."""
    teacher = Teacher.load(resolve_path(config.teacher.path), config.teacher.dtype, device())
    protocol = protocol_of(config.eval)
    unet = None
    if "teacher" not in config.eval.of:
        unet = build_student(config.student.rule, plain_config(teacher.unet.config), 0)
        unet.to(teacher.device, teacher.dtype).eval().requires_grad_(False)
    pipe = teacher.pipeline(protocol.sampler, unet)
    compile_drawing(pipe, config.eval.compile)
    return _drawing(pipe, protocol.steps, protocol.guidance, config.eval.resolution, decoded=True)


def _drawing(
    pipe: Any, steps: int | None, guidance: float | None, resolution: int | None = None, decoded: bool = False
) -> Callable[[int], int]:
    def run(batch: int) -> int:
        seeds = list(range(batch))
        latents = draw_latents(pipe, [CAPTION] * batch, seeds, steps, guidance, batch, resolution)
        if decoded:
            to_bytes(decode(pipe, latents)).cpu()
        return batch

    return run


def noise_batch(teacher: Teacher, size: int, seed: int = 0) -> dict[str, Any]:
    """A batch as the stream gives it, of noise."""
    generator = torch.Generator().manual_seed(seed)
    return {
        **teacher.tokenizers([CAPTION] * size),
        "latents": torch.randn(size, *teacher.latent_shape, generator=generator).half(),
        "noise_seed": torch.arange(size) + seed * size,
        "timesteps": torch.randint(0, teacher.timesteps, (size,), generator=generator),
        "null": torch.zeros(size, dtype=torch.bool),
        "replaced": torch.zeros(size, dtype=torch.bool),
        "unreplaced_in_batch": size,
    }


PROBES: dict[str, tuple[str, Callable[[Config], Callable[[int], int]]]] = {
    "train": ("engine.micro_batch", _step),
    "cache": ("cache.batch", _caching),
    "eval": ("eval.batch", _evaluating),
}
