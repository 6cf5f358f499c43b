"""Measures a pool of 20M captions against a pandas column (part of `make bench-data`).

It measures time, memory, disk space and random reads. The captions are synthetic and as long as LAION's (log-normal,
median 52 characters); a tenth of them are duplicates. The sources are parquet files of a million captions.
"""

import multiprocessing
import os
import resource
import subprocess
import sys
import tempfile
import time
from argparse import ArgumentParser
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq

from randcond.data.captions.caption_file import Captions
from randcond.data.captions.pool import open_pool

WORKERS = 4
READS = 1_000_000
PER_FILE = 1_000_000


def main() -> None:
    """Builds, opens and reads the pool. Prints a line per measurement."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("captions", type=int, nargs="?", default=20_000_000)
    total = parser.parse_args().captions
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        raw = synthetic(folder / "sources", total)
        began = time.perf_counter()
        subprocess.run([sys.executable, "-c", BUILD, str(folder / "pool"), str(folder / "sources")], check=True)
        seconds, peak = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
        began = time.perf_counter()
        pool = open_pool(folder / "pool")
        opened = time.perf_counter() - began
        size = pool.path.stat().st_size
        text = sum(int(chunk.nbytes) for chunk in pool.arrays()) - 4 * len(pool)
        print(
            f"built      {total:,} captions ({raw / 1e6:,.0f} MB) in {seconds:.0f} s, peak memory {peak / 1e9:.2f} GB"
        )
        print(f"on disk    {len(pool):,} captions, {size / 1e6:,.0f} MB, {size / text:.3f} times their raw text")
        print(f"opened     in {1000 * opened:.1f} ms")
        print(f"random     {reads(pool):,.0f} captions/s on one core (warm)")
        bare, ours = private(nothing, folder), private(read_pool, folder)
        print(f"workers    {WORKERS} hold {WORKERS * (ours - bare) / 1e6:.0f} MB in total, without their interpreters")
        began = time.perf_counter()
        column(folder)
        plain = time.perf_counter() - began
        held = WORKERS * (private(column, folder) - bare)
        print(f"pandas     opens in {plain:.1f} s, {WORKERS} workers hold {held / 1e9:.2f} GB")


BUILD = (
    "import sys; from pathlib import Path; from randcond.data.captions.pool import build; "
    "build(Path(sys.argv[1]), sys.argv[2:])"
)


def synthetic(folder: Path, total: int) -> int:
    """Writes parquet files with a column TEXT. Returns the bytes of their captions."""
    folder.mkdir()
    random = np.random.default_rng(0)
    letters = np.frombuffer(b"abcdefghijklmnopqrstuvwxyz      ", dtype=np.uint8)
    text = letters[random.integers(len(letters), size=50_000_000)].tobytes().decode()
    size = 0
    for number, first in enumerate(range(0, total, PER_FILE)):
        count = min(PER_FILE, total - first)
        lengths = np.clip(random.lognormal(np.log(52), 0.6, count), 5, 900).astype(int)
        starts = random.integers(len(text) - 1000, size=count)
        captions = [text[a : a + n] for a, n in zip(starts.tolist(), lengths.tolist(), strict=True)]
        captions[: count // 10] = captions[-(count // 10) :]
        size += int(lengths.sum())
        pq.write_table(pa.table({"TEXT": captions}), folder / f"part-{number:04d}.parquet")
    return size


def reads(pool: Captions) -> float:
    """Returns how many random captions are read per second, from pages in memory."""
    order = np.random.default_rng(1).integers(len(pool), size=READS).tolist()
    for _ in range(2):  # the first pass loads the pages
        began = time.perf_counter()
        for index in order:
            pool[index]
        seconds = time.perf_counter() - began
    return READS / seconds


def nothing(folder: Path) -> Any:
    """Stands for a worker that has only its imports."""


def read_pool(folder: Path) -> Any:
    """Reads random captions of the pool, as a worker does. Returns the pool."""
    pool = open_pool(folder / "pool")
    for index in np.random.default_rng(2).integers(len(pool), size=200_000).tolist():
        pool[index]
    return pool


def column(folder: Path) -> Any:
    """Returns the captions as a pandas column of Python strings, for comparison."""
    import pandas

    return pandas.concat(
        [
            pandas.read_parquet(path, columns=["TEXT"])["TEXT"].astype(object)
            for path in sorted((folder / "sources").iterdir())
        ]
    )


def private(hold: Any, folder: Path) -> float:
    """Returns the private bytes (USS) of a fresh process that holds what `hold` returns."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_hold, args=(hold, folder, theirs))
    process.start()
    ours.recv()
    size = psutil.Process(process.pid).memory_full_info().uss
    ours.send(None)
    process.join()
    return float(size)


def _hold(hold: Any, folder: Path, line: Any) -> None:
    held = hold(folder)
    line.send(os.getpid())
    line.recv()
    del held


if __name__ == "__main__":
    main()
