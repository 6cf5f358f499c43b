"""Latent shards: WebDataset tars (KEY.npy: fp16 latent, KEY.txt: caption, KEY.json: metadata), each with an index.

The shard index is a JSON file next to the shard. It stores the offset of each latent in the tar, for random access
without unpacking.
"""

import io
import json
import math
import mmap
import os
import shlex
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass
from webdataset import TarWriter

from randcond.launch.errors import UserError
from randcond.launch.runtime.files import atomic_write, naming_full_disk, sha256, write_text
from randcond.launch.runtime.this_command import stage_command

FORMAT = 3
_STRICT = ConfigDict(strict=True)
_EXPONENT = np.uint16(0x7C00)  # the exponent bits of an fp16 number


@dataclass(frozen=True, config=_STRICT)
class WithoutLatent:
    """A caption without a latent, because its image was damaged."""

    caption_id: int
    error: str = ""
    reason: str = "damaged"  # kind of damage, for counting; older indexes have none


@dataclass(frozen=True, config=_STRICT)
class ShardIndex:
    """The index of a shard. Index files store the fields by these names."""

    bytes: int  # size of the shard
    sha256: str  # of the shard
    made_of: str  # hash of the cache's plan
    left_out: list[WithoutLatent]
    members: list[tuple[str, int, int, int]]  # (key, caption number, offset, size) of each latent, in order
    shard: str = ""  # file name


_INDEX = TypeAdapter(ShardIndex)


def index_path(shard: Path) -> Path:
    """Returns the path of a shard's index."""
    return shard.with_suffix(".index.json")


def repair(shard: Path) -> str:
    """Returns the end of an error about a shard: the command that makes it again."""
    return f"{stage_command('cache', shard.parent)} makes this shard again, and no other"


def verify(shard: Path) -> str:
    """Returns the end of an error about a shard that no note calls damaged yet: the commands that help."""
    command = shlex.join(["randcond", "cache", "verify", str(shard.parent)])
    return f"`{command}` notes such shards, then {repair(shard)}"


def note_path(shard: Path) -> Path:
    """Returns the path of the note that a shard is damaged (see `note_damage`)."""
    return shard.with_suffix(".damaged")


def note_damage(shard: Path, fault: str) -> str:
    """Notes beside a shard that it is damaged. Returns what to do, for an error message.

    The cache stage reads the whole of a noted shard, and makes it again if it is damaged. It does not read the others.
    There is no note if the shard is missing, or its folder can't be written.
    """
    if not (shard.is_file() and os.access(shard.parent, os.W_OK)):
        return verify(shard)
    write_text(note_path(shard), f"{fault}\n")
    return repair(shard)


def write_shard(
    shard: Path, samples: list[dict[str, Any]], made_of: str = "", left_out: list[dict[str, Any]] | None = None
) -> None:
    """Writes samples {caption_id, caption, latent [C, h, w], meta} as a shard with an index.

    `made_of`: hash of the cache's plan. `left_out`: skipped samples {caption_id, error, reason}. The index holds both.
    The bytes depend only on the samples: the tar contains no times and no user names. Both files are written whole
    under other names, then renamed: first the shard, then the index.
    """
    index = index_path(shard)
    with atomic_write(index) as new_index, atomic_write(shard) as temporary:
        with TarWriter(str(temporary), mtime=0, user="randcond", group="randcond") as tar:
            for sample in samples:
                tar.write(
                    {
                        "__key__": f"{sample['caption_id']:09d}",
                        "npy": sample["latent"].astype(np.float16),
                        "txt": sample["caption"],
                        "json": {"caption_id": sample["caption_id"], **sample["meta"]},
                    }
                )
        with naming_full_disk(index):
            text = index_text(temporary, shard.name, made_of, left_out or [])
            new_index.write_text(text, encoding="utf-8", errors="backslashreplace")


def index_text(tar: Path, name: str, made_of: str, left_out: list[dict[str, Any]]) -> str:
    """Returns the content of the index of a shard. Reads the shard.

    `tar`: where the shard is now. `name`: the shard's file name. `made_of`, `left_out`: see `write_shard`.
    Raises tarfile.TarError or ValueError if it is no shard.
    """
    facts = {"shard": name, "bytes": tar.stat().st_size, "sha256": sha256(tar), "made_of": made_of}
    return json.dumps({**facts, "left_out": left_out, "members": _scan(tar)}, indent=2) + "\n"


def _scan(tar: Path) -> list[list[Any]]:
    with tarfile.open(tar) as archive:
        return [
            [key := Path(member.name).stem, int(key), member.offset_data, member.size]
            for member in archive
            if member.name.endswith(".npy")
        ]


def read_index(shard: Path) -> ShardIndex:
    """Reads a shard's index. Raises UserError naming the shard if the index is damaged."""
    try:
        return _INDEX.validate_json(index_path(shard).read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise _damaged_index(shard, f"{place}: {first['msg']}" if place else first["msg"]) from None


def _damaged_index(shard: Path, reason: object) -> UserError:
    return UserError(f"shard {shard}: its index is damaged ({reason}); {repair(shard)}")


class Shard:
    """Random access to the latents of one shard, through a memory map."""

    def __init__(self, path: Path) -> None:
        """Raises UserError if the shard or its index is missing or damaged, or if the shard has the wrong size."""
        self.path = path
        if not (path.is_file() and index_path(path).is_file()):
            raise UserError(f"shard {path}: the shard or its index is missing; {repair(path)}")
        index = read_index(path)
        self.sha256 = index.sha256
        self.left_out = [entry.caption_id for entry in index.left_out]  # captions without a latent
        try:
            table = np.array([member[1:] for member in index.members], dtype=np.int64).reshape(-1, 3)
        except OverflowError as error:
            raise _damaged_index(path, error) from None
        size = os.path.getsize(path)
        if size != index.bytes or not size:
            raise UserError(
                f"shard {path}: has {size} bytes, expected {index.bytes}: it is incomplete or damaged; {repair(path)}"
            )
        self.caption_ids = table[:, 0]  # caption number of each latent, [n]
        self._locations: list[list[int]] = table[:, 1:].tolist()  # (offset, size) of each .npy, in bytes
        with path.open("rb") as file:  # copy-on-write, because torch expects writable arrays
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        self._bytes = np.frombuffer(self._map, dtype=np.uint8)
        self._header = b""  # header of the last .npy that was parsed; all latents of a shard have the same header
        self._shape: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self.caption_ids)

    def __reduce__(self) -> tuple[type["Shard"], tuple[Path]]:
        return Shard, (self.path,)  # the other process maps the file again: pickling the map would copy all its bytes

    def key(self, row: int) -> str:
        """Returns the WebDataset key of a latent."""
        return f"{self.caption_ids[row]:09d}"

    def read_ahead(self, row: int) -> None:
        """Asks the operating system to read a latent from disk in the background."""
        start, size = self._locations[row]
        first = start - start % mmap.PAGESIZE
        self._map.madvise(mmap.MADV_WILLNEED, first, start + size - first)

    def latent(self, row: int) -> np.ndarray:
        """Returns a latent, fp16 [C, h, w], as a view of the mapped file.

        Raises UserError with shard and key if the latent is damaged.
        """
        start, size = self._locations[row]
        data = self._bytes[start : start + size]
        header_size = len(self._header)
        if not header_size or data[:header_size].tobytes() != self._header:
            self._read_header(row, data)
            header_size = len(self._header)
        try:
            values = data[header_size:].view(np.float16).reshape(self._shape)
        except ValueError:  # the index has a wrong size
            raise self._damaged_latent(row) from None
        if (values.view(np.uint16) & _EXPONENT == _EXPONENT).any():  # all exponent bits set: NaN or infinite
            raise self._damaged_latent(row)
        return values

    def _damaged_latent(self, row: int) -> UserError:
        return UserError(f"shard {self.path}, key {self.key(row)}: not a finite fp16 latent; {verify(self.path)}")

    def _read_header(self, row: int, data: np.ndarray) -> None:
        """Parses the header of a .npy file. `latent` skips this for the following latents, if their header is equal."""
        file = io.BytesIO(data.tobytes())
        try:
            version = np.lib.format.read_magic(file)
            if version != (1, 0):
                raise ValueError(f"npy version {version}")
            shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
        except ValueError as error:
            raise UserError(f"shard {self.path}, key {self.key(row)}: {error}; {verify(self.path)}") from None
        if dtype != np.float16 or fortran or len(data) - file.tell() != 2 * math.prod(shape):
            raise self._damaged_latent(row)
        self._header, self._shape = data[: file.tell()].tobytes(), shape
