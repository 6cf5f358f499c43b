"""The caption pool's extra texts: caption sources -> one memory-mapped Arrow file with a manifest.

In: `pool.sources`. Out: `paths.pool`/captions.arrow and manifest.json (sources, counts, what was dropped and why).
Each source file becomes a part of its own, whole or absent, so that a killed build goes on at the file it was in; the
parts are then merged without their duplicates. Nothing is ever held in memory but 20 bytes per caption.
"""

import math
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa

from randcond.data.captions.caption_file import Captions, write_arrays
from randcond.data.captions.pool_merge import merge_parts
from randcond.data.captions.readers import read_batches
from randcond.data.captions.row_filter import WHOLE, RowFilter, row_filter, settings
from randcond.data.captions.sources import expand, identify
from randcond.launch.config.paths import resolve_sources
from randcond.launch.config.sections import Config
from randcond.launch.errors import UserError
from randcond.launch.runtime.artefacts import check_matches
from randcond.launch.runtime.files import read_json, remove, sha256, write_json
from randcond.launch.runtime.locks import locked
from randcond.launch.runtime.logs import log
from randcond.launch.runtime.progress import Progress

FORMAT = 3


def build(
    out: Path,
    sources: list[str],
    rows: RowFilter | None = None,
    progress: bool = False,
    skip: bool = False,
    also: Sequence[str] = (),
) -> dict[str, Any]:
    """Builds the pool at `out` from caption sources and returns its manifest; a finished one is left as it is.

    `skip`: a damaged source gives what can be read of it, and stands in the manifest with what is wrong with it.
    `also`: sources that go before the others, whole: the filter `rows` is not theirs.
    Raises UserError when a source is bad, or when `out` holds a pool of other sources or filters.
    """
    rows = rows or RowFilter()
    files = [file for source in sources for file in expand(source)]
    whole = [file for source in also for file in expand(source)]
    made_of = {"format": FORMAT, "sources": [identify(file) for file in [*whole, *files]], "filter": settings(rows)}
    made_of |= {"skip": skip} | ({"unfiltered": len(whole)} if whole and settings(rows) else {})
    filters = [(file, WHOLE) for file in whole] + [(file, rows) for file in files]
    remedy = "Remove it, or give another paths.pool."
    if manifest := _finished(out, made_of, remedy):
        return manifest
    with _alone(out):  # for which another may have been waited that has built it
        return _finished(out, made_of, remedy) or _build(out, filters, made_of, remedy, progress)


def _alone(out: Path) -> AbstractContextManager[None]:
    """However long another takes: tables begun at once share their pool, and one of them builds it."""
    return locked(out, math.inf, f"{out}: waiting for another run that builds this pool")


def _finished(out: Path, made_of: dict[str, Any], remedy: str) -> dict[str, Any] | None:
    """The manifest of a finished pool; raises UserError when it is of other sources or filters."""
    if not (out / "manifest.json").is_file():
        return None
    manifest: dict[str, Any] = read_json(out / "manifest.json")
    check_matches(manifest, made_of, f"the pool at {out}", remedy)
    return manifest


def _build(
    out: Path, files: list[tuple[str, RowFilter]], made_of: dict[str, Any], remedy: str, progress: bool
) -> dict[str, Any]:
    parts = out / "parts"
    if (out / "plan.json").is_file():
        check_matches(read_json(out / "plan.json"), made_of, f"the unfinished pool at {out}", remedy)
    else:
        remove(parts)
        write_json(out / "plan.json", made_of)
    dropped: Counter[str] = Counter()
    damaged: dict[str, str] = {}
    for number, (file, rows) in enumerate(Progress(files, desc="reading captions", unit="file", disable=not progress)):
        note = _read_part(parts / f"{number:05d}", file, rows, made_of["skip"])
        dropped += Counter(note["dropped"])
        if note["damaged"]:
            damaged[file] = note["damaged"]
            log.warning(f"left out, as far as it can't be read: {note['damaged']}")
    repeated = merge_parts(out / "captions.arrow", [parts / f"{n:05d}.arrow" for n in range(len(files))], progress)
    if repeated:
        dropped["duplicate"] = repeated
    captions = Captions(out / "captions.arrow")
    counts = {"captions": len(captions), "dropped": dict(sorted(dropped.items())), "damaged": damaged}
    manifest = {**made_of, **counts, "sha256": sha256(out / "captions.arrow")}
    write_json(out / "manifest.json", manifest)
    remove(parts)
    remove(out / "plan.json")
    return manifest


def _read_part(path: Path, source: str, rows: RowFilter, skip: bool) -> dict[str, Any]:
    """Writes a source's captions, cleaned and filtered, as PATH.arrow; what was not taken as PATH.json, written last.

    That is {dropped: {reason: number}, damaged: what is wrong with the source, or nothing}.
    """
    note = path.with_suffix(".json")
    if not note.is_file():
        dropped: Counter[str] = Counter()
        damaged = ""

        def captions() -> Iterator[pa.StringArray]:
            nonlocal damaged
            try:
                for batch, lost in read_batches(source, rows):
                    dropped.update(lost)
                    yield batch
            except UserError as error:
                if not skip:
                    raise
                damaged = str(error)

        if not write_arrays(path.with_suffix(".arrow"), captions()) and not skip:
            raise UserError(f"caption source {source}: holds no caption that is taken (dropped: {dict(dropped)})")
        write_json(note, {"dropped": dropped, "damaged": damaged})
    return read_json(note)


def build_pool(config: Config, progress: bool = False) -> dict[str, Any]:
    """The extra texts that an experiment's `pool:` section asks for, at `paths.pool`; returns their manifest.

    Raises UserError as `build` and `take` do.
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
        manifest = {**manifest, "asked": asked(config)}
        write_json(out / "manifest.json", manifest)
    check_asked(config)
    return manifest


def asked(config: Config) -> dict[str, Any]:
    """What of an experiment decides its extra texts; sources by their names, as a cache knows its own."""
    pool = config.pool
    return {
        "sources": [PurePosixPath(source).name for source in pool.read],
        "also": [PurePosixPath(source).name for source in pool.also],
        "size": pool.size,
        "seed": pool.seed if pool.size else 0,
        "filter": settings(row_filter(pool, config.cache.exclude)),
    }


def check_asked(config: Config) -> None:
    """Raises UserError when the pool at `paths.pool` was built for an experiment that asks for another one."""
    folder = Path(config.paths.pool)
    manifest = read_json(folder / "manifest.json")
    if "asked" in manifest:  # else it was built by hand
        remedy = "Give another paths.pool, or ask for what is there."
        check_matches(manifest["asked"], asked(config), f"the pool at {folder}", remedy)


def take(
    folder: Path, out: Path, count: int, seed: int, also: Sequence[str] = (), skip: bool = False
) -> dict[str, Any]:
    """Writes `count` captions of a pool, chosen by the seed, as a pool at `out`; a larger choice holds the smaller one.

    `also`: caption sources that go before them, whole; `skip` as in `build`. What was damaged or dropped of the pool
    stands in this one's manifest, too. Raises UserError when the pool has fewer, when `out` holds another pool, or a
    source is bad.
    """
    whole = open_pool(folder)
    if not 0 <= count <= len(whole):
        raise UserError(f"the pool at {folder} holds {len(whole)} captions, {count} asked for")
    files = [file for source in also for file in expand(source)]
    known = read_json(folder / "manifest.json")
    source = {"name": folder.name, "sha256": known["sha256"], "taken": count, "seed": seed}
    made_of = {"format": FORMAT, "sources": [*map(identify, files), source], "filter": {}, "skip": skip}
    remedy = "Remove it, or give another folder."
    if manifest := _finished(out, made_of, remedy):
        return manifest
    with _alone(out):
        if manifest := _finished(out, made_of, remedy):
            return manifest
        keep = np.zeros(len(whole), dtype=bool)
        keep[np.random.default_rng(seed).permutation(len(whole))[:count]] = True
        starts = np.cumsum([0, *map(len, whole.arrays())])
        chunks = zip(starts[:-1], whole.arrays(), strict=True)
        taken = (chunk.filter(pa.array(keep[at : at + len(chunk)])) for at, chunk in chunks)
        remove(out / "parts")
        dropped, damaged = Counter(known["dropped"]), dict(known["damaged"])
        if not files:
            write_arrays(out / "captions.arrow", taken)
        else:
            parts = [out / "parts" / f"{number:05d}" for number in range(len(files) + 1)]
            for part, file in zip(parts, files, strict=False):
                note = _read_part(part, file, WHOLE, skip)
                dropped += Counter(note["dropped"])
                damaged |= {file: note["damaged"]} if note["damaged"] else {}
            write_arrays(parts[-1].with_suffix(".arrow"), taken)
            dropped["duplicate"] += merge_parts(
                out / "captions.arrow", [part.with_suffix(".arrow") for part in parts], False
            )
        counts = {"captions": len(Captions(out / "captions.arrow")), "dropped": dict(+dropped), "damaged": damaged}
        manifest = {**made_of, **counts, "sha256": sha256(out / "captions.arrow")}
        write_json(out / "manifest.json", manifest)
        remove(out / "parts")
    return manifest


def open_pool(folder: Path, check: bool = False) -> Captions:
    """The extra texts of a built pool; `check`: against its checksum, a second per GB.

    Raises UserError naming a folder that is unfinished, damaged or of another format.
    """
    manifest_path = folder / "manifest.json"
    if not manifest_path.is_file():
        raise UserError(f"no caption pool at {folder}: build it with `randcond run pool EXPERIMENT`")
    manifest = read_json(manifest_path)
    if manifest.get("format") != FORMAT:
        raise UserError(
            f"the pool at {folder} has format {manifest.get('format')}, this version reads {FORMAT}: rebuild"
        )
    if check and sha256(folder / "captions.arrow") != manifest["sha256"]:
        raise UserError(
            f"the pool at {folder}: captions.arrow does not match its checksum; remove the pool and rebuild"
        )
    captions = Captions(folder / "captions.arrow")
    if len(captions) != manifest["captions"]:
        raise UserError(
            f"the pool at {folder} holds {len(captions)} captions, its manifest says {manifest['captions']}"
        )
    return captions


def reasons(manifest: dict[str, Any]) -> str:
    """How many captions were dropped and why, in words."""
    return ", ".join(f"{number:,} {reason}" for reason, number in manifest["dropped"].items()) or "none"
