"""The captions of an evaluation, numbered, and their seen and unseen splits.

In: the caption sources of `eval.captions`. Out: a fixed list of captions. The seed of an image depends only on
`eval.seed` and the number of its caption.
"""

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from hashlib import sha256

import numpy as np
import pyarrow as pa

from randcond.data.captions.caption_lists import names_any, read_unique
from randcond.data.captions.row_filter import clean
from randcond.data.captions.sources import expand
from randcond.data.rows.columns import CAPTION, FILE_NAME
from randcond.data.rows.opening import compression_of
from randcond.data.rows.tables import kind_of, read_table
from randcond.launch.config.paths import is_url, resolve_sources
from randcond.launch.config.sections import Config
from randcond.launch.errors import UserError

ALL = "all"  # the split that holds every caption


@dataclass(frozen=True)
class Prompts:
    """Numbered captions and their splits. A caption's number is its index in `captions`."""

    captions: list[str]
    images: list[str]  # file name of the image that each caption belongs to; "" if the list names none
    splits: dict[str, list[int]]  # split -> caption numbers

    @property
    def sha256(self) -> str:
        """Hash of the captions in their order (16 hex digits)."""
        return sha256("\n".join(self.captions).encode()).hexdigest()[:16]

    @property
    def splits_sha256(self) -> str:
        """Hash of the caption numbers of each split (16 hex digits)."""
        return sha256(json.dumps(self.splits).encode()).hexdigest()[:16]

    def shown(self, count: int) -> dict[str, list[int]]:
        """Returns the first `count` caption numbers of each split, for a contact sheet.

        The split "all" is left out if there are other splits.
        """
        parts = {split: ids for split, ids in self.splits.items() if split != ALL or len(self.splits) == 1}
        return {split: ids[:count] for split, ids in parts.items()}


def choose_prompts(config: Config) -> Prompts:
    """Returns the experiment's captions.

    Without `eval.size`: all captions, in the order of the lists. With it: `eval.size` seen captions and as many unseen
    ones, in a seeded random order. Raises UserError if a list that is used whole has an empty or repeated caption
    (naming the list and the row), or if the sources hold too few captions.
    """
    if not config.eval.captions:
        raise UserError("eval.captions: is missing")
    is_unseen = _unseen_test(config)
    if config.eval.size is None:
        rows = [row for source in resolve_sources(config.eval.captions) for row in _read_rows(source)]
        _check_unique(rows)
        flags = [is_unseen(row) for row in rows]
    else:
        rows, flags = _sample_rows(config, is_unseen)
    splits = {
        "seen": [number for number, flag in enumerate(flags) if not flag],
        "unseen": [number for number, flag in enumerate(flags) if flag],
    }
    if config.eval.unseen and not splits["unseen"]:
        raise UserError(f"eval.unseen: none of {config.eval.unseen} is among eval.captions")
    chosen = {split: ids for split, ids in splits.items() if ids} if splits["unseen"] else {}
    return Prompts([row.caption for row in rows], [row.image for row in rows], {**chosen, ALL: list(range(len(rows)))})


def grid_prompts(config: Config) -> Prompts:
    """Returns the captions of `eval.grid`, in their order. They are drawn for the report only and not scored."""
    rows = [row for source in resolve_sources(config.eval.grid) for row in _read_rows(source)]
    return Prompts([row.caption for row in rows], [row.image for row in rows], {ALL: list(range(len(rows)))})


def first_prompts(prompts: Prompts, count: int | None) -> Prompts:
    """Returns the first `count` captions of each split (of "all" if it is the only one); all captions for None.

    The order of the list is kept, and the captions are numbered anew from 0.
    """
    if count is None:
        return prompts
    kept = sorted(number for ids in prompts.shown(count).values() for number in ids)
    new_numbers = {number: index for index, number in enumerate(kept)}
    splits = {
        split: [new_numbers[number] for number in ids if number in new_numbers] for split, ids in prompts.splits.items()
    }
    return Prompts([prompts.captions[n] for n in kept], [prompts.images[n] for n in kept], splits)


@dataclass(frozen=True)
class _Row:
    """A row of an evaluation list."""

    caption: str
    image: str = ""  # file name of its image; "" if the list names none
    by_image: bool = False  # what tells it from other rows: its image, or its caption

    @property
    def key(self) -> str:
        return self.image if self.by_image else self.caption


def _unseen_test(config: Config) -> Callable[[_Row], bool]:
    """Returns a function that is True for a row that counts as unseen."""
    excluded = names_any(config.cache.exclude)
    sources = resolve_sources([config.eval.unseen]) if config.eval.unseen else []
    listed = [row for source in sources for row in _read_rows(source)]
    keys, images = {row.key for row in listed}, {row.image for row in listed}

    def is_unseen(row: _Row) -> bool:
        if excluded.search(row.caption) or row.key in keys:
            return True
        return bool(row.image) and row.image in (images if row.by_image else keys)

    return is_unseen


def _sample_rows(config: Config, is_unseen: Callable[[_Row], bool]) -> tuple[list[_Row], list[bool]]:
    """Samples `eval.size` captions of each split in a seeded order; returns them and their unseen flags."""
    captions, _ = read_unique(resolve_sources(config.eval.captions))
    flags = [is_unseen(_Row(caption)) for caption in captions]
    size = config.eval.size
    assert size is not None
    rows: list[_Row] = []
    row_flags: list[bool] = []
    has_unseen = bool(config.cache.exclude or config.eval.unseen)
    for unseen in (False, True) if has_unseen else (False,):
        part = [caption for caption, flag in zip(captions, flags, strict=True) if flag == unseen]
        if len(part) < size:
            kind = "unseen" if unseen else "seen"
            raise UserError(
                f"eval.size: is {size}, but the sources of eval.captions hold only {len(part)} {kind} captions"
            )
        order = np.random.default_rng(config.eval.seed).permutation(len(part))[:size]
        rows += [_Row(part[index]) for index in order]
        row_flags += [unseen] * size
    return rows, row_flags


def _read_rows(source: str) -> list[_Row]:
    """Returns every row of a source; raises UserError naming an empty row."""
    return [row for file in expand(source) for row in _read_list(file)]


def _read_list(file: str) -> list[_Row]:
    """Reads a caption file. A table may name images in a column file_name (BK-SDM's, `randcond concepts coco`).

    The images tell the rows of a csv or tsv file apart. In other files, compressed files and files of a server captions
    do, as older versions had it: they didn't read file names there. So an image may have several captions.
    """
    where, wanted = f"eval.captions: {file}", {"caption": CAPTION, "file_name": replace(FILE_NAME, optional=True)}
    by_image = kind_of(file) in (".csv", ".tsv") and not compression_of(file) and not is_url(file)
    try:
        rows = read_table(file, wanted, where)
    except UserError:
        if by_image:
            raise
        rows = read_table(file, {"caption": CAPTION}, where)  # wrong or missing names of images don't matter
    captions = clean(pa.array([row.values["caption"] for row in rows], pa.string())).to_pylist()
    by_image = by_image and any("file_name" in row.values for row in rows)
    found = [
        _Row(caption, row.values.get("file_name", ""), by_image) for row, caption in zip(rows, captions, strict=True)
    ]
    if by_image:
        for place, row in zip((row.place for row in rows), found, strict=True):
            if not row.image or not row.caption:
                raise UserError(f"{where}, {place}: has no {'caption' if row.image else 'file name'}")
    elif empty := [row.place for row, caption in zip(rows, captions, strict=True) if not caption]:
        raise UserError(
            f"{where}: {len(empty)} empty captions, the first in {empty[0]}. Without eval.size every "
            f"row is drawn and must have a caption: remove the empty rows, or sample captions with eval.size=N"
        )
    return found


def _check_unique(rows: list[_Row]) -> None:
    """Raises UserError if an image, or a caption in a list without images, is listed twice.

    Both rows would be drawn, by different seeds, because a seed follows from the row's number.
    """
    counts = Counter(row.key for row in rows)
    if repeated := [name for name, count in counts.items() if count > 1]:
        numbers = [number for number, row in enumerate(rows, 1) if row.key == repeated[0]]
        raise UserError(
            f"eval.captions: {len(repeated)} captions or images are listed more than once, the first is "
            f"{repeated[0]!r}, rows {', '.join(map(str, numbers[:3]))}: remove the repeated rows, list equal captions "
            f"with their images (a csv file with the columns file_name and caption), or sample distinct captions with "
            f"eval.size=N"
        )
