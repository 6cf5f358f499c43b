"""Latent shards: ordinary WebDataset tars (KEY.npy fp16 latent, KEY.txt caption, KEY.json metadata) with an index.

The index (one JSON per shard, beside it) holds each latent's offset: exact random access without unpacking.
"""

import io
import math
import mmap
import os
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
from webdataset import TarWriter

from randcond.launch.errors import UserError
from randcond.launch.runtime.files import atomic_write, read_json, sha256, write_json

FORMAT = 3


_EXPONENT = np.uint16(0x7C00)  # of an fp16


def index_path(shard: Path) -> Path:
    """The index beside a shard."""
    return shard.with_suffix(".index.json")


def write_shard(
    shard: Path, samples: list[dict[str, Any]], made_of: str = "", left_out: list[dict[str, Any]] | None = None
) -> None:
    """Writes samples {caption_id, caption, latent [C, h, w], meta} as one shard and its index, both whole.

    The index notes what the shard was made of (a hash of its cache's plan) and what was left out of it, and why.

    The bytes depend on the samples alone (no clock, no user in the tar), so a shard made twice is the same file.
    """
    with atomic_write(shard) as aside:
        with TarWriter(str(aside), mtime=0, user="randcond", group="randcond") as tar:
            for sample in samples:
                tar.write(
                    {
                        "__key__": f"{sample['caption_id']:09d}",
                        "npy": sample["latent"].astype(np.float16),
                        "txt": sample["caption"],
                        "json": {"caption_id": sample["caption_id"], **sample["meta"]},
                    }
                )
        members = _scan(aside)
        digest = sha256(aside)
        size = aside.stat().st_size
    facts = {"shard": shard.name, "bytes": size, "sha256": digest, "made_of": made_of, "left_out": left_out or []}
    write_json(index_path(shard), {**facts, "members": members})


def _scan(tar: Path) -> list[list[Any]]:
    with tarfile.open(tar) as archive:
        return [
            [key := Path(member.name).stem, int(key), member.offset_data, member.size]
            for member in archive
            if member.name.endswith(".npy")
        ]


def shard_done(shard: Path, made_of: str = "") -> bool:
    """Whether shard and index are both in place and whole (the index is written last).

    Raises UserError naming a shard that was made of something else: two teachers' latents don't belong in one cache.
    """
    if not (shard.is_file() and index_path(shard).is_file()):
        return False
    index = _read_index(shard)
    if index.get("made_of") != made_of:
        raise UserError(
            f"shard {shard}: was made for another cache (another teacher, sampler or list of captions); remove it and "
            f"its index, `randcond run cache EXPERIMENT` makes it again"
        )
    return bool(shard.stat().st_size == index["bytes"])


def _read_index(shard: Path) -> dict[str, Any]:
    index = read_json(index_path(shard))
    needed = {"made_of", "bytes", "sha256", "members", "left_out"}
    if not isinstance(index, dict):
        raise _damaged_index(shard, "it is not a JSON object")
    if missing := needed - index.keys():
        raise _damaged_index(shard, f"without {', '.join(sorted(missing))}")
    return index


def _damaged_index(shard: Path, why: object) -> UserError:
    return UserError(
        f"shard {shard}: its index is damaged ({why}); remove both, `randcond run cache EXPERIMENT` makes them again"
    )


class Shard:
    """Random access to one shard's latents through a memory map."""

    def __init__(self, path: Path) -> None:
        """Raises UserError naming the shard when it is missing, truncated or without its index."""
        self.path = path
        if not (path.is_file() and index_path(path).is_file()):
            raise UserError(f"shard {path}: it or its index is missing; finish it with `randcond run cache EXPERIMENT`")
        index = _read_index(path)
        try:
            wanted, self.sha256 = int(index["bytes"]), str(index["sha256"])
            table = np.array([member[1:] for member in index["members"]], dtype=np.int64).reshape(-1, 3)
        except (TypeError, ValueError, OverflowError) as error:
            raise _damaged_index(path, error) from None
        size = os.path.getsize(path)
        if size != wanted:
            raise UserError(
                f"shard {path}: has {size} bytes, its index says {wanted}: it is half-written or damaged; "
                f"`randcond run cache EXPERIMENT` makes it again"
            )
        self.caption_ids = table[:, 0]  # of each latent, [n]
        self._places: list[list[int]] = table[:, 1:].tolist()  # (offset, size) of its .npy
        with path.open("rb") as file:  # copy on write: torch wants arrays it could write to
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        self._bytes = np.frombuffer(self._map, dtype=np.uint8)
        self._header = b""  # of the .npy read last; a shard's are alike
        self._shape: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self.caption_ids)

    def __reduce__(self) -> tuple[type["Shard"], tuple[Path]]:
        return Shard, (self.path,)  # another process maps the file itself: a pickled map would be all its bytes

    def key(self, row: int) -> str:
        """The WebDataset key of a latent."""
        return f"{self.caption_ids[row]:09d}"

    def read_ahead(self, row: int) -> None:
        """Has the system read a latent from the disk meanwhile."""
        start, size = self._places[row]
        first = start - start % mmap.PAGESIZE
        self._map.madvise(mmap.MADV_WILLNEED, first, start + size - first)

    def latent(self, row: int) -> np.ndarray:
        """The latent fp16 [C, h, w], a view of the file; raises UserError naming shard and key when it is damaged."""
        start, size = self._places[row]
        data = self._bytes[start : start + size]
        header = len(self._header)
        if not header or data[:header].tobytes() != self._header:
            self._read_header(row, data)
            header = len(self._header)
        values = data[header:].view(np.float16)
        if (values.view(np.uint16) & _EXPONENT == _EXPONENT).any():  # all ones: not a number, or none that is finite
            raise UserError(f"shard {self.path}, key {self.key(row)}: not a finite fp16 latent; draw the shard again")
        return values.reshape(self._shape)

    def _read_header(self, row: int, data: np.ndarray) -> None:
        """Takes shape and length from a .npy's header; a shard's others have the same bytes, and are not read again."""
        file = io.BytesIO(data.tobytes())
        try:
            version = np.lib.format.read_magic(file)
            if version != (1, 0):
                raise ValueError(f"npy version {version}")
            shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
        except ValueError as error:
            raise UserError(f"shard {self.path}, key {self.key(row)}: {error}") from None
        if dtype != np.float16 or fortran or len(data) - file.tell() != 2 * math.prod(shape):
            raise UserError(f"shard {self.path}, key {self.key(row)}: not a finite fp16 latent; draw the shard again")
        self._header, self._shape = data[: file.tell()].tobytes(), shape


def describe(shard: Path) -> dict[str, Any]:
    """One line of the cache's manifest: name, samples, bytes, sha256 of the shard and of its index."""
    index = _read_index(shard)
    return {
        "shard": shard.name,
        "samples": len(index["members"]),
        "left_out": len(index["left_out"]),
        "bytes": index["bytes"],
        "sha256": index["sha256"],
        "index_sha256": sha256(index_path(shard)),
    }
