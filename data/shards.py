"""Latent shards: ordinary WebDataset tars (KEY.npy fp16 latent, KEY.txt caption, KEY.json metadata) with an index.

The index (one JSON per shard, beside it) holds each latent's offset: exact random access without unpacking.
"""

import io
import json
import os
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
from webdataset import TarWriter

from randcond.data.files import read_json, sha256, write_json, written_whole


def index_path(shard: Path) -> Path:
    """The index beside a shard."""
    return shard.with_suffix(".index.json")


def write_shard(shard: Path, samples: list[dict[str, Any]]) -> None:
    """Writes samples {caption_id, caption, latent [C, h, w], meta} as one shard and its index, both whole.

    The bytes depend on the samples alone (no clock, no user in the tar), so a shard made twice is the same file.
    """
    with written_whole(shard) as aside:
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
    write_json(index_path(shard), {"shard": shard.name, "bytes": size, "sha256": digest, "members": members})


def _scan(tar: Path) -> list[list[Any]]:
    with tarfile.open(tar) as archive:
        return [
            [key := Path(member.name).stem, int(key), member.offset_data, member.size]
            for member in archive
            if member.name.endswith(".npy")
        ]


def shard_done(shard: Path) -> bool:
    """Whether shard and index are both in place and whole (the index is written last)."""
    if not (shard.is_file() and index_path(shard).is_file()):
        return False
    return shard.stat().st_size == read_json(index_path(shard))["bytes"]


class Shard:
    """Random access to one shard's latents through a memory map."""

    def __init__(self, path: Path) -> None:
        """Raises ValueError naming the shard when it is missing, truncated or without its index."""
        self.path = path
        if not (path.is_file() and index_path(path).is_file()):
            raise ValueError(
                f"shard {path}: it or its index is missing; finish it with `randcond run cache EXPERIMENT`"
            )
        index = read_json(index_path(path))
        size = os.path.getsize(path)
        if size != index["bytes"]:
            raise ValueError(
                f"shard {path}: has {size} bytes, its index says {index['bytes']}: it is half-written or damaged; "
                f"`randcond run cache EXPERIMENT` draws it again"
            )
        self.sha256: str = index["sha256"]
        table = np.array([member[1:] for member in index["members"]], dtype=np.int64).reshape(-1, 3)
        self.caption_ids, self._offsets, self._sizes = table.T  # of each latent, [n]
        self._map = np.memmap(path, dtype=np.uint8, mode="r")

    def __len__(self) -> int:
        return len(self.caption_ids)

    def __reduce__(self) -> tuple[type["Shard"], tuple[Path]]:
        return Shard, (self.path,)  # another process maps the file itself: a pickled map would be all its bytes

    def key(self, row: int) -> str:
        """The WebDataset key of a latent."""
        return f"{self.caption_ids[row]:09d}"

    def latent(self, row: int) -> np.ndarray:
        """The latent fp16 [C, h, w]; raises ValueError naming shard and key when it is damaged."""
        start = self._offsets[row]
        data = io.BytesIO(self._map[start : start + self._sizes[row]].tobytes())
        try:
            latent = np.lib.format.read_array(data, allow_pickle=False)
        except ValueError as error:
            raise ValueError(f"shard {self.path}, key {self.key(row)}: {error}") from None
        if latent.dtype != np.float16 or not np.isfinite(latent).all():
            raise ValueError(f"shard {self.path}, key {self.key(row)}: not a finite fp16 latent; draw the shard again")
        return latent


def describe(shard: Path) -> dict[str, Any]:
    """One line of the cache's manifest: name, samples, bytes and sha256."""
    index = json.loads(index_path(shard).read_text())
    return {
        "shard": shard.name,
        "samples": len(index["members"]),
        "bytes": index["bytes"],
        "sha256": index["sha256"],
    }
