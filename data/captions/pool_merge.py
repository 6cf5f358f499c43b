"""Merges the parts of a caption pool into one file without duplicates. Needs 20 bytes of memory per caption."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from randcond.data.captions.caption_file import Captions, read_arrays, write_arrays
from randcond.launch.runtime.progress import Progress

_BLOCK = 1 << 20  # number of hashes compared in one numpy operation


def merge_parts(out: Path, parts: list[Path], progress: bool) -> int:
    """Writes the captions of all parts in order, without duplicates. Returns the number of duplicates."""
    part_captions = [Captions(part) for part in parts]
    total = sum(map(len, part_captions))
    with Progress(total=total, desc="comparing", unit="caption", unit_scale=True, disable=not progress) as bar:
        keep = first_of_each(part_captions, bar.update)
    with Progress(total=total, desc="merging", unit="caption", unit_scale=True, disable=not progress) as bar:

        def kept() -> Iterator[pa.StringArray]:
            start = 0
            for part in parts:
                for chunk in read_arrays(part):
                    yield chunk.filter(pa.array(keep[start : start + len(chunk)]))
                    start += len(chunk)
                    bar.update(len(chunk))

        return total - write_arrays(out, kept())


def first_of_each(parts: list[Captions], on_progress: Any = lambda count: None) -> np.ndarray:
    """Returns a bool array [n]: True for each caption, over all parts, whose text does not occur before it.

    Compares 64-bit hashes first, then the texts whose hashes are equal, so the result is exact.
    `on_progress`: called with the number of captions that were hashed since the last call.
    """
    starts = np.cumsum([0, *map(len, parts)])
    hashes = np.empty(starts[-1], dtype=np.int64)
    start = 0
    for captions in parts:
        for chunk in read_arrays(captions.path):
            hashes[start : start + len(chunk)] = np.fromiter(map(hash, chunk.to_pylist()), np.int64, len(chunk))
            start += len(chunk)
            on_progress(len(chunk))
    order = np.argsort(hashes, kind="stable")  # stable: captions with equal hashes stay in order
    repeated = [np.empty(0, dtype=np.int64)]  # positions in `order` whose hash equals the previous one
    for start in range(1, len(order), _BLOCK):
        block = hashes[order[start - 1 : start + _BLOCK]]
        repeated.append(np.flatnonzero(block[1:] == block[:-1]) + start)
    del hashes
    keep = np.ones(starts[-1], dtype=bool)

    def text(number: int) -> str:
        part = int(np.searchsorted(starts, number, side="right")) - 1
        return parts[part][number - int(starts[part])]

    texts: set[str] = set()  # the distinct captions that share the current hash
    previous = -1
    for position in np.concatenate(repeated):
        if position != previous + 1:
            texts = {text(int(order[position - 1]))}
        caption = text(int(order[position]))
        keep[order[position]] = caption not in texts
        texts.add(caption)
        previous = position
    return keep
