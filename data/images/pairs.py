"""Reads captions of images, and the pairs of a WebDataset tar: images by their place, captions as text."""

import os
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, NamedTuple

from randcond.data.images.find import shown
from randcond.data.images.formats import SUFFIXES
from randcond.data.images.left_out import LeftOut
from randcond.data.images.tars import FILE, FOLDER, DamagedTar, Member, content, walk
from randcond.launch.errors import UserError

MAX_CAPTION = 1_000_000  # bytes
COMPRESSED = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"PK\x03\x04": "zip",
}
REMEDY = "it must be a complete, uncompressed tar file"


class Pair(NamedTuple):
    """An image in a tar, and its caption as it is written there."""

    key: str
    caption: str
    start: int  # of the image, in bytes
    size: int
    suffix: str


def read_pairs(tar: Path, left_out: LeftOut, passed_over: Counter[str]) -> list[Pair]:
    """Returns the pairs of a tar in the order of its images.

    Members that are no pairs (.json, hidden ones) are counted in `passed_over`. A damaged tar, a link, a second image
    or caption of a key, a caption that is too long or not UTF-8, and an image without a caption go to `left_out`,
    which raises UserError or counts them. Of a damaged tar, the pairs before the damage are kept.
    """
    found = _Members(f"cache.images: {shown(tar)}", left_out, passed_over)
    without = "no caption"
    with tar.open("rb") as file:
        begin = file.read(6)
        file.seek(0)
        try:
            for signature, name in COMPRESSED.items():
                if begin.startswith(signature):
                    raise DamagedTar(f"is compressed ({name})")
            for member in walk(file, os.fstat(file.fileno()).st_size):
                found.take(member, file)
        except DamagedTar as error:
            left_out.add("damaged tar", f"{found.where}: {error}; {REMEDY}")
            without = "no caption before the damage"
    pairs = []
    for key, member in found.images.items():
        caption = found.captions.get(key)
        if caption is not None:
            pairs.append(Pair(key, caption, member.start, member.size, _key_and_kind(member.name)[1]))
        elif key not in found.captions:
            left_out.add(without, f"{found.where}, key {shown(key)}: has no caption (.txt)")
    return pairs


@dataclass
class _Members:
    """Sorts the members of a tar into images, captions, what is passed over and what is left out."""

    where: str
    left_out: LeftOut
    passed_over: Counter[str]
    images: dict[str, Member] = field(default_factory=dict)  # by key
    captions: dict[str, str | None] = field(default_factory=dict)  # by key; None: left out, and counted already

    def take(self, member: Member, file: IO[bytes]) -> None:
        key, kind = _key_and_kind(member.name)
        said = f"{self.where}, {shown(member.name)}"
        if member.kind == FOLDER:
            return
        if member.kind != FILE:
            self.left_out.add(member.kind, f"{said}: is {member.kind}, not a regular file")
        elif not key.rpartition("/")[2]:
            self.passed_over["hidden"] += 1
        elif kind in SUFFIXES:
            if key in self.images:
                self.left_out.add("second image of a key", f"{said}: is the second image of its key")
            self.images.setdefault(key, member)
        elif kind != ".txt":
            self.passed_over[f"suffix {shown(kind)}" if kind else "without a suffix"] += 1
        elif key in self.captions:
            self.left_out.add("second caption of a key", f"{said}: is the second caption of its key")
        else:
            self.captions[key] = self._caption(member, file, said)

    def _caption(self, member: Member, file: IO[bytes], said: str) -> str | None:
        if member.size > MAX_CAPTION:
            sentence = f"{said}: has {member.size:,} bytes; a caption has at most {MAX_CAPTION:,}"
            self.left_out.add("caption too long", sentence)
            return None
        try:
            return content(file, member).decode("utf-8-sig")
        except UnicodeDecodeError as error:
            self.left_out.add("caption not UTF-8", f"{said}: not UTF-8 ({error.reason})")
            return None


def read_caption(path: Path) -> str:
    """Reads the caption file of an image. Raises UserError if it has more than MAX_CAPTION bytes or is not UTF-8."""
    with path.open("rb") as file:
        data = file.read(MAX_CAPTION + 1)
    if len(data) > MAX_CAPTION:
        raise UserError(f"{shown(path)}: has more than {MAX_CAPTION:,} bytes; a caption has at most as many")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{shown(path)}: not UTF-8 ({error.reason})") from None


def _key_and_kind(name: str) -> tuple[str, str]:
    """Returns key and suffix of a member, by WebDataset's rule: the suffix begins at the first dot of the file's name.

    >>> _key_and_kind("./v1.0/000007.JPG")
    ('v1.0/000007', '.jpg')
    """
    folder, _, file = name.removeprefix("./").rpartition("/")
    key, dot, kind = file.partition(".")
    return (f"{folder}/{key}" if folder else key), f"{dot}{kind.lower()}"
