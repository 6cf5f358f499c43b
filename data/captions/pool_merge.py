"""Merges the parts of a caption pool into one file without duplicates, in 20 bytes of memory per caption."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from randcond.data.captions.caption_file import Captions, read_arrays, write_arrays
from randcond.launch.runtime.progress import Progress

_AT_ONCE = 1 << 20  # captions whose hashes are compared at once


def merge_parts(out: Path, parts: list[Path], progress: bool) -> int:
    """Writes the parts' captions one after the other, the first of equal ones only; returns how many were left out."""
    opened = [Captions(part) for part in parts]
    total = sum(map(len, opened))
    with Progress(total=2 * total, desc="merging", unit="caption", unit_scale=True, disable=not progress) as bar:
        keep = first_of_each(opened, bar.update)

        def kept() -> Iterator[pa.StringArray]:
            at = 0
            for part in parts:
                for chunk in read_arrays(part):
                    yield chunk.filter(pa.array(keep[at : at + len(chunk)]))
                    at += len(chunk)
                    bar.update(len(chunk))

        return total - write_arrays(out, kept())


def first_of_each(parts: list[Captions], seen: Any = lambda count: None) -> np.ndarray:
    """Whether each caption of all parts, in order, is the first of its text [n], exact.

    By 64-bit hashes of this process; those that meet are compared as text.
    """
    starts = np.cumsum([0, *map(len, parts)])
    hashes = np.empty(starts[-1], dtype=np.int64)
    at = 0
    for captions in parts:
        for chunk in read_arrays(captions.path):
            hashes[at : at + len(chunk)] = np.fromiter(map(hash, chunk.to_pylist()), np.int64, len(chunk))
            at += len(chunk)
            seen(len(chunk))
    order = np.argsort(hashes, kind="stable")  # equal hashes stay in the order of the captions
    again = [np.empty(0, dtype=np.int64)]
    for at in range(1, len(order), _AT_ONCE):
        block = hashes[order[at - 1 : at + _AT_ONCE]]
        again.append(np.flatnonzero(block[1:] == block[:-1]) + at)
    del hashes
    keep = np.ones(starts[-1], dtype=bool)

    def text(number: int) -> str:
        part = int(np.searchsorted(starts, number, side="right")) - 1
        return parts[part][number - int(starts[part])]

    texts: set[str] = set()  # of one hash
    last = -1
    for place in np.concatenate(again):
        if place != last + 1:
            texts = {text(int(order[place - 1]))}
        caption = text(int(order[place]))
        keep[order[place]] = caption not in texts
        texts.add(caption)
        last = place
    return keep
