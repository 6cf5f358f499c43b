"""Tools for caption pools: build one from caption sources, look into it, take a part of it."""

from pathlib import Path

import numpy as np

from randcond.data.captions.pool import build as build_pool
from randcond.data.captions.pool import open_pool, reasons
from randcond.data.captions.pool import take as take_pool
from randcond.data.captions.row_filter import RowFilter
from randcond.launch.errors import UserError
from randcond.launch.runtime.files import read_json


def build(
    out: str,
    *source: str,
    min_length: int = 1,
    max_length: int = 1000,
    nsfw: str = "",
    min_similarity: str = "0",
    min_width: int = 0,
    min_height: int = 0,
    on_error: str = "stop",
) -> None:
    """Builds a caption pool at OUT from files, folders, globs or URLs of parquet, csv, jsonl or txt (.gz, .zst, ...).

    Captions are cleaned (Unicode NFC, no control characters, single spaces); empty and duplicate ones are dropped, of
    all sources together, and counted. Sources with columns need `caption`, `TEXT` or `text`. Memory: 20 bytes per
    caption. A killed build goes on at the file it was in.

    --min-length N      characters of a caption (default 1)
    --max-length N      (default 1000; 0: any)
    --nsfw A,B          accepted values of the column NSFW (LAION: UNLIKELY, UNSURE, NSFW)
    --min-similarity X  of the column similarity (LAION: CLIP's, of caption and image)
    --min-width N       of the column WIDTH, pixels of the image; --min-height N: of HEIGHT
    --on-error skip     take what can be read of a damaged source, and say what is wrong with it (default: stop)

    examples    randcond pool build runs/my-pool captions.txt more.parquet
                randcond pool build runs/laion "laion/*.parquet" --nsfw UNLIKELY --min-similarity 0.3
    """
    if not source:
        raise UserError("no SOURCE given: name at least one caption file")
    try:
        similarity = float(min_similarity)
    except ValueError:
        raise UserError(f"--min-similarity needs a number, got {min_similarity!r}") from None
    if on_error not in ("stop", "skip"):
        raise UserError(f"--on-error: stop or skip, got {on_error!r}")
    accepted = tuple(filter(None, nsfw.split(",")))
    rows = RowFilter(min_length, max_length, accepted, similarity, min_width, min_height)
    manifest = build_pool(Path(out), list(source), rows, progress=True, skip=on_error == "skip")
    print(f"{manifest['captions']:,} captions at {out}; dropped: {reasons(manifest)}")


def info(folder: str) -> None:
    """Prints what a pool was built from, how many captions it holds and what was dropped."""
    captions = open_pool(Path(folder))
    manifest = read_json(Path(folder) / "manifest.json")
    size = captions.path.stat().st_size
    print(f"{len(captions):,} captions, {size / 1e6:,.1f} MB, format {manifest['format']}, {manifest['sha256'][:16]}")
    print(f"sources: {', '.join(source['name'] for source in manifest['sources'])}")
    print(f"filter: {', '.join(f'{key} {value}' for key, value in manifest['filter'].items()) or 'none'}")
    print(f"dropped: {reasons(manifest)}")
    for error in manifest["damaged"].values():
        print(f"damaged, what could be read was taken: {error}")


def sample(folder: str, *, n: int = 10, seed: int = 0) -> None:
    """Prints N random captions of a pool (the same ones for the same seed)."""
    captions = open_pool(Path(folder))
    if not len(captions):
        raise UserError(f"the pool at {folder} holds no caption")
    for index in np.random.default_rng(seed).integers(len(captions), size=n):
        print(captions[int(index)])


def take(folder: str, out: str, *, n: int, seed: int = 0) -> None:
    """Writes N random captions of a pool as a pool of its own, in their order; more of them hold the fewer.

    The paper's pools of 0, 1M, 10M and 20M extra texts are such parts of one; in an experiment, `pool.size`.

    example    randcond pool take runs/laion runs/laion-1m --n 1000000
    """
    manifest = take_pool(Path(folder), Path(out), n, seed)
    print(f"{manifest['captions']:,} captions at {out}")


COMMANDS = (build, info, sample, take)
