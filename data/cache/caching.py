"""The latent cache: N latents, drawn by the teacher or encoded from images, in WebDataset shards with a manifest.

In: captions or images, the teacher, a sampler and a guidance scale. Out: `paths.cache`/latents-*.tar, captions.arrow
and manifest.json. Work is cut into shards by caption number, each claimed by whichever rank is free: any number of
ranks, killed and started again at any other number, completes the same bytes.
"""

import hashlib
import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from randcond.data.cache.latent_source import LatentSource, cache_identity, latent_source
from randcond.data.cache.shards import FORMAT, describe, shard_done, write_shard
from randcond.data.captions.caption_file import Captions, write_captions
from randcond.launch.config.paths import resolve_path
from randcond.launch.config.sections import Config
from randcond.launch.errors import UserError
from randcond.launch.runtime.artefacts import check_matches
from randcond.launch.runtime.files import read_json, sha256, write_json
from randcond.launch.runtime.locks import claim_each
from randcond.launch.runtime.logs import log
from randcond.launch.runtime.progress import Progress
from randcond.launch.runtime.ranks import cpu_threads, device, rank
from randcond.model_zoo.sampler import sampler_dtype
from randcond.model_zoo.teacher import Teacher


def plan(config: Config, teacher: Teacher, captions_hash: str, facts: dict[str, Any]) -> dict[str, Any]:
    """Everything a latent depends on; two caches with the same plan hold the same latents."""
    cache = config.cache
    return {
        "format": FORMAT,
        "teacher": teacher.fingerprint,
        "captions": cache.size,
        "captions_sha256": captions_hash,
        **cache_identity(config),
        **facts,
        "batch": cache.batch,
        "shard_size": cache.shard_size,
        "compute_dtype": config.teacher.dtype,
        "sampler_dtype": sampler_dtype(teacher.pipe),
        "latent_shape": _latent_shape(config, teacher),
        "threads": cpu_threads(),
        "compile": None if cache.compile == "none" else cache.compile,
        "versions": {name: version(name) for name in ("torch", "diffusers", "transformers")},
    }


def shard_paths(folder: Path, size: int, shard_size: int) -> list[Path]:
    """The shards of a cache of `size` samples, in order."""
    return [folder / f"latents-{number:05d}.tar" for number in range(-(-size // shard_size))]


def run(config: Config) -> None:
    """Draws the shards that are missing; returns at once when the cache is complete.

    Raises UserError when the folder holds a cache that was made otherwise (another teacher, sampler, caption list).
    """
    folder = Path(config.paths.cache)
    content = latent_source(config)
    captions = content.captions
    if not (folder / "captions.arrow").is_file():
        write_captions(folder / "captions.arrow", captions)
    teacher = Teacher.load(resolve_path(config.teacher.path), config.teacher.dtype, device())
    if (folder / "manifest.json").is_file() and "subset_of" in read_json(folder / "manifest.json"):
        from randcond.data.cache.latent_cache import LatentCache

        LatentCache.open(config, teacher.fingerprint)  # says what is wrong with it, or that it is complete
        return
    wanted = plan(config, teacher, sha256(folder / "captions.arrow"), content.facts)
    remedy = "Remove it, or give another paths.cache."
    if (folder / "plan.json").is_file():
        check_matches(read_json(folder / "plan.json"), wanted, f"the cache at {folder}", remedy)
    else:
        write_json(folder / "plan.json", wanted)
    if list(Captions(folder / "captions.arrow")) != captions:
        raise UserError(f"the cache at {folder} holds other captions than its sources give now. {remedy}")

    made_of = hashlib.sha256(json.dumps(wanted).encode()).hexdigest()

    def is_done(shard: Path) -> bool:
        return shard_done(shard, made_of)

    shards = shard_paths(folder, config.cache.size, config.cache.shard_size)
    done = sum(map(is_done, shards))
    if done < len(shards) and rank() == 0:
        log.info(f"cache: {done} of {len(shards)} shards done, {len(shards) - done} to make")
    content.begin(teacher)
    silent = rank() != 0 or done == len(shards)
    with Progress(total=len(shards), initial=done, desc="caching", unit="shard", disable=silent) as bar:
        for number in claim_each(shards, is_done):
            _make_shard(config, content, shards[number], number, made_of)
            bar.update(sum(map(is_done, shards)) - bar.n)  # every rank's shards count
    if rank() == 0:
        _finish(folder, wanted, shards)


def _latent_shape(config: Config, teacher: Teacher) -> list[int]:
    channels, height, width = teacher.latent_shape
    if config.cache.images and config.cache.resolution:
        factor = teacher.resolution // height
        height = width = config.cache.resolution // factor
        if config.cache.resolution % factor:
            raise UserError(f"cache.resolution: must be a multiple of {factor}, got {config.cache.resolution}")
    return [channels, height, width]


def _make_shard(config: Config, content: LatentSource, shard: Path, number: int, made_of: str) -> None:
    cache = config.cache
    first = number * cache.shard_size
    ids = range(first, min(first + cache.shard_size, cache.size))
    samples: list[dict[str, Any]] = []
    left_out: list[dict[str, Any]] = []
    for start in range(ids.start, ids.stop, cache.batch):
        chunk = range(start, min(start + cache.batch, ids.stop))
        drawn, metas, faults = content.latents(chunk)
        left_out += [{"caption_id": caption_id, "error": error} for caption_id, error in faults.items()]
        latents = drawn.float().cpu().numpy()
        if not np.isfinite(latents).all() or np.abs(latents).max(initial=0) > np.finfo(np.float16).max:
            raise UserError(
                f"shard {shard}: a latent that fp16 can't hold, of captions {chunk.start}-{chunk.stop - 1}: is the "
                f"teacher whole, and teacher.dtype one it works in (bf16, fp32)?"
            )
        for latent, meta in zip(latents, metas, strict=True):
            caption_id = meta.pop("caption_id")
            caption = content.captions[caption_id]
            samples.append({"caption_id": caption_id, "caption": caption, "latent": latent, "meta": meta})
    write_shard(shard, samples, made_of, left_out)


def _finish(folder: Path, made_of: dict[str, Any], shards: list[Path]) -> None:
    """Writes the manifest; of several commands at work in one folder each does it, and all write the same."""
    manifest = {**made_of, "shards": [describe(shard) for shard in shards]}
    if (folder / "manifest.json").is_file() and read_json(folder / "manifest.json") == manifest:
        return
    write_json(folder / "manifest.json", manifest)
    left_out = sum(shard["left_out"] for shard in manifest["shards"])
    without = f", {left_out} left out as damaged (see the shards' indexes)" if left_out else ""
    count = made_of["captions"] - left_out
    log.info(f"cache: complete, {count} latents in {len(shards)} shards at {folder}{without}")
