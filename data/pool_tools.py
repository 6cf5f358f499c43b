"""Tools for caption pools: build one from caption files, look into it."""

from pathlib import Path

import numpy as np

from randcond.data.files import read_json
from randcond.data.pool import build as build_pool
from randcond.data.pool import open_pool


def build(out: str, *source: str) -> None:
    """Builds a caption pool at OUT from txt, csv, jsonl or parquet files.

    Captions are cleaned (Unicode NFC, single spaces); empty and duplicate ones are dropped and counted. csv, jsonl
    and parquet files need a column `caption`, `TEXT` or `text`.

    example    randcond pool build runs/my-pool captions.txt more.parquet
    """
    if not source:
        raise ValueError("no SOURCE given: name at least one caption file")
    manifest = build_pool(Path(out), [Path(each) for each in source])
    print(f"{manifest['captions']} captions at {out}; dropped: {manifest['dropped']}")


def info(folder: str) -> None:
    """Prints what a pool was built from, how many captions it holds and what was dropped."""
    captions = open_pool(Path(folder))
    manifest = read_json(Path(folder) / "manifest.json")
    print(f"{len(captions)} captions, format {manifest['format']}, sha256 {manifest['sha256'][:16]}")
    print(f"sources: {', '.join(source['name'] for source in manifest['sources'])}")
    print(f"dropped: {manifest['dropped']}")


def sample(folder: str, *, n: int = 10, seed: int = 0) -> None:
    """Prints N random captions of a pool (the same ones for the same seed)."""
    captions = open_pool(Path(folder))
    for index in np.random.default_rng(seed).integers(len(captions), size=n):
        print(captions[int(index)])


COMMANDS = (build, info, sample)
