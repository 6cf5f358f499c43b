"""`make bench`: our training step beside a bare teacher-forward + student-step, in one process, ratios first.

(a) stream, step, ZeRO engine and monitor, as the loop runs them; (c) the same networks, batch and losses with nothing
around them. Pairs are interleaved, the order alternating; the ratio is reported as the median with its quartiles.
"""

import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from randcond.data.captions import write_captions
from randcond.data.conditioning import probability_table
from randcond.data.shards import write_shard
from randcond.data.stream import CaptionPool, Positions, Stream, batches
from randcond.launch.config import load_config, resolve_path
from randcond.model_zoo.condition import denoise
from randcond.model_zoo.teacher import Teacher
from randcond.train.build import build_step, flop_per_sample
from randcond.train.engine import build_engine
from randcond.train.monitor import Monitor
from randcond.train.step import draw_noise
from tests.latents import opened

STEPS_PER_PAIR, PAIRS = 4, 12


def main() -> None:
    """Prints the ratio (a)/(c) and both times per step."""
    config = load_config("demo-with", sys.argv[1:])
    torch.set_num_threads(config.engine.threads or torch.get_num_threads())
    teacher = Teacher.load(resolve_path(config.teacher.path), config.teacher.dtype)
    module, distil = build_step(config, teacher)
    bare_module, _ = build_step(config, teacher)
    taps = distil.taps

    with tempfile.TemporaryDirectory() as name:
        stream = make_stream(Path(name), config.conditioning.p, teacher)
        engine = build_engine(config, module)
        total = STEPS_PER_PAIR * (PAIRS + 1)
        batch = config.train.global_batch
        loader = batches(stream, Positions(0, total, batch, batch, 0, 1), config.train.workers)
        settings = [*sys.argv[1:], f"paths.run={name}", f"train.steps={total}", f"train.log_every={STEPS_PER_PAIR}"]
        monitor = Monitor(
            load_config("demo-with", settings), engine, teacher.timesteps, 0, flop_per_sample(teacher.unet, module.unet)
        )
        monitor.bar.disable = True

        watching: list[float] = []  # seconds of each step spent on what is watched, a line every STEPS_PER_PAIR steps

        def ours(step: int) -> None:
            drawn = next(loader)
            losses = distil(engine.forward, drawn, engine.dtype)
            engine.backward(losses.total)
            norm = engine.step(1e-4, 0.99)
            watched = time.perf_counter()
            monitor.add(losses, drawn)
            monitor.step(step, 1e-4, norm, False)
            watching.append(time.perf_counter() - watched)

        fixed = stream.collate([stream[i] for i in range(batch)])
        optimizer = torch.optim.AdamW(bare_module.parameters(), lr=1e-4, betas=(0.9, 0.99))
        condition = teacher.encode(fixed)
        latents = fixed["latents"].float()
        noise = draw_noise(fixed["noise_seed"], latents)

        def bare(_: int) -> None:
            noised = teacher.add_noise(latents, noise, fixed["timesteps"])
            with torch.no_grad():
                target: Tensor = denoise(teacher.unet, noised, fixed["timesteps"], condition)
                features = taps.collect()
            epsilon, mine = bare_module(noised, fixed["timesteps"], condition)
            loss = torch.nn.functional.mse_loss(epsilon, target)
            for a, b in zip(mine, features, strict=True):
                loss = loss + torch.nn.functional.mse_loss(a, b)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(bare_module.parameters(), 1.0)
            optimizer.step()

        taken = measure(ours, bare)
        print(f"watching   {statistics.mean(watching[STEPS_PER_PAIR:]) / taken:.2%} of our step")
        engine.close()


def make_stream(folder: Path, p: str, teacher: Teacher) -> Stream:
    """A stream over 256 latents of noise in a real shard: the step's cost does not depend on what they show."""
    captions = [line for line in resolve_path("package:data/digits/captions.txt").read_text().splitlines()][:256]
    latents = np.random.default_rng(0).standard_normal((len(captions), *teacher.latent_shape))
    write_captions(folder / "captions.arrow", captions)
    samples = [{"caption_id": i, "caption": c, "latent": latents[i], "meta": {}} for i, c in enumerate(captions)]
    write_shard(folder / "latents-00000.tar", samples)
    cache = opened(folder)
    pool = CaptionPool(cache.captions, cache.captions)
    table = probability_table(p, {}, teacher.timesteps)
    return Stream(cache, pool, table, 0.1, teacher.tokenizers, seed=0)


def measure(ours: Callable[[int], None], bare: Callable[[int], None]) -> float:
    """Runs interleaved pairs (the first is a warm-up), prints the ratio of their times; our step's seconds."""
    step, times = 0, {"ours": [], "bare": []}  # type: ignore[var-annotated]
    for pair in range(PAIRS + 1):
        sides = [("ours", ours), ("bare", bare)]
        for side, run in sides if pair % 2 else reversed(sides):
            began = time.perf_counter()
            for _ in range(STEPS_PER_PAIR):
                step += side == "ours"
                run(step)
            times[side].append((time.perf_counter() - began) / STEPS_PER_PAIR)
    ratios = [a / c for a, c in zip(times["ours"][1:], times["bare"][1:], strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4)
    print(f"our step / bare step   {middle:.3f}  (quartiles {low:.3f} to {high:.3f}, {PAIRS} pairs)")
    for side in ("ours", "bare"):
        print(f"{side:5} {1000 * statistics.median(times[side][1:]):8.1f} ms per step")
    return statistics.median(times["ours"][1:])


if __name__ == "__main__":
    main()
