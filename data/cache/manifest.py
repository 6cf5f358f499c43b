"""The manifest of a cache: one entry per shard, with checksums."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from randcond.data.cache.shards import Shard, index_path, read_index
from randcond.launch.errors import UserError
from randcond.launch.runtime.files import sha256


@dataclass(frozen=True)
class ShardEntry:
    """A shard in the manifest of its cache. Manifests store the fields in this order."""

    shard: str  # path, relative to the cache's folder
    samples: int  # latents that are used; the last shard of a subset can contain more
    left_out: int  # damaged images that have no latent
    bytes: int
    sha256: str
    index_sha256: str


def describe(shard: Path) -> ShardEntry:
    """Returns the manifest entry of a finished shard."""
    index = read_index(shard)
    return ShardEntry(
        shard=shard.name,
        samples=len(index["members"]),
        left_out=len(index["left_out"]),
        bytes=index["bytes"],
        sha256=index["sha256"],
        index_sha256=sha256(index_path(shard)),
    )


def shard_entries(manifest: dict[str, Any], path: Path) -> list[ShardEntry]:
    """Returns the entries of a manifest. `path`: its file. Raises UserError if it is not the manifest of a cache."""
    try:
        return TypeAdapter(list[ShardEntry]).validate_python(manifest["shards"])
    except KeyError:
        raise UserError(f"{path}: not the manifest of a cache: it has no key shards") from None
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise UserError(f"{path}: not the manifest of a cache: shards.{key}: {first['msg']}") from None


def first_entries(
    entries: Sequence[ShardEntry], shard_size: int, count: int, shard: Callable[[int], Shard], skip: bool = False
) -> list[ShardEntry]:
    """Returns the entries of the shards that contain the first `count` captions of a cache.

    The last entry may use only a part of its shard. `shard_size`: captions per shard. `shard`: opens a shard by number.
    `skip`: if a damaged shard can't be opened, assume that it is complete; the caller skips it later.
    """
    found = []
    for number in range(-(-count // shard_size)):
        entry, needed = entries[number], min(count - number * shard_size, shard_size)
        if entry.samples + entry.left_out > needed:
            try:
                samples = int((shard(number).caption_ids < count).sum())  # fewer than `needed` if images were damaged
            except UserError:
                if not skip:
                    raise
                samples = needed
            entry = replace(entry, samples=samples, left_out=needed - samples)
        found.append(entry)
    return found


def check_shard(shard: Shard, entry: ShardEntry, read_all: bool) -> None:
    """Raises UserError if a shard does not match its entry in the manifest.

    `read_all`: also read the whole shard and verify its checksum.
    """
    if read_all and sha256(shard.path) != shard.sha256:
        raise UserError(
            f"shard {shard.path}: does not match its checksum, so it is damaged; "
            f"remove it and its index, then run `randcond run cache EXPERIMENT`"
        )
    same = sha256(index_path(shard.path)) == entry.index_sha256 and shard.sha256 == entry.sha256
    if not same or len(shard) < entry.samples:
        raise UserError(
            f"shard {shard.path}: the shard or its index does not match the manifest; "
            f"remove both, then run `randcond run cache EXPERIMENT`"
        )
