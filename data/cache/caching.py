"""Creates the latent cache: N latents, drawn by the teacher or encoded from images, in WebDataset shards.

In: captions or images, the teacher, a sampler and a guidance scale. Out: `paths.cache`/latents-*.tar, captions.arrow
and manifest.json. Captions are divided into shards by caption number, and each free rank claims the next shard. The
resulting bytes do not depend on the number of ranks, even if the run is killed and resumed with a different number.
"""

import os
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from randcond.data.cache.cache_plan import agreed_plan, restore_captions, stored_plan
from randcond.data.cache.latent_source import LatentSource, compute_batch, latent_source
from randcond.data.cache.manifest import Plan, describe, plan_hash
from randcond.data.cache.shard_work import ShardWork, listed_shards
from randcond.data.cache.shards import read_index, write_shard
from randcond.data.captions.caption_file import Captions
from randcond.data.images.left_out import left_out
from randcond.data.teacher_of import load_teacher
from randcond.launch.config.sections import Config
from randcond.launch.device.out_of_memory import naming_memory, smaller_batch
from randcond.launch.errors import UserError
from randcond.launch.runtime.files import read_record, write_json
from randcond.launch.runtime.locks import claim_each
from randcond.launch.runtime.logs import log
from randcond.launch.runtime.progress import Progress
from randcond.launch.runtime.ranks import rank
from randcond.model_zoo.teacher import Teacher


def shard_paths(folder: Path, size: int, shard_size: int) -> list[Path]:
    """Returns the paths of all shards of a cache with `size` samples, in order."""
    return [folder / f"latents-{number:05d}.tar" for number in range(-(-size // shard_size))]


def run(config: Config) -> None:
    """Creates the missing shards of an experiment's cache, then the manifest. Writes nothing if the cache is complete.

    A shard that is damaged, or does not hold the captions of its number, is made again; the log says so.
    shard_work.py says what is checked. A shard of another cache is kept beside the new one. Raises UserError if the
    folder contains a cache with other settings (teacher, captions, ...).
    """
    folder = Path(config.paths.cache)
    source = latent_source(config)
    teacher = load_teacher(config)
    if teacher.remark and rank() == 0:
        log.info(teacher.remark)
    shards = shard_paths(folder, config.cache.size, config.cache.shard_size)
    if (stored := stored_plan(folder, shards, config.cache.captions)) and "subset_of" in stored:
        restore_captions(folder, source.captions, stored, has_shards=True)
        _check_subset(config, teacher, f"{folder}/{stored['subset_of']}")
        return
    plan = agreed_plan(config, folder, teacher, source, shards)
    captions, shape = Captions(folder / "captions.arrow"), tuple(plan["latent_shape"])
    listed = listed_shards(folder / "manifest.json")
    work = ShardWork(shards, plan_hash(plan), config.cache.shard_size, captions, shape, listed)

    def sizes_done() -> list[int]:
        return [len(work.ids(shard)) for shard in shards if work.is_done(shard)]

    first = sizes_done()
    done = len(first)
    if done < len(shards) and rank() == 0:
        log.info(f"cache: {done} of {len(shards)} shards done, {len(shards) - done} to create")
        if "reading" in source.facts and "reading" not in plan:
            log.warning(
                f"cache: {folder} was begun by an older version, which did not turn images by their EXIF data and "
                f"dropped their transparency; the shards that are created now follow docs/data.md"
            )
    source.begin(teacher)
    silent, total = rank() != 0 or done == len(shards), config.cache.size
    with Progress(total=total, initial=sum(first), desc="caching", unit="latent", disable=silent) as bar:
        for number in claim_each(shards, work.is_done):
            _make_if_damaged(config, source, work, shards[number], bar)
            bar.update(max(0, sum(sizes_done()) - bar.n))  # counts the shards of all ranks
    if rank() == 0:
        _finish(folder, plan, shards)


def _check_subset(config: Config, teacher: Teacher, original: str) -> None:
    """Checks a subset, which has no shards of its own to create."""
    from randcond.data.cache.latent_cache import LatentCache

    try:
        LatentCache.open(config, teacher.fingerprint)
    except UserError as error:
        raise UserError(
            f"{error} (this is a part of the cache at {os.path.normpath(original)}: run the experiment that made that "
            f"cache, or make the part again with `randcond cache subset`)"
        ) from None


def _make_if_damaged(config: Config, source: LatentSource, work: ShardWork, shard: Path, bar: Progress) -> None:
    """Makes a shard whose lock this process holds, unless it is sound: noted wrongly, or made by another process.

    If only its index is damaged, tries to write this again.
    """
    if damage := work.damage(shard):
        if work.restore_index(shard):
            log.warning(f"cache: the index of shard {shard} is written again from the shard: {damage}")
        else:
            if shard.is_file():
                log.warning(f"cache: shard {shard} is made again: {damage}")
            _make_shard(config, source, work, shard, bar)
    work.declare_sound(shard)


def _make_shard(config: Config, source: LatentSource, work: ShardWork, shard: Path, bar: Progress) -> None:
    cache, ids = config.cache, work.ids(shard)
    samples: list[dict[str, Any]] = []
    without: list[dict[str, Any]] = []
    at_once = compute_batch(cache)
    another = f", with another paths.cache, because the one at {shard.parent} is made in batches of {at_once}"
    way_out = smaller_batch("cache.batch", at_once, cache.shard_size, another)
    for start in range(ids.start, ids.stop, at_once):
        chunk = range(start, min(start + at_once, ids.stop))
        with naming_memory(way_out):
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
        bar.update(len(chunk))
    work.keep_foreign(shard)
    write_shard(shard, samples, work.made_of, without)


def _finish(folder: Path, plan: Plan, shards: list[Path]) -> None:
    """Writes the manifest. If several commands work on one folder, each of them writes the same manifest."""
    entries = [describe(shard) for shard in shards]
    manifest = {**plan, "shards": [asdict(entry) for entry in entries]}
    path = folder / "manifest.json"
    try:
        stored = read_record(path, "shards") if path.is_file() else None
    except UserError:
        stored = None  # stored_plan() has logged the damage
    if stored == manifest:
        return
    if stored and stored.get("shards") != manifest["shards"]:
        log.warning(
            f"cache: {path} is written again: it did not describe these shards; a run that was trained on other "
            f"shards can't be resumed with them"
        )
    write_json(path, manifest)
    damaged = sum(entry.left_out for entry in entries)
    skipped = _skipped(shards) if damaged else ""
    count = plan["captions"] - damaged
    log.info(f"cache: complete, {count} latents in {len(shards)} shards at {folder}{skipped}")


def _skipped(shards: list[Path]) -> str:
    """Returns how many damaged images have no latent, by reason, with the first ones; the shard indexes list them."""
    entries = [entry for shard in shards for entry in read_index(shard).left_out]
    reasons = Counter(entry.reason for entry in entries)
    said = left_out(reasons, [entry.error for entry in entries])
    return f"; damaged images skipped: {said} (the shard indexes list them)"
