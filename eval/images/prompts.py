"""The captions an evaluation draws, by number, and which of them count as seen and unseen.

In: the sources of `eval.captions`. Out: a fixed list; a caption's number is all its seed depends on.
"""

import csv
import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256

import numpy as np

from randcond.data.captions.caption_lists import names_any, read_unique
from randcond.data.captions.readers import read_batches
from randcond.data.captions.row_filter import clean_text
from randcond.data.captions.sources import COLUMNS, expand
from randcond.launch.config.paths import resolve_sources
from randcond.launch.config.sections import Config
from randcond.launch.errors import UserError

ALL = "all"  # the split of every caption


@dataclass(frozen=True)
class Prompts:
    """Captions by number, the image each belongs to where the list says so, and the numbers of each split."""

    captions: list[str]
    images: list[str]  # file names, "" where the list names none
    splits: dict[str, list[int]]

    @property
    def sha256(self) -> str:
        """Hash of the captions in their order (16 hex digits)."""
        return sha256("\n".join(self.captions).encode()).hexdigest()[:16]

    @property
    def splits_sha256(self) -> str:
        """Hash of which numbers are in which split (16 hex digits)."""
        return sha256(json.dumps(self.splits).encode()).hexdigest()[:16]

    def shown(self, count: int) -> dict[str, list[int]]:
        """The first captions of each split, for a contact sheet; of "all" only where there is no other."""
        parts = {split: ids for split, ids in self.splits.items() if split != ALL or len(self.splits) == 1}
        return {split: ids[:count] for split, ids in parts.items()}


def choose_prompts(config: Config) -> Prompts:
    """The experiment's captions: all of them as listed, or `eval.size` seen and as many unseen ones in a seeded order.

    Raises UserError naming the list and the row where a whole list has an empty caption or one twice, and when the
    sources hold fewer than asked for.
    """
    if not config.eval.captions:
        raise UserError("eval.captions: is missing")
    is_unseen = _unseen(config)
    if config.eval.size is None:
        rows = [row for source in resolve_sources(config.eval.captions) for row in _listed(source)]
        _check_unique(rows)
        flags = [is_unseen(*row) for row in rows]
    else:
        rows, flags = _sampled(config, is_unseen)
    splits = {
        "seen": [number for number, flag in enumerate(flags) if not flag],
        "unseen": [number for number, flag in enumerate(flags) if flag],
    }
    if config.eval.unseen and not splits["unseen"]:
        raise UserError(f"eval.unseen: none of {config.eval.unseen} is among eval.captions")
    chosen = {split: ids for split, ids in splits.items() if ids} if splits["unseen"] else {}
    return Prompts([row[1] for row in rows], [row[0] for row in rows], {**chosen, ALL: list(range(len(rows)))})


def grid_prompts(config: Config) -> Prompts:
    """The captions that are drawn for the report's grids only (`eval.grid`), in their order."""
    rows = [row for source in resolve_sources(config.eval.grid) for row in _listed(source)]
    return Prompts([row[1] for row in rows], [row[0] for row in rows], {ALL: list(range(len(rows)))})


def first_prompts(prompts: Prompts, count: int | None) -> Prompts:
    """The first `count` captions of each of seen and unseen (or of all), numbered as in the whole list's order."""
    if count is None:
        return prompts
    kept = sorted(number for ids in prompts.shown(count).values() for number in ids)
    place = {number: index for index, number in enumerate(kept)}
    splits = {split: [place[number] for number in ids if number in place] for split, ids in prompts.splits.items()}
    return Prompts([prompts.captions[n] for n in kept], [prompts.images[n] for n in kept], splits)


def _unseen(config: Config) -> Callable[[str, str], bool]:
    """Whether a caption (with its image's file name) counts as unseen."""
    excluded = names_any(config.cache.exclude)
    listed: set[str] = set()
    if config.eval.unseen:
        rows = [row for source in resolve_sources([config.eval.unseen]) for row in _listed(source)]
        listed = {image or caption for image, caption in rows}
    return lambda image, caption: bool(excluded.search(caption)) or (image or caption) in listed


def _sampled(config: Config, is_unseen: Callable[[str, str], bool]) -> tuple[list[tuple[str, str]], list[bool]]:
    """`eval.size` captions of each split out of sources of any size, in a seeded order."""
    captions, _ = read_unique(resolve_sources(config.eval.captions))
    flags = [is_unseen("", caption) for caption in captions]
    wanted = config.eval.size
    assert wanted is not None
    rows: list[tuple[str, str]] = []
    chosen: list[bool] = []
    asked = (False, True) if config.cache.exclude or config.eval.unseen else (False,)
    for unseen in asked:
        part = [caption for caption, flag in zip(captions, flags, strict=True) if flag == unseen]
        if len(part) < wanted:
            kind = "unseen" if unseen else "seen"
            raise UserError(f"eval.size: {wanted} {kind} captions wanted, the sources hold {len(part)}")
        order = np.random.default_rng(config.eval.seed).permutation(len(part))[:wanted]
        rows += [("", part[index]) for index in order]
        chosen += [unseen] * wanted
    return rows, chosen


def _listed(source: str) -> list[tuple[str, str]]:
    """(image's file name or "", caption) of every row of a published list; raises UserError naming an empty row."""
    return [row for file in expand(source) for row in (_with_images(file) or _captions(file))]


def _with_images(file: str) -> list[tuple[str, str]]:
    """The rows of a csv that names images (BK-SDM's, `randcond concepts coco`), else none."""
    if not file.endswith(".csv") or "://" in file:
        return []
    with open(file, newline="", encoding="utf-8-sig") as opened:
        reader = csv.DictReader(opened)
        names = {name.strip().lower().replace(" ", "_"): name for name in reader.fieldnames or []}
        caption = next((names[column.lower()] for column in COLUMNS if column.lower() in names), None)
        if "file_name" not in names or caption is None:
            return []
        rows = [(row[names["file_name"]] or "", clean_text(row[caption] or "")) for row in reader]
    for number, (image, text) in enumerate(rows, 1):
        if not image or not text:
            raise UserError(f"eval.captions: {file}, row {number}: has no {'caption' if image else 'file name'}")
    return rows


def _captions(file: str) -> list[tuple[str, str]]:
    rows = []
    for captions, dropped in read_batches(file):
        if dropped:
            number = sum(dropped.values())
            raise UserError(
                f"eval.captions: {file}: {number} empty captions; a list that is scored whole must have one in every "
                f"row: remove them, or draw some of its captions with eval.size=N"
            )
        rows += [("", caption) for caption in captions.to_pylist()]
    return rows


def _check_unique(rows: list[tuple[str, str]]) -> None:
    """An image, or a caption without an image, must stand in the list once: its seed follows from its number."""
    counts = Counter(image or caption for image, caption in rows)
    if twice := [name for name, count in counts.items() if count > 1]:
        places = [number for number, (image, caption) in enumerate(rows, 1) if (image or caption) == twice[0]]
        raise UserError(
            f"eval.captions: {len(twice)} captions or images stand in the list more than once, the first "
            f"{twice[0]!r}, rows {', '.join(map(str, places[:3]))}: remove them, name the images that equal captions "
            f"belong to (a csv with file_name and caption), or draw distinct captions with eval.size=N"
        )
