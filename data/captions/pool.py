"""Builds the extra texts of the caption pool: caption sources -> one memory-mapped Arrow file with a manifest.

In: `pool.sources`. Out: `paths.pool`/captions.arrow and manifest.json (sources, number of captions, reasons for
dropped captions). Each source file is first written atomically to a part of its own, so a killed build resumes at the
file it was reading. Then the parts are merged without duplicates. This needs 20 bytes of memory per caption.
"""

import dataclasses
import math
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from randcond.data.captions.caption_file import Captions, write_arrays
from randcond.data.captions.losses import Losses
from randcond.data.captions.pool_merge import merge_parts
from randcond.data.captions.readers import read_batches
from randcond.data.captions.row_filter import UNFILTERED, RowFilter, absent_filters, row_filter, settings
from randcond.data.captions.source_identity import as_expected, changed_files, read_stored, source_name
from randcond.data.captions.sources import expand, identify
from randcond.data.rows.bad_rows import BadRows
from randcond.launch.config.identity import absent_settings, identity_of
from randcond.launch.config.paths import is_url, resolve_sources
from randcond.launch.config.sections import Config, Pool
from randcond.launch.errors import UserError
from randcond.launch.runtime.artefacts import check_matches
from randcond.launch.runtime.files import read_record, remove, sha256, write_json
from randcond.launch.runtime.locks import locked
from randcond.launch.runtime.progress import Progress
from randcond.launch.runtime.this_command import stage_command
from randcond.launch.urls import hide_secrets

FORMAT = 3
_REMEDY = "To build this one, give another paths.pool."
_SMALL = 1 << 26  # bytes of a caption file that is read by a check (a fifth of a second)
_KEYS = ("captions", "dropped", "damaged", "sha256")  # that a manifest must have


def build(
    out: Path,
    sources: list[str],
    rows: RowFilter | None = None,
    progress: bool = False,
    skip: bool = False,
    also: Sequence[str] = (),
) -> dict[str, Any]:
    """Builds a pool at `out` from caption sources and returns its manifest. Does nothing if the pool is finished.

    `rows`: the filter for the rows of `sources`. `also`: sources that are not filtered and come before the others.
    `skip`: skip bad rows, and if a source is damaged, use its readable part; the manifest records both.
    Raises UserError if a source is missing, damaged or empty, or if `out` contains a pool of other sources or filters.
    """
    rows = rows or RowFilter()
    files = [file for source in sources for file in expand(source)]
    unfiltered = [file for source in also for file in expand(source)]
    made_of = {"format": FORMAT, "sources": list(map(identify, [*unfiltered, *files])), "filter": settings(rows)}
    made_of |= {"skip": skip} | ({"unfiltered": len(unfiltered)} if unfiltered and settings(rows) else {})
    filters = [(file, UNFILTERED) for file in unfiltered] + [(file, rows) for file in files]
    remedy = _REMEDY
    if manifest := _finished(out, made_of, remedy):
        return manifest
    with _pool_lock(out):  # another run may have built the pool while this one waited for the lock
        return _finished(out, made_of, remedy) or _build(out, filters, made_of, remedy, progress)


def _pool_lock(out: Path) -> AbstractContextManager[None]:
    """Locks a pool folder. Waits without a limit: tables that run at the same time share a pool, and one builds it."""
    return locked(out, math.inf, f"{out}: waiting for another run that builds this pool")


def _finished(out: Path, made_of: dict[str, Any], remedy: str) -> dict[str, Any] | None:
    """Returns the manifest of a finished pool, or None: it is not finished, or its captions.arrow is missing.

    Raises UserError if its sources or filters differ.
    """
    if not (out / "manifest.json").is_file():
        return None
    manifest = read_stored(out / "manifest.json", *_KEYS)
    _check_made_of(manifest, made_of, f"the pool at {out}", remedy)
    return manifest if (out / "captions.arrow").is_file() else None


def _check_made_of(stored: dict[str, Any], made_of: dict[str, Any], what: str, remedy: str) -> None:
    """Raises UserError if a stored pool has other sources or filters."""
    if changed := changed_files(stored.get("sources"), made_of["sources"]):
        raise UserError(f"{_changed(changed)} {what} was built; restore what it was. {remedy}")
    sources = as_expected(stored.get("sources"), made_of["sources"])
    check_matches({**stored, "sources": sources}, made_of, what, remedy, absent_filters(), shown_key)


def _changed(names: Sequence[str]) -> str:
    return f"{', '.join(names)} {'has' if len(names) == 1 else 'have'} changed since"


def _build(
    out: Path, files: list[tuple[str, RowFilter]], made_of: dict[str, Any], remedy: str, progress: bool
) -> dict[str, Any]:
    parts = out / "parts"
    if (out / "plan.json").is_file() and any(parts.glob("*.json")):  # work that a change of sources would lose
        _check_made_of(read_stored(out / "plan.json"), made_of, f"the unfinished pool at {out}", remedy)
    else:
        remove(parts)
        write_json(out / "plan.json", made_of)
    dropped: Counter[str] = Counter()
    losses = Losses()
    for number, (file, rows) in enumerate(Progress(files, desc="reading captions", unit="file", disable=not progress)):
        note = _read_part(parts / f"{number:05d}", file, rows, made_of["skip"])
        dropped += Counter(note["dropped"])
        losses.add(file, note)
    duplicates = merge_parts(out / "captions.arrow", [parts / f"{n:05d}.arrow" for n in range(len(files))], progress)
    if duplicates:
        dropped["duplicate"] = duplicates
    captions = Captions(out / "captions.arrow")
    counts = {"captions": len(captions), "dropped": dict(sorted(dropped.items())), **losses.entries()}
    manifest = {**made_of, **counts, "sha256": sha256(out / "captions.arrow")}
    write_json(out / "manifest.json", manifest)
    remove(parts)
    remove(out / "plan.json")
    return manifest


def _read_part(path: Path, source: str, rows: RowFilter, skip: bool) -> dict[str, Any]:
    """Writes the cleaned and filtered captions of a source to PATH.arrow, then a note to PATH.json. Returns the note.

    The note is {dropped: {reason: number}, damaged: error message, or empty, skipped: the first bad rows, bad_rows:
    their number}. An existing note is returned as it is.
    """
    note = path.with_suffix(".json")
    if not note.is_file():
        dropped: Counter[str] = Counter()
        damaged = ""
        bad = BadRows(f"caption source {source}", skip)

        def captions() -> Iterator[pa.StringArray]:
            nonlocal damaged
            try:
                for batch, dropped_rows in read_batches(source, rows, bad):
                    dropped.update(dropped_rows)
                    yield batch
            except UserError as error:
                if not skip:
                    raise
                damaged = hide_secrets(str(error))

        if not write_arrays(path.with_suffix(".arrow"), captions()) and not skip:
            raise UserError(f"caption source {source}: no caption passes the filter (dropped: {dict(dropped)})")
        write_json(
            note,
            {
                "dropped": dropped,
                "damaged": damaged,
                "skipped": list(map(hide_secrets, bad.quotes)),
                "bad_rows": bad.total,
            },
        )
    return read_record(note, "dropped", "damaged")


def build_pool(config: Config, progress: bool = False) -> dict[str, Any]:
    """Builds the extra texts of an experiment's `pool:` section at `paths.pool`. Returns their manifest.

    With `pool.size`, first builds the pool of all captions at `pool.whole` and takes a subset of it.
    Raises UserError in the same cases as `build` and `take`.
    """
    pool, out = config.pool, Path(config.paths.pool)
    rows, skip = row_filter(pool, config.cache.exclude), config.on_error == "skip"
    sources, also = resolve_sources(pool.sources), resolve_sources(pool.also)
    if pool.size is None:
        manifest = build(out, sources, rows, progress, skip, also)
    elif pool.size == 0:
        manifest = build(out, [], None, progress, skip, also)
    else:
        build(Path(pool.whole), sources, rows, progress, skip)
        manifest = take(Path(pool.whole), out, pool.size, pool.seed, also, skip)
    if "asked" not in manifest and os.access(out, os.W_OK):
        manifest = {**manifest, "asked": pool_identity(config)}
        write_json(out / "manifest.json", manifest)
    check_pool_identity(config)
    return manifest


def pool_identity(config: Config) -> dict[str, Any]:
    """Returns the settings that decide the extra texts of an experiment. Sources are identified by file name only."""
    pool = config.pool
    filters = {field.name for field in dataclasses.fields(RowFilter)} | {"size", "seed", "excluded_only"}
    further = {key: value for key, value in identity_of(pool, "pool").items() if key not in filters}
    return {
        **further,
        "sources": [source_name(source) for source in pool.read],
        "also": [source_name(source) for source in pool.also],
        "size": pool.size,
        "seed": pool.seed if pool.size else 0,
        "filter": settings(row_filter(pool, config.cache.exclude)),
    }


def check_pool_identity(config: Config) -> None:
    """Raises UserError if the pool at `paths.pool` was built for an experiment with other pool settings."""
    folder = Path(config.paths.pool)
    manifest = read_stored(folder / "manifest.json", sources=[*config.pool.read, *config.pool.also])
    if "asked" in manifest:  # missing if the pool was built with `randcond pool build`
        remedy = "To use it, restore these settings. To make another pool, give another paths.pool."
        absent = absent_settings(Pool, "pool") | absent_filters()
        check_matches(manifest["asked"], pool_identity(config), f"the pool at {folder}", remedy, absent, shown_key)


def shown_key(key: str) -> str:
    """Returns a key of a pool's identity as experiments call it: filter.min_length is pool.min_length."""
    own = key.removeprefix("filter.")
    return f"pool.{own}" if own.partition(".")[0] in {field.name for field in dataclasses.fields(Pool)} else key


def check_sources_unchanged(config: Config) -> None:
    """Raises UserError if a caption file has changed since the experiment's pool was built of it.

    Compares local files of at most 64 MB. Building the pool compares all of them.
    """
    pool, folder = config.pool, Path(config.paths.pool)
    stored: list[Any] = []
    for made in (folder, Path(pool.whole)) if pool.size else (folder,):
        if (made / "manifest.json").is_file():
            sources = read_stored(made / "manifest.json").get("sources")
            stored += sources if isinstance(sources, list) else []
    files = [file for source in resolve_sources([*pool.read, *pool.also]) for file in _local_files(source)]
    if changed := changed_files(stored, [identify(file) for file in files if Path(file).stat().st_size <= _SMALL]):
        raise UserError(
            f"{_changed(changed)} the pool at {folder} was built; restore what it was, or give another paths.pool (and "
            f"paths.run) to build one of the new captions"
        )


def _local_files(source: str) -> list[str]:
    """Returns the files of a source that are on this machine. A source that is gone has none."""
    try:
        return [] if is_url(source) else [file for file in expand(source) if not is_url(file)]
    except UserError:
        return []


def take(
    folder: Path, out: Path, count: int, seed: int, also: Sequence[str] = (), skip: bool = False
) -> dict[str, Any]:
    """Writes `count` random captions of the pool at `folder` to a new pool at `out`. Returns the new manifest.

    With the same seed, a larger count includes the captions of every smaller count. `also` and `skip`: see `build`. The
    new manifest includes what was dropped from the original pool, its damaged sources and its bad rows.
    Raises UserError if the pool has fewer captions, if `out` contains another pool, or if a source of `also` is
    missing, damaged or empty.
    """
    pool = open_pool(folder)
    if not 0 <= count <= len(pool):
        raise UserError(f"the pool at {folder} contains {len(pool)} captions, but {count} are requested")
    files = [file for source in also for file in expand(source)]
    pool_manifest = read_stored(folder / "manifest.json", *_KEYS)
    source = {"name": folder.name, "sha256": pool_manifest["sha256"], "taken": count, "seed": seed}
    made_of = {"format": FORMAT, "sources": [*map(identify, files), source], "filter": {}, "skip": skip}
    remedy = "To take this part, give another folder."
    if manifest := _finished(out, made_of, remedy):
        return manifest
    with _pool_lock(out):
        if manifest := _finished(out, made_of, remedy):
            return manifest
        keep = np.zeros(len(pool), dtype=bool)
        keep[np.random.default_rng(seed).permutation(len(pool))[:count]] = True
        starts = np.cumsum([0, *map(len, pool.arrays())])
        chunks = zip(starts[:-1], pool.arrays(), strict=True)
        taken = (chunk.filter(pa.array(keep[start : start + len(chunk)])) for start, chunk in chunks)
        remove(out / "parts")
        dropped, losses = Counter(pool_manifest["dropped"]), Losses(pool_manifest)
        if not files:
            write_arrays(out / "captions.arrow", taken)
        else:
            parts = [out / "parts" / f"{number:05d}" for number in range(len(files) + 1)]
            for part, file in zip(parts, files, strict=False):
                note = _read_part(part, file, UNFILTERED, skip)
                dropped += Counter(note["dropped"])
                losses.add(file, note)
            write_arrays(parts[-1].with_suffix(".arrow"), taken)
            dropped["duplicate"] += merge_parts(
                out / "captions.arrow", [part.with_suffix(".arrow") for part in parts], False
            )
        counts = {"captions": len(Captions(out / "captions.arrow")), "dropped": dict(+dropped), **losses.entries()}
        manifest = {**made_of, **counts, "sha256": sha256(out / "captions.arrow")}
        write_json(out / "manifest.json", manifest)
        remove(out / "parts")
    return manifest


def open_pool(folder: Path, check: bool = False) -> Captions:
    """Opens the extra texts of a finished pool. `check`: verify the checksum, which takes a second per GB.

    Raises UserError if the pool is unfinished, damaged or in another format.
    """
    manifest_path = folder / "manifest.json"
    if not manifest_path.is_file():
        raise UserError(f"no caption pool at {folder}: build it with {stage_command('pool')}")
    manifest = read_stored(manifest_path)
    if manifest.get("format") != FORMAT:
        raise UserError(
            f"the pool at {folder} has format {manifest.get('format')}, expected {FORMAT}; "
            f"give another paths.pool, and build a pool there"
        )
    manifest = read_record(manifest_path, *_KEYS)
    again = f"remove captions.arrow, then {stage_command('pool', folder)} builds it again from its sources"
    if check and sha256(folder / "captions.arrow") != manifest["sha256"]:
        raise UserError(f"the pool at {folder}: captions.arrow does not match its checksum; {again}")
    captions = Captions(folder / "captions.arrow")
    if len(captions) != manifest["captions"]:
        raise UserError(
            f"the pool at {folder} contains {len(captions)} captions, expected {manifest['captions']} according to its "
            f"manifest; {again}"
        )
    return captions


def reasons(manifest: dict[str, Any]) -> str:
    """Returns the number of dropped captions by reason, as text for a message."""
    return ", ".join(f"{number:,} {reason}" for reason, number in manifest["dropped"].items()) or "none"
