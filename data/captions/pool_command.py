"""Tools for caption pools: build a pool from caption sources, inspect it, take a subset."""

from pathlib import Path

import numpy as np

from randcond.data.captions.pool import build as build_pool
from randcond.data.captions.pool import open_pool, reasons
from randcond.data.captions.pool import take as take_pool
from randcond.data.captions.row_filter import RowFilter
from randcond.data.captions.source_identity import read_stored
from randcond.launch.errors import UserError


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
    """Builds a caption pool at OUT from caption sources.

    SOURCE is a file, folder, glob or URL. Formats: parquet, csv, tsv, jsonl and txt, also compressed (.gz, .bz2, .xz,
    .zst). Text is UTF-8 or UTF-16. A csv file may have commas, tabs, semicolons or bars between its columns. Of a
    folder, hidden files and folders are left out.

    All formats but txt need a column for the caption: the first of `caption`, `text` and `prompt` that there is. In the
    names of columns case does not count, and spaces and hyphens count as underscores: `TEXT` is `text`.

    Captions are cleaned: Unicode NFC, no control characters, single spaces. Empty captions are dropped, and so is every
    duplicate across all sources. The build needs 20 bytes of memory per caption. To resume a killed build, run the same
    command again.

    Other users may see the arguments of a command. For a URL that needs a password, use ~/.netrc. For a signed URL, put
    its query into an environment variable: 'https://host/captions.csv?${QUERY}'. The pool's files hold neither.

    --min-length N      minimum number of characters (default: 1)
    --max-length N      maximum number of characters (default: 1000; 0: no limit)
    --nsfw A,B          accepted values of the column NSFW (LAION: UNLIKELY, UNSURE, NSFW)
    --min-similarity X  minimum of the column similarity (LAION: CLIP similarity of caption and image)
    --min-width N       minimum of the column WIDTH, in pixels
    --min-height N      minimum of the column HEIGHT, in pixels
    --on-error skip     skip bad rows, use the readable part of a damaged source, and report both (default: stop)

    examples    randcond pool build runs/my-pool captions.txt more.parquet
                randcond pool build runs/laion "laion/*.parquet" --nsfw UNLIKELY --min-similarity 0.3
    """
    if not source:
        raise UserError("SOURCE is missing: give at least one caption source")
    try:
        similarity = float(min_similarity)
    except ValueError:
        raise UserError(f"--min-similarity: is {min_similarity!r}, expected a number") from None
    if on_error not in ("stop", "skip"):
        raise UserError(f"--on-error: is {on_error!r}, expected stop or skip")
    accepted = tuple(filter(None, nsfw.split(",")))
    rows = RowFilter(min_length, max_length, accepted, similarity, min_width, min_height)
    manifest = build_pool(Path(out), list(source), rows, progress=True, skip=on_error == "skip")
    print(f"{manifest['captions']:,} captions at {out}; dropped: {reasons(manifest)}")


def info(folder: str) -> None:
    """Prints the sources of a pool, its number of captions, its filter, and what was dropped."""
    captions = open_pool(Path(folder))
    manifest = read_stored(Path(folder) / "manifest.json", "format", "sources", "filter", "dropped", "damaged")
    size = captions.path.stat().st_size
    print(f"{len(captions):,} captions, {size / 1e6:,.1f} MB, format {manifest['format']}, {manifest['sha256'][:16]}")
    print(f"sources: {', '.join(source['name'] for source in manifest['sources'])}")
    print(f"filter: {', '.join(f'{key} {value}' for key, value in manifest['filter'].items()) or 'none'}")
    print(f"dropped: {reasons(manifest)}")
    for error in manifest["damaged"].values():
        print(f"damaged source, only its readable part was used: {error}")
    for quotes in manifest.get("skipped", {}).values():
        for quote in quotes:
            print(f"skipped: {quote}")


def sample(folder: str, *, n: int = 10, seed: int = 0) -> None:
    """Prints N random captions of a pool, or all if it has fewer. The same seed prints the same captions."""
    captions = open_pool(Path(folder))
    if not len(captions):
        raise UserError(f"the pool at {folder} contains no captions")
    for index in np.random.default_rng(seed).choice(len(captions), min(n, len(captions)), replace=False):
        print(captions[int(index)])


def take(folder: str, out: str, *, n: int, seed: int = 0) -> None:
    """Writes a new pool at OUT with N random captions of the pool at FOLDER, in the original order.

    With the same seed, a larger N includes the captions of every smaller N. The paper's pools of 0, 1M, 10M and 20M
    extra texts are such subsets. An experiment does the same with pool.size.

    example    randcond pool take runs/laion runs/laion-1m --n 1000000
    """
    manifest = take_pool(Path(folder), Path(out), n, seed)
    print(f"{manifest['captions']:,} captions at {out}")


COMMANDS = (build, info, sample, take)
