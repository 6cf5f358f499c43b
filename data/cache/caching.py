"""Creates the latent cache: N latents, drawn by the teacher or encoded from images, in WebDataset shards.

In: captions or images, the teacher, a sampler and a guidance scale. Out: `paths.cache`/latents-*.tar, captions.arrow
and manifest.json. Captions are divided into shards by caption number, and each free rank claims the next shard. The
resulting bytes do not depend on the number of ranks, even if the run is killed and resumed with a different number.
"""

import hashlib
import json
from collections import Counter
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from randcond.data.cache.latent_source import LatentSource, cache_identity, latent_source, source_kind
from randcond.data.cache.manifest import describe
from randcond.data.cache.shards import FORMAT, read_index, shard_done, write_shard
from randcond.data.captions.caption_file import Captions, write_captions
from randcond.data.images.decode import READING
from randcond.data.images.left_out import left_out
from randcond.launch.config.identity import absent_settings, identity_of
from randcond.launch.config.paths import resolve_path
from randcond.launch.config.sections import Cache, Config
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
    """Returns everything that the latents depend on. Two caches with the same plan contain the same latents.

    `captions_hash`: sha256 of captions.arrow. `facts`: the `facts` of the latent source.
    """
    cache = config.cache
    shards = identity_of(cache, "shards")
    shards.pop("compile")  # stored as None if nothing is compiled
    return {
        "format": FORMAT,
        "teacher": teacher.fingerprint,
        "captions": cache.size,
        "captions_sha256": captions_hash,
        **cache_identity(config),
        **facts,
        **shards,
        "compute_dtype": config.teacher.dtype,
        "sampler_dtype": sampler_dtype(teacher.pipe),
        "latent_shape": _latent_shape(config, teacher),
        "threads": cpu_threads(),
        "compile": None if cache.compile == "none" else cache.compile,
        "versions": {name: version(name) for name in ("torch", "diffusers", "transformers")},
    }


def shard_paths(folder: Path, size: int, shard_size: int) -> list[Path]:
    """Returns the paths of all shards of a cache with `size` samples, in order."""
    return [folder / f"latents-{number:05d}.tar" for number in range(-(-size // shard_size))]


def run(config: Config) -> None:
    """Creates the missing shards of an experiment's cache, then the manifest. Does nothing if the cache is complete.

    Raises UserError if the folder contains a cache with other settings (teacher, sampler, captions, ...).
    """
    folder = Path(config.paths.cache)
    source = latent_source(config)
    captions = source.captions
    if not (folder / "captions.arrow").is_file():
        write_captions(folder / "captions.arrow", captions)
    teacher = Teacher.load(resolve_path(config.teacher.path), config.teacher.dtype, device())
    if (folder / "manifest.json").is_file() and "subset_of" in read_json(folder / "manifest.json"):
        from randcond.data.cache.latent_cache import LatentCache

        LatentCache.open(config, teacher.fingerprint)  # a subset is only checked: it has no shards to create
        return
    cache_plan = plan(config, teacher, sha256(folder / "captions.arrow"), source.facts)
    remedy = "To use it, restore these settings. To make another cache, give another paths.cache."
    if (folder / "plan.json").is_file():
        stored = read_json(folder / "plan.json")
        absent = absent_settings(Cache, "cache", source_kind(config), "shards") | {"compile": None, "reading": READING}
        check_matches(stored, cache_plan, f"the cache at {folder}", remedy, absent)
        cache_plan = stored  # may have fewer keys, if an older version wrote it: the shards contain a hash of it
    else:
        write_json(folder / "plan.json", cache_plan)
    if list(Captions(folder / "captions.arrow")) != captions:
        raise UserError(f"the cache at {folder}: its captions differ from the captions in its sources now. {remedy}")

    plan_hash = hashlib.sha256(json.dumps(cache_plan).encode()).hexdigest()

    def is_done(shard: Path) -> bool:
        return shard_done(shard, plan_hash)

    shards = shard_paths(folder, config.cache.size, config.cache.shard_size)
    done = sum(map(is_done, shards))
    if done < len(shards) and rank() == 0:
        log.info(f"cache: {done} of {len(shards)} shards done, {len(shards) - done} to create")
        if "reading" in source.facts and "reading" not in cache_plan:
            log.warning(
                f"cache: {folder} was begun by an older version, which did not turn images by their EXIF data and "
                f"dropped their transparency; the shards that are created now follow docs/data.md"
            )
    source.begin(teacher)
    silent = rank() != 0 or done == len(shards)
    with Progress(total=len(shards), initial=done, desc="caching", unit="shard", disable=silent) as bar:
        for number in claim_each(shards, is_done):
            _make_shard(config, source, shards[number], number, plan_hash)
            bar.update(sum(map(is_done, shards)) - bar.n)  # counts the shards of all ranks
    if rank() == 0:
        _finish(folder, cache_plan, shards)


def _latent_shape(config: Config, teacher: Teacher) -> list[int]:
    channels, height, width = teacher.latent_shape
    if config.cache.images and config.cache.resolution:
        factor = teacher.resolution // height
        height = width = config.cache.resolution // factor
        if config.cache.resolution % factor:
            raise UserError(f"cache.resolution: is {config.cache.resolution}, expected a multiple of {factor}")
    return [channels, height, width]


def _make_shard(config: Config, source: LatentSource, shard: Path, number: int, plan_hash: str) -> None:
    cache = config.cache
    first = number * cache.shard_size
    ids = range(first, min(first + cache.shard_size, cache.size))
    samples: list[dict[str, Any]] = []
    without: list[dict[str, Any]] = []
    for start in range(ids.start, ids.stop, cache.batch):
        chunk = range(start, min(start + cache.batch, ids.stop))
        batch, metas, errors = source.latents(chunk)
        without += [
            {"caption_id": caption_id, "error": str(error), "reason": error.reason}
            for caption_id, error in errors.items()
        ]
        latents = batch.float().cpu().numpy()
        if not np.isfinite(latents).all() or np.abs(latents).max(initial=0) > np.finfo(np.float16).max:
            raise UserError(
                f"shard {shard}: a latent of captions {chunk.start} to {chunk.stop - 1} is NaN, infinite or too large "
                f"for fp16; check that the teacher's files are complete, or try teacher.dtype=fp32"
            )
        for latent, meta in zip(latents, metas, strict=True):
            caption_id = meta.pop("caption_id")
            caption = source.captions[caption_id]
            samples.append({"caption_id": caption_id, "caption": caption, "latent": latent, "meta": meta})
    write_shard(shard, samples, plan_hash, without)


def _finish(folder: Path, cache_plan: dict[str, Any], shards: list[Path]) -> None:
    """Writes the manifest. If several commands work on one folder, each of them writes the same manifest."""
    entries = [describe(shard) for shard in shards]
    manifest = {**cache_plan, "shards": [asdict(entry) for entry in entries]}
    if (folder / "manifest.json").is_file() and read_json(folder / "manifest.json") == manifest:
        return
    write_json(folder / "manifest.json", manifest)
    damaged = sum(entry.left_out for entry in entries)
    skipped = _skipped(shards) if damaged else ""
    count = cache_plan["captions"] - damaged
    log.info(f"cache: complete, {count} latents in {len(shards)} shards at {folder}{skipped}")


def _skipped(shards: list[Path]) -> str:
    """Returns how many damaged images have no latent, by reason, with the first ones; the shard indexes list them."""
    entries = [entry for shard in shards for entry in read_index(shard)["left_out"]]
    reasons = Counter(entry.get("reason", "damaged") for entry in entries)  # older indexes have no reason
    said = left_out(reasons, [entry["error"] for entry in entries])
    return f"; damaged images skipped: {said} (the shard indexes list them)"
