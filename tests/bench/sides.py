"""The three sides of the step's bench; each is a function without arguments that does one step.

(a) ours: stream, step, engine and monitor, as the training loop runs them; (b) the published recipe's settings; (c) a
bare teacher forward and student step with our kernels and nothing else. All run in one process, on one device.
"""

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from randcond.data.cache.shards import write_shard
from randcond.data.captions.caption_file import write_captions
from randcond.data.stream.conditioning import times_of
from randcond.data.stream.stream import CaptionPool, Positions, Stream, batches
from randcond.launch.config.experiments import load_config, to_yaml
from randcond.launch.config.paths import resolve_path
from randcond.launch.config.sections import Config
from randcond.launch.runtime.ranks import device
from randcond.model_zoo.checkpoints.diffusers_folder import DTYPES
from randcond.model_zoo.denoiser.forward import cast, denoise
from randcond.model_zoo.kernels.compilation import compile_network
from randcond.model_zoo.kernels.fp8 import fp8_teacher
from randcond.model_zoo.teacher import Teacher
from randcond.train.build import build_step, choose_kernels, flop_per_sample
from randcond.train.engine import build_engine
from randcond.train.prefetch import Prefetcher
from randcond.train.step import draw_noise, to_device
from randcond.train.watch.monitor import Monitor
from tests.bench.recipe import published_step
from tests.bench.results import bf16_in_hardware
from tests.support.latents import opened

LOGGED = 4  # steps between the monitor's lines
PARTS = ("data", "text", "EMA", "watching")  # of our step; the bare one does without them


def published_sides(batch: int, micro: int) -> dict[str, tuple[str, int]]:
    """Returns side -> (dtype of its autocast, samples at once: the batch, as on the authors' GPUs, or `micro`).

    On a CPU with bf16 in hardware, fp32 is timed too, because bf16 may be slower there. On a CPU that does bf16 in
    software, a bf16 step takes minutes, so only fp32 is timed.
    """
    if torch.cuda.is_available():
        low, also = "fp16", {}
    elif bf16_in_hardware():
        low, also = "bf16", {"published, fp32": ("fp32", batch)}
    else:
        print("the published recipe is timed in fp32 only, because this CPU does bf16 in software")
        return {"published, fp32": ("fp32", batch)}
    return {"published": (low, batch), **also, f"published, {micro} at once": (low, micro)}


class Sides:
    """The sides for one configuration. `ours` and each function in `others` do one step."""

    def __init__(self, config: Config, folder: Path, micro: int, steps: int, alone: bool = False) -> None:
        """Builds the sides; with `alone`, only ours.

        `micro`: the micro-batch of the published recipe; `steps`: how often `ours` may be called.
        """
        batch, options = config.train.global_batch, config.engine
        self.batch = batch
        self.teacher = Teacher.load(resolve_path(config.teacher.path), config.teacher.dtype, device())
        if config.cache.resolution:
            self.teacher.latent_side = config.cache.resolution // self.teacher.pixels_per_latent
        module, self.distil = build_step(config, self.teacher)
        if not alone:
            bare_module, other = build_step(config, self.teacher)
            other.taps.remove()  # one set of taps on the teacher is enough
        self.engine = build_engine(config, module)
        if options.teacher_fp8:
            print(fp8_teacher(self.teacher), flush=True)
        choose_kernels(config, self.teacher, module.network, self.engine, folder)
        self.flop = flop_per_sample(self.teacher, module.network)
        self.student = module.network
        self.stream = make_stream(folder, config, self.teacher)
        self.loader = batches(self.stream, Positions(0, steps, batch, batch, 0, 1), config.train.workers)
        encode = self.distil.encode if options.text_ahead else None
        self.ahead = Prefetcher(self.loader, self.teacher.device, encode=encode)
        self.unencoded = Prefetcher(self.loader, self.teacher.device)
        self.monitor = self._monitor(config, folder, steps)
        self.number = 0
        self.fixed = self.stream.collate([self.stream[i] for i in range(batch)])
        self.ready = replace(to_device(self.fixed, self.teacher.device), condition=self.distil.encode(self.fixed))
        self.others: dict[str, Callable[[], None]] = {}
        if not alone:
            bare_module.network.set_attn_processor(module.network.attn_processors)
            self.others["bare"] = self._bare(config, bare_module)
            for side, (low, at_once) in published_sides(batch, min(micro, batch)).items():
                self.others[side] = self._published(config, at_once, low)

    def _monitor(self, config: Config, folder: Path, steps: int) -> Monitor:
        path = folder / "bench.yaml"
        path.write_text(to_yaml(config))
        words = [f"paths.run={folder}", f"train.steps={steps}", f"train.log_every={LOGGED}"]
        monitor = Monitor(load_config(str(path), words), self.engine, self.teacher.timesteps, 0, self.flop)
        monitor.bar.disable = True
        return monitor

    def ours(self, mark: Callable[[str], None] = lambda part: None) -> None:
        """Does a step like the training loop. Calls `mark` with the name of each part when it is done."""
        self.number += 1
        drawn = self.ahead.take()
        mark("data")
        losses = self.distil(self.engine.forward, drawn, self.engine.dtype)
        mark("forward")
        self.ahead.fetch()
        mark("data")
        self.engine.backward(losses.total)
        mark("backward")
        norm = self.engine.step(1e-5, 0.99)
        mark("optimizer, EMA")
        self.monitor.add(losses, drawn)
        self.monitor.step(self.number, 1e-5, norm, False)
        mark("watching")

    def without(self, part: str) -> None:
        """Does our step without one of PARTS. Without data, the batch is on the device and has its condition."""
        self.number += 1
        ahead = self.unencoded if part == "text" else self.ahead
        drawn = self.ready if part == "data" else ahead.take()
        if part == "text":
            drawn = replace(drawn, condition=self.ready.condition)
        losses = self.distil(self.engine.forward, drawn, self.engine.dtype)
        if part != "data":
            ahead.fetch()
        self.engine.backward(losses.total)
        ema, self.engine.ema = self.engine.ema, None if part == "EMA" else self.engine.ema
        norm = self.engine.step(1e-5, 0.99)
        self.engine.ema = ema
        if part != "watching":
            self.monitor.add(losses, drawn)
            self.monitor.step(self.number, 1e-5, norm, False)

    def text(self) -> None:
        """Encodes the captions of a step, as the step itself does."""
        self.distil.encode(self.fixed)

    def _bare(self, config: Config, module: Any) -> Callable[[], None]:
        """Returns the bare step. Condition and noise are made once; AdamW has no master weights, also in bf16."""
        teacher, taps, dtype = self.teacher, self.distil.taps, self.engine.dtype
        module.to(dtype)
        if config.engine.activation_checkpointing:
            module.network.enable_gradient_checkpointing()
        compile_network(module.network, config.engine.compile)
        optimizer = torch.optim.AdamW(module.parameters(), lr=1e-5, betas=(0.9, 0.99), fused=True)
        condition = teacher.encode(self.fixed.token_ids)
        latents = self.fixed.latents.to(teacher.device).float()
        timesteps = self.fixed.timesteps.to(teacher.device)
        noise = draw_noise(self.fixed.noise_seed, latents)
        mine = cast(self.teacher.family, condition, dtype)

        def step() -> None:
            noised = teacher.add_noise(latents, noise, timesteps).contiguous(memory_format=self.distil.memory_format)
            with torch.no_grad():
                if config.engine.teacher_graph:
                    torch.compiler.cudagraph_mark_step_begin()
                target: Tensor = denoise(teacher.denoiser, noised.to(teacher.dtype), timesteps, condition)
                features = taps.collect()
            epsilon, own = module(noised.to(dtype), timesteps, mine)
            loss = torch.nn.functional.mse_loss(epsilon.float(), target.float())
            for a, b in zip(own, features, strict=True):
                loss = loss + torch.nn.functional.mse_loss(a.float(), b.float())
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
            optimizer.step()

        return step

    def _published(self, config: Config, micro: int, low: str) -> Callable[[], None]:
        teacher = Teacher.load(resolve_path(config.teacher.path), low, device())
        module, distil = build_step(config, teacher)
        distil.taps.remove()  # published_step has its own
        step = published_step(config, teacher, module, micro, DTYPES[low])
        return lambda: void(step(self.fixed))

    def parts(self, rounds: int) -> dict[str, float]:
        """Returns the seconds of our step by part.

        It waits for the device after each part, so the sum is more than the time of a step that overlaps them.
        """
        spent: dict[str, float] = {}
        last = 0.0

        def mark(part: str) -> None:
            nonlocal last
            wait()
            now = time.perf_counter()
            spent[part] = spent.get(part, 0.0) + (now - last) / rounds
            last = now

        for _ in range(rounds):
            wait()
            last = time.perf_counter()
            self.ours(mark)
        return spent

    def close(self) -> None:
        """Closes the monitor and the engine. The loader ends with its last reference."""
        self.monitor.close()
        self.engine.close()


def void(_: object) -> None:
    """Does nothing. Turns a value into None."""


def wait() -> None:
    """Waits for the device."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def make_stream(folder: Path, config: Config, teacher: Teacher) -> Stream:
    """Returns a stream over 256 latents of noise in a real shard. A step costs the same with real latents."""
    captions = list(resolve_path("package:data/digits/captions.txt").read_text().splitlines())[:256]
    latents = np.random.default_rng(0).standard_normal((len(captions), *teacher.latent_shape))
    write_captions(folder / "captions.arrow", captions)
    samples = [{"caption_id": i, "caption": c, "latent": latents[i], "meta": {}} for i, c in enumerate(captions)]
    write_shard(folder / "latents-00000.tar", samples)
    cache = opened(folder)
    pool = CaptionPool(cache.captions, cache.captions)
    return Stream(cache, pool, times_of(config, teacher.process), 0.1, teacher.tokenizers, seed=0)
