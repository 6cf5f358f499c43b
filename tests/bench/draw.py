"""Times caching against diffusers' stock pipeline, each at its best batch size (part of `make bench`).

Both run in one process, in interleaved rounds. Ours is what `randcond run cache` does with a compute batch: it seeds
each caption, samples, and writes the shard. The other side is diffusers' own pipeline on the same prompts in a plain
loop. `--sizes LIST`: sizes of tests/bench/sizes.py, separated by commas. `--rounds N`: the timed rounds. `--batch N`:
our batch size (default: the best one found, as for the stock pipeline). `--largest N`: the largest batch size to try.
`--rehearse`: with tiny teachers, up to 2 images at once. `--out FOLDER`: where results are saved. All other words
override keys of the experiment.
"""

from argparse import ArgumentParser
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from randcond.data.cache.latent_source import TeacherLatents
from randcond.data.cache.shards import write_shard
from randcond.launch.config.paths import resolve_path
from randcond.launch.config.sections import Config
from randcond.launch.runtime.ranks import device
from randcond.model_zoo.cost.flops import denoiser_cost
from randcond.model_zoo.denoiser.architecture import Architecture
from randcond.model_zoo.teacher import Teacher
from randcond.train.tools.tune_command import doubling, proposed
from tests.bench.floor import products
from tests.bench.results import FOLDER, interval, save
from tests.bench.sizes import TEACHERS, configured
from tests.bench.step import interleaved

ON_CPU, ON_GPU = "world", "b-base,koala-700m"  # only the teacher draws: the student's rule does not matter


def main() -> None:
    """Prints and saves images per second and their ratio."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", default=ON_GPU if torch.cuda.is_available() else ON_CPU)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--batch", type=int, default=0)
    parser.add_argument("--largest", type=int, default=256 if torch.cuda.is_available() else 64)
    parser.add_argument("--rehearse", action="store_true")
    parser.add_argument("--out", type=Path, default=FOLDER)
    asked, words = parser.parse_known_args()
    largest = 2 if asked.rehearse else asked.largest
    for name in asked.sizes.split(","):
        with TemporaryDirectory() as folder:
            config = configured(name, TEACHERS, [*words, f"cache.size={largest}"], asked.rehearse)
            save(f"draw-{name}", compare(name, config, Path(folder), asked.rounds, asked.batch, largest), asked.out)


def compare(name: str, config: Config, folder: Path, rounds: int, batch: int, largest: int) -> dict[str, Any]:
    """Returns the images per second of both sides, each at its best batch, and the ratio of their times per image."""
    teacher = Teacher.load(resolve_path(config.teacher.path), config.teacher.dtype, device())
    flop = 2 * config.cache.steps * denoiser_cost(Architecture.of(teacher.denoiser)).flop
    stock, ours = stock_pipeline(config, teacher), our_cache(config, teacher, folder)
    best = {}
    for side, work in (("ours", ours), ("stock", stock)):
        best[side] = batch if batch and side == "ours" else proposed(list(doubling(work, largest)))
    floor = products(device())
    work = {"ours": lambda: ours(best["ours"]), "stock": lambda: stock(best["stock"]), "products": floor.run}
    times = interleaved(work, rounds)
    rates = [floor.flop / taken for taken in times.pop("products")]
    each = {side: [seconds / best[side] for seconds in taken] for side, taken in times.items()}
    middle, low, high = interval([b / a for a, b in zip(each["ours"], each["stock"], strict=True)])
    print(f"\n{name}: {config.cache.steps} steps, guidance {config.cache.guidance}, {flop / 1e12:.3g} TFLOP per image")
    print(f"  stock / ours        {middle:8.3f}   ({low:.3f} to {high:.3f}, 95 % interval of {rounds} rounds)")
    found: dict[str, Any] = {"stock / ours": {"median": middle, "low": low, "high": high, "rounds": rounds}}
    for side, taken in each.items():
        speed = 1 / interval(taken)[0]
        share = interval([flop / second / rate for second, rate in zip(taken, rates, strict=True)])[0]
        found[side] = {"batch": best[side], "images_per_s": speed, "share_of_matmul_rate": share}
        print(f"  {side:6} batch {best[side]:4}{speed:9.2f} images/s   {share:6.1%} of the {floor.rate}, same rounds")
    return found


def stock_pipeline(config: Config, teacher: Teacher) -> Callable[[int], int]:
    """Returns a function that draws a batch with diffusers' pipeline and the same sampler, as a script would."""
    cache = config.cache
    loaded = Teacher.load(teacher.folder, config.teacher.dtype, device())  # its own networks, because ours are compiled
    pipe = loaded.pipeline(cache.sampler)

    captions = TeacherLatents(config).captions

    def draw(batch: int) -> int:
        pipe(captions[:batch], num_inference_steps=cache.steps, guidance_scale=cache.guidance, output_type="latent")
        return batch

    return draw


def our_cache(config: Config, teacher: Teacher, folder: Path) -> Callable[[int], int]:
    """Returns a function that draws a compute batch of the cache and writes its shard."""
    content = TeacherLatents(config)
    content.begin(teacher)

    def draw(batch: int) -> int:
        content.config = replace(config.cache, batch=batch)
        latents, metas, _ = content.latents(range(batch))
        values = latents.float().cpu().numpy()
        samples = [
            {"caption_id": meta.pop("caption_id"), "caption": content.captions[n], "latent": value, "meta": meta}
            for n, (value, meta) in enumerate(zip(values, metas, strict=True))
        ]
        write_shard(folder / "latents-00000.tar", samples)
        return batch

    return draw


if __name__ == "__main__":
    main()
