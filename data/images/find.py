"""Finds the images of a folder, and counts what it passes over by reason."""

import os
import stat
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from randcond.data.images.formats import SUFFIXES
from randcond.data.inputs.names import shown
from randcond.launch.errors import UserError

SHOWN = 6  # reasons that a line names


@dataclass(frozen=True)
class Found:
    """The images of a folder, and what is not one of them."""

    images: list[Path]  # in the order of their paths
    passed_over: Counter[str] = field(default_factory=Counter)  # reason -> files, or folders

    def __str__(self) -> str:
        """Returns e.g. `7 images taken, 3 passed over (2 suffix .json, 1 hidden)`."""
        return taken(len(self.images), self.passed_over)


def taken(images: int, passed_over: Mapping[str, int]) -> str:
    """Returns a line with the number of images taken, and of files passed over by reason.

    >>> taken(7, {"hidden": 1, "suffix .json": 2})
    '7 images taken, 3 passed over (2 suffix .json, 1 hidden)'
    >>> taken(1, {})
    '1 image taken'
    """
    said = f"{images:,} image{'' if images == 1 else 's'} taken"
    if not passed_over:
        return said
    ordered = sorted(passed_over.items(), key=lambda item: (-item[1], item[0]))
    reasons = [f"{number:,} {reason}" for reason, number in ordered[:SHOWN]]
    if rest := sum(number for _, number in ordered[SHOWN:]):
        reasons.append(f"{rest:,} for other reasons")
    return f"{said}, {sum(passed_over.values()):,} passed over ({', '.join(reasons)})"


def find_images(folder: Path, beside: Collection[str] = ()) -> Found:
    """Finds every image below a folder, by suffix (see formats.py; upper case too), in the order of their paths.

    Linked folders are read too, each folder once. Hidden files and folders (.name), other suffixes, broken links and
    what is not a regular file are counted. `beside`: suffixes of files that belong to images, such as .txt, and are
    not counted. Raises UserError if the folder does not exist, or one below it can't be read.
    """
    images: list[Path] = []
    passed_over: Counter[str] = Counter()
    read: set[tuple[int, int]] = set()  # device and number of each folder that was read
    folders, links = [folder], list[Path]()
    while folders or links:
        if not folders:  # links come last, so that a folder is read at its own place if it has one in here
            links.sort()
        place = folders.pop() if folders else links.pop(0)
        try:
            facts = place.stat()
            if (facts.st_dev, facts.st_ino) in read:
                passed_over["linked folder that was read already"] += 1
                continue
            read.add((facts.st_dev, facts.st_ino))
            with os.scandir(place) as entries:
                for entry in entries:
                    path, kind = place / entry.name, _kind(entry)
                    if kind in ("folder", "linked folder"):
                        (folders if kind == "folder" else links).append(path)
                    elif kind == "file" and path.suffix.lower() in SUFFIXES:
                        images.append(path)
                    elif kind != "file" or path.suffix.lower() not in beside:
                        passed_over[kind if kind != "file" else _suffix(path)] += 1
        except OSError as error:
            raise UserError(f"{shown(place)}: the folder can't be read ({error.strerror})") from None
    return Found(sorted(images), passed_over)


def _kind(entry: os.DirEntry[str]) -> str:
    if entry.name.startswith("."):
        return "hidden"
    if not entry.is_symlink():
        if entry.is_dir(follow_symlinks=False):
            return "folder"
        return "file" if entry.is_file(follow_symlinks=False) else "not a regular file"
    try:
        mode = entry.stat().st_mode
    except OSError:
        return "broken link"
    if stat.S_ISDIR(mode):
        return "linked folder"
    return "file" if stat.S_ISREG(mode) else "not a regular file"


def _suffix(path: Path) -> str:
    return f"suffix {shown(path.suffix.lower())}" if path.suffix else "without a suffix"
