"""Finds the faults of a latent cache: in its manifest, its captions, and every shard and latent."""

import os
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from randcond.data.cache.latent_cache import checked_captions
from randcond.data.cache.manifest import (
    ShardEntry,
    captions_of_shard,
    check_captions,
    check_shard,
    read_cache_record,
    rewrite,
    shard_entries,
)
from randcond.data.cache.shards import FORMAT, Shard, note_damage, note_path, repair
from randcond.data.captions.caption_file import Captions
from randcond.launch.errors import UserError
from randcond.launch.runtime.files import remove
from randcond.launch.runtime.progress import Progress
from randcond.launch.runtime.this_command import stage_command


def read_manifest(folder: Path) -> dict[str, Any]:
    """Returns the manifest of a complete cache. Raises UserError if there is none, or it is damaged or too old."""
    path = folder / "manifest.json"
    if not path.is_file():
        raise UserError(f"no complete cache at {folder}: create or finish it with {stage_command('cache', folder)}")
    manifest = read_cache_record(path, "format", remedy=rewrite(folder))
    if manifest["format"] != FORMAT:
        raise UserError(
            f"the cache at {folder} has format {manifest['format']}, expected {FORMAT}; use the version of "
            f"randcond that made it, or give another paths.cache"
        )
    wrong = next((key for key, kind in _KEYS.items() if type(manifest.get(key)) is not kind), "")
    if not wrong and manifest["shard_size"] < 1:
        wrong = "shard_size"
    if wrong:
        raise UserError(f"{path}: not the manifest of a cache: {wrong} is {manifest.get(wrong)!r}; {rewrite(folder)}")
    return manifest


_KEYS = {"captions": int, "captions_sha256": str, "shard_size": int, "latent_shape": list, "shards": list}


def cache_faults(folder: Path, manifest: dict[str, Any]) -> Iterator[str]:
    """Yields one line per fault of a cache: of its captions, of the list of its shards, and of every shard.

    Reads everything. Notes each shard that has a fault beside it, so that the cache stage finds it, and removes the
    notes of sound shards.
    """
    captions: Captions | None = None
    count, size = manifest["captions"], manifest["shard_size"]
    try:
        captions = checked_captions(folder, manifest)
        if len(captions) != count:
            yield f"{captions.path}: holds {len(captions)} captions, expected {count}; {rewrite(folder)}"
    except (UserError, OSError) as error:
        yield str(error)
    entries = shard_entries(manifest, folder / "manifest.json")
    expected = -(-count // size)
    if len(entries) != expected:
        yield f"{folder / 'manifest.json'}: lists {len(entries)} shards, expected {expected}; {rewrite(folder)}"
    latents, left_out = sum(entry.samples for entry in entries), sum(entry.left_out for entry in entries)
    if latents + left_out != count:
        yield (
            f"{folder / 'manifest.json'}: lists {latents} latents and {left_out} captions without one, expected "
            f"{count} together; {rewrite(folder)}"
        )
    shape, reads_all = tuple(manifest["latent_shape"]), "subset_of" not in manifest
    for number, entry in enumerate(Progress(entries, desc="verifying", unit="shard")):
        path, found = folder / entry.shard, 0
        for fault in shard_faults(path, entry, captions_of_shard(number, size, count), captions, shape):
            found += 1
            yield fault
        if found:
            note_damage(path, "it has faults")
        elif reads_all and captions is not None and note_path(path).exists() and os.access(path.parent, os.W_OK):
            remove(note_path(path))


def shard_faults(
    path: Path, entry: ShardEntry, ids: range, captions: Captions | None, shape: tuple[int, ...]
) -> Iterator[str]:
    """Yields one line per fault of a shard.

    `ids`: the caption numbers that it must hold. `captions`: of the cache; None: not compared. `shape`: the expected
    latent shape (C, h, w).
    """
    try:
        yield from _shard_faults(path, entry, ids, captions, shape)
    except (UserError, tarfile.TarError, OSError) as error:
        yield str(error) if path.name in str(error) else f"shard {path}: {error}; {repair(path)}"


def _shard_faults(
    path: Path, entry: ShardEntry, ids: range, captions: Captions | None, shape: tuple[int, ...]
) -> Iterator[str]:
    shard = Shard(path)
    for check in (lambda: check_shard(shard, entry, read_all=True), lambda: check_captions(shard, entry, ids)):
        try:
            check()
        except UserError as error:
            yield str(error)
    with tarfile.open(path) as archive:
        caption_files = {name.removesuffix(".txt"): name for name in archive.getnames() if name.endswith(".txt")}
        for row, caption_id in enumerate(shard.caption_ids[: entry.samples].tolist()):
            key = shard.key(row)
            try:
                latent = shard.latent(row)
            except UserError as error:
                yield str(error)
                continue
            if latent.shape != shape:
                yield f"shard {path}, key {key}: the latent has shape {latent.shape}, expected {shape}"
            file = archive.extractfile(caption_files[key]) if key in caption_files else None
            if file is None:
                yield f"shard {path}, key {key}: has no caption (.txt)"
            elif captions is None or caption_id not in range(len(captions)):
                continue
            elif file.read().decode(errors="replace") != captions[caption_id]:
                yield f"shard {path}, key {key}: its caption differs from caption {caption_id} in captions.arrow"
