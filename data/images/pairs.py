"""Reads captions of images, and the pairs of a WebDataset tar: images by their place, captions as text."""

import os
import stat
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, NamedTuple, TypeVar

from randcond.data.images.formats import COMMON, SUFFIXES
from randcond.data.images.left_out import LeftOut
from randcond.data.inputs.names import shown
from randcond.data.inputs.signatures import COMPRESSED, HEAD, kind_of_content
from randcond.data.inputs.tars import FILE, FOLDER, DamagedTar, Member, content, walk
from randcond.launch.errors import UserError

MAX_CAPTION = 1_000_000  # bytes
REMEDY = "it must be a complete, uncompressed tar file"
T = TypeVar("T")


class Pair(NamedTuple):
    """An image in a tar, and its caption as it is written there."""

    key: str
    caption: str
    start: int  # of the image, in bytes
    size: int
    suffix: str


def read_pairs(tar: Path, left_out: LeftOut, passed_over: Counter[str]) -> list[Pair]:
    """Returns the pairs of a tar in the order of its images.

    Members that are no pairs (.json, hidden ones) are counted in `passed_over`, and so are images by the rules of
    `in_other_format` and `needs_caption`. A tar that is damaged or can't be opened, a link, a second image or caption
    of a key, a caption that is too long or not UTF-8, and an image without a caption go to `left_out`, which raises
    UserError or counts them. Of a damaged tar, the pairs before the damage are kept. Raises OSError naming the tar if
    the disk fails.
    """
    found = _Members(f"cache.images: {shown(tar)}", left_out, passed_over)
    try:
        if not stat.S_ISREG(tar.stat().st_mode):
            left_out.add("not a regular file", f"{found.where}: is not a regular file; {REMEDY}")
            return []
        file = tar.open("rb")
    except OSError as error:
        left_out.add("tar that can't be read", f"{found.where}: can't be read ({error.strerror}); {REMEDY}")
        return []
    without = "no caption"
    with file:
        try:
            kind = kind_of_content(file.read(HEAD))
            file.seek(0)
            if kind in COMPRESSED:
                raise DamagedTar(f"is compressed ({kind})")
            for member in walk(file, os.fstat(file.fileno()).st_size):
                found.take(member, file)
        except DamagedTar as error:
            left_out.add("damaged tar", f"{found.where}: {error}; {REMEDY}")
            without = "no caption before the damage"
        except OSError as error:
            raise OSError(error.errno, f"{found.where}: can't be read: {error.strerror}") from None
    return found.pairs(without)


def in_other_format(images: Sequence[T], suffix: Callable[[T], str], passed_over: Counter[str]) -> list[T]:
    """Returns those of the images of one caption that count: with one in a COMMON format, the others are passed over.

    A photo.psd or photo.gif beside photo.jpg is the same picture once more. `suffix`: gives an image's, in lower case.
    """
    common = [image for image in images if suffix(image) in COMMON]
    if common and len(common) < len(images):
        passed_over["other format of a captioned image"] += len(images) - len(common)
    return common or list(images)


def needs_caption(suffix: str, captioned: Collection[str]) -> bool:
    """Returns True if an image without a caption is a mistake: in a COMMON format, or in one that others have here.

    `captioned`: the suffixes of the images that have a caption. A cover.gif among captioned .jpg files is no mistake.
    """
    return suffix in COMMON or suffix in captioned


@dataclass
class _Members:
    """Sorts the members of a tar into images, captions, what is passed over and what is left out."""

    where: str
    left_out: LeftOut
    passed_over: Counter[str]
    images: dict[str, list[Member]] = field(default_factory=dict)  # by key
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
            self.images.setdefault(key, []).append(member)
        elif kind != ".txt":
            self.passed_over[f"suffix {shown(kind)}" if kind else "without a suffix"] += 1
        elif key in self.captions:
            self.left_out.add("second caption of a key", f"{said}: is the second caption of its key")
        else:
            self.captions[key] = self._caption(member, file, said)

    def pairs(self, without: str) -> list[Pair]:
        """Returns the pairs. `without`: the reason for which an image without a caption is left out."""
        pairs = []
        chosen = {key: in_other_format(members, _suffix, self.passed_over) for key, members in self.images.items()}
        captioned = {_suffix(members[0]) for key, members in chosen.items() if key in self.captions}
        for key, (member, *more) in chosen.items():
            suffix = _suffix(member)
            if key not in self.captions and not needs_caption(suffix, captioned):
                for each in (member, *more):
                    self.passed_over[f"suffix {_suffix(each)} without a caption"] += 1
                continue
            for second in more:
                said = f"{self.where}, {shown(second.name)}: is the second image of its key"
                self.left_out.add("second image of a key", said)
            caption = self.captions.get(key)
            if caption is not None:
                pairs.append(Pair(key, caption, member.start, member.size, suffix))
            elif key not in self.captions:
                self.left_out.add(without, f"{self.where}, key {shown(key)}: has no caption (.txt)")
        return pairs

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


def _suffix(member: Member) -> str:
    return _key_and_kind(member.name)[1]
