"""The latent cache: the teacher draws N captions once, into WebDataset shards with a manifest.

In: caption sources, the teacher, DDIM and a guidance scale. Out: `paths.cache`/latents-*.tar, captions.arrow and
manifest.json. Work is cut into shards by caption number, each claimed by whichever rank is free: any number of
ranks, killed and started again at any other number, completes the same bytes.
"""

from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from randcond.data.captions import Captions, names_any, read_unique, write_captions
from randcond.data.files import check_same, read_json, sha256, write_json
from randcond.data.lock import claim_each
from randcond.data.ranks import cpu_threads, device, rank
from randcond.data.shards import describe, shard_done, write_shard
from randcond.launch.config import Config, resolve_path, resolve_sources
from randcond.launch.logs import say_everywhere
from randcond.model_zoo.sampler import caption_seed, draw_latents
from randcond.model_zoo.teacher import Teacher

FORMAT = 2


def choose_captions(config: Config) -> list[str]:
    """The N captions to draw: those naming no excluded word, in a seeded random order.

    Raises ValueError when the sources hold fewer than `cache.size` of them.
    """
    captions, _ = read_unique(resolve_sources(config.cache.captions))
    for word in config.cache.exclude:
        if not any(map(names_any([word]).search, captions)):
            raise ValueError(f"cache.exclude: no caption of the sources names {word!r}; is it misspelt?")
    excluded = names_any(config.cache.exclude)
    allowed = [caption for caption in captions if not excluded.search(caption)]
    if len(allowed) < config.cache.size:
        raise ValueError(
            f"cache.size: {config.cache.size} captions wanted, the sources hold {len(allowed)} "
            f"({len(captions) - len(allowed)} more are excluded by cache.exclude)"
        )
    order = np.random.default_rng(config.cache.seed).permutation(len(allowed))[: config.cache.size]
    return [allowed[index] for index in order]


def plan(config: Config, teacher: Teacher, captions_hash: str) -> dict[str, Any]:
    """Everything a latent depends on; two caches with the same plan hold the same latents."""
    cache = config.cache
    return {
        "format": FORMAT,
        "teacher": teacher.fingerprint,
        "captions": cache.size,
        "captions_sha256": captions_hash,
        "seed": cache.seed,
        "sampler": cache.sampler,
        "steps": cache.steps,
        "guidance": cache.guidance,
        "batch": cache.batch,
        "shard_size": cache.shard_size,
        "compute_dtype": config.teacher.dtype,
        "latent_shape": list(teacher.latent_shape),
        "threads": cpu_threads(),
        "versions": {name: version(name) for name in ("torch", "diffusers", "transformers")},
    }


def check_captions(config: Config, stored: Captions, wanted: list[str] | None = None) -> None:
    """Raises ValueError when a cache holds other captions than the experiment's sources, size, seed and words give."""
    captions = choose_captions(config) if wanted is None else wanted
    if list(stored) != captions:
        raise ValueError(
            f"the cache at {config.paths.cache} holds other captions than cache.captions, size, exclude and seed give "
            f"({len(stored)} there, {len(captions)} wanted). Remove it, or give another paths.cache."
        )


def shard_paths(folder: Path, size: int, shard_size: int) -> list[Path]:
    """The shards of a cache of `size` samples, in order."""
    return [folder / f"latents-{number:05d}.tar" for number in range(-(-size // shard_size))]


def run(config: Config) -> None:
    """Draws the shards that are missing; returns at once when the cache is complete.

    Raises ValueError when the folder holds a cache that was made otherwise (another teacher, sampler, caption list).
    """
    folder = Path(config.paths.cache)
    captions = choose_captions(config)
    if not (folder / "captions.arrow").is_file():
        write_captions(folder / "captions.arrow", captions)
    teacher = Teacher.load(resolve_path(config.teacher.path), config.teacher.dtype, device())
    if (folder / "manifest.json").is_file() and "subset_of" in read_json(folder / "manifest.json"):
        from randcond.data.latent_cache import LatentCache

        LatentCache(config, teacher.fingerprint)  # says what is wrong with it, or that it is complete
        return
    wanted = plan(config, teacher, sha256(folder / "captions.arrow"))
    remedy = "Remove it, or give another paths.cache."
    if (folder / "plan.json").is_file():
        check_same(read_json(folder / "plan.json"), wanted, f"the cache at {folder}", remedy)
    else:
        write_json(folder / "plan.json", wanted)
    check_captions(config, Captions(folder / "captions.arrow"), captions)

    shards = shard_paths(folder, config.cache.size, config.cache.shard_size)
    done = sum(map(shard_done, shards))
    if done < len(shards) and rank() == 0:
        print(f"cache: {done} of {len(shards)} shards done, {len(shards) - done} to draw", flush=True)
    pipe = teacher.pipeline(config.cache.sampler)
    silent = rank() != 0 or done == len(shards)
    with tqdm(total=len(shards), initial=done, desc="caching", unit="shard", mininterval=2, disable=silent) as bar:
        for number in claim_each(shards, shard_done):
            _draw_shard(config, pipe, captions, shards[number], number)
            bar.update(sum(map(shard_done, shards)) - bar.n)  # every rank's shards count
    if all(map(shard_done, shards)):
        _finish(folder, wanted, shards)


def _draw_shard(config: Config, pipe: Any, captions: list[str], shard: Path, number: int) -> None:
    cache = config.cache
    first = number * cache.shard_size
    ids = range(first, min(first + cache.shard_size, cache.size))
    samples: list[dict[str, Any]] = []
    for start in range(ids.start, ids.stop, cache.batch):
        chunk = range(start, min(start + cache.batch, ids.stop))
        seeds = [caption_seed(cache.seed, caption_id) for caption_id in chunk]
        texts = [captions[caption_id] for caption_id in chunk]
        latents = draw_latents(pipe, texts, seeds, cache.steps, cache.guidance, cache.batch).float().cpu().numpy()
        if not np.isfinite(latents).all() or np.abs(latents).max() > np.finfo(np.float16).max:
            raise ValueError(
                f"the teacher drew a latent that fp16 cannot hold, captions {chunk.start}-{chunk.stop - 1}"
            )
        for caption_id, seed, text, latent in zip(chunk, seeds, texts, latents, strict=True):
            meta = {"seed": seed, "source": "teacher"}
            samples.append({"caption_id": caption_id, "caption": text, "latent": latent, "meta": meta})
    write_shard(shard, samples)


def _finish(folder: Path, made_of: dict[str, Any], shards: list[Path]) -> None:
    """Writes the manifest; whichever rank sees the last shard in place does it, and all would write the same."""
    manifest = {**made_of, "shards": [describe(shard) for shard in shards]}
    if (folder / "manifest.json").is_file() and read_json(folder / "manifest.json") == manifest:
        return
    write_json(folder / "manifest.json", manifest)
    say_everywhere(f"cache: complete, {made_of['captions']} latents in {len(shards)} shards at {folder}")
