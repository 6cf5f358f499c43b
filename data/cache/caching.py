"""Creates the latent cache: N latents, drawn by the teacher or encoded from images, in WebDataset shards.

In: captions or images, the teacher, a sampler and a guidance scale. Out: `paths.cache`/latents-*.tar, captions.arrow
and manifest.json. Captions are divided into shards by caption number, and each free rank claims the next shard. The
resulting bytes do not depend on the number of ranks, even if the run is killed and resumed with a different number.
"""

import os
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from randcond.data.cache.cache_plan import Plan, agreed_plan, plan_hash, restore_captions, stored_plan
from randcond.data.cache.latent_source import LatentSource, latent_source
from randcond.data.cache.manifest import captions_of_shard, describe, wrong_captions
from randcond.data.cache.shards import index_path, read_index, write_shard
from randcond.data.images.left_out import left_out
from randcond.launch.config.paths import resolve_path
from randcond.launch.config.sections import Config
from randcond.launch.errors import UserError
from randcond.launch.runtime.files import read_record, remove, sha256, write_json
from randcond.launch.runtime.locks import claim_each
from randcond.launch.runtime.logs import log
from randcond.launch.runtime.progress import Progress
from randcond.launch.runtime.ranks import device, rank
from randcond.model_zoo.teacher import Teacher

FOREIGN = "foreign-"  # how the name of another cache's shard begins when it is put aside


def shard_paths(folder: Path, size: int, shard_size: int) -> list[Path]:
    """Returns the paths of all shards of a cache with `size` samples, in order."""
    return [folder / f"latents-{number:05d}.tar" for number in range(-(-size // shard_size))]


def run(config: Config) -> None:
    """Creates the missing shards of an experiment's cache, then the manifest. Writes nothing if the cache is complete.

    A shard that is damaged, or does not hold the captions of its number, is made again; the log says so. A shard of
    another cache is renamed. Raises UserError if the folder contains a cache with other settings (teacher, captions,
    ...).
    """
    folder = Path(config.paths.cache)
    source = latent_source(config)
    teacher = Teacher.load(resolve_path(config.teacher.path), config.teacher.dtype, device())
    if (stored := stored_plan(folder, config.cache.captions)) and "subset_of" in stored:
        restore_captions(folder, source.captions, stored, has_shards=True)
        _check_subset(config, teacher, f"{folder}/{stored['subset_of']}")
        return
    shards = shard_paths(folder, config.cache.size, config.cache.shard_size)
    plan = agreed_plan(config, folder, teacher, source, shards)
    work = _Work(config, source, shards, plan_hash(plan))
    damaged = work.damaged() if rank() == 0 else {}

    sound: set[Path] = set()  # their indexes need not be read again

    def is_done(shard: Path) -> bool:
        if shard not in sound and shard not in damaged and not work.fault(shard):
            sound.add(shard)
        return shard in sound

    done = sum(map(is_done, shards))
    if done < len(shards) and rank() == 0:
        log.info(f"cache: {done} of {len(shards)} shards done, {len(shards) - done} to create")
        if "reading" in source.facts and "reading" not in plan:
            log.warning(
                f"cache: {folder} was begun by an older version, which did not turn images by their EXIF data and "
                f"dropped their transparency; the shards that are created now follow docs/data.md"
            )
    source.begin(teacher)
    silent = rank() != 0 or done == len(shards)
    with Progress(total=len(shards), initial=done, desc="caching", unit="shard", disable=silent) as bar:
        for number in claim_each(shards, is_done):
            work.make(number)
            damaged.pop(shards[number], None)
            bar.update(sum(map(is_done, shards)) - bar.n)  # counts the shards of all ranks
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


@dataclass(frozen=True)
class _Work:
    """The shards of a cache, and what each of them must hold."""

    config: Config
    source: LatentSource
    shards: list[Path]
    made_of: str  # hash of the plan

    def captions(self, number: int) -> range:
        """Returns the caption numbers of a shard."""
        return captions_of_shard(number, self.config.cache.shard_size, self.config.cache.size)

    @cached_property
    def numbers(self) -> dict[Path, int]:
        """The number of each shard."""
        return {shard: number for number, shard in enumerate(self.shards)}

    def fault(self, shard: Path, read_all: bool = False) -> str:
        """Returns why a shard must be made, "" if it is sound. `read_all`: verify its checksum, too."""
        if not shard.is_file():
            return "it is missing"
        if not index_path(shard).is_file():
            return "its index is missing"
        try:
            index, size = read_index(shard), shard.stat().st_size
        except UserError:
            return "its index is damaged"
        except FileNotFoundError:  # another process is replacing it just now
            return "it is missing"
        if index.made_of != self.made_of:
            return f"it belongs to a cache with other settings; it is kept as {self.foreign_name(shard)}"
        held = [caption_id for _, caption_id, _, _ in index.members]
        left_out = [entry.caption_id for entry in index.left_out]
        if wrong := wrong_captions(held, left_out, self.captions(self.numbers[shard])):
            return wrong
        if size != index.bytes:
            return f"it has {size} bytes, expected {index.bytes}"
        return "it does not match its checksum" if read_all and sha256(shard) != index.sha256 else ""

    def foreign_name(self, shard: Path) -> str:
        """Returns the name under which another cache's shard is kept; "" if its index does not name another cache."""
        try:
            made_of = read_index(shard).made_of
        except (UserError, FileNotFoundError):
            return ""
        if made_of == self.made_of:
            return ""
        name = f"{FOREIGN}{shard.name}"
        return f"{FOREIGN}{made_of[:8]}-{shard.name}" if shard.with_name(name).exists() else name

    def damaged(self) -> dict[Path, str]:
        """Reads every shard that seems to be done. Returns the faults of those that are not sound."""
        found = [shard for shard in self.shards if not self.fault(shard)]
        with ThreadPoolExecutor(4) as pool:  # hashing releases the GIL
            faults = pool.map(lambda shard: self.fault(shard, read_all=True), found)
            checked = Progress(faults, total=len(found), desc="checking shards", unit="shard", disable=not found)
            return {shard: fault for shard, fault in zip(found, checked, strict=True) if fault}

    def make(self, number: int) -> None:
        """Makes a shard, whose lock this process holds. Does nothing if another process has just made it."""
        shard = self.shards[number]
        if not (fault := self.fault(shard, read_all=True)):
            return
        if shard.is_file():
            log.warning(f"cache: shard {shard} is made again: {fault}")
        if name := self.foreign_name(shard):
            kept = shard.with_name(name)
            index_path(shard).rename(index_path(kept))
            shard.rename(kept)
        remove(index_path(shard))  # so that a shard that is being replaced does not count as done
        _make_shard(self.config, self.source, shard, self.captions(number), self.made_of)


def _make_shard(config: Config, source: LatentSource, shard: Path, ids: range, made_of: str) -> None:
    cache = config.cache
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
    write_shard(shard, samples, made_of, without)


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
