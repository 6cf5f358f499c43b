"""The manifest of a cache: its plan, one entry per shard with checksums, and the captions that each shard must hold."""

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from randcond.data.cache.shards import Shard, index_path, note_damage, read_index, repair
from randcond.data.captions.source_identity import stored_without_secrets, write_again
from randcond.launch.errors import UserError
from randcond.launch.runtime.files import RESTORE, read_record, sha256
from randcond.launch.runtime.this_command import stage_command

Plan = dict[str, Any]
HASH = "plan_sha256"  # key of a plan that is stored with other words than its shards' hash covers: that hash
DAMAGED = "damaged"  # key of a plan: sentences about sources that were left out. No part of its hash since HASH is kept
_Count = Annotated[int, Field(ge=0, lt=1 << 53)]


def rewrite(folder: Path | None = None) -> str:
    """Returns the end of an error about the manifest or the captions of a cache: the command that writes them again."""
    return f"{stage_command('cache', folder)} writes it again, and makes no sound shard again"


@dataclass(frozen=True)
class ShardEntry:
    """A shard in the manifest of its cache. Manifests store the fields in this order."""

    shard: str  # path, relative to the cache's folder
    samples: _Count  # latents that are used; the last shard of a subset can contain more
    left_out: _Count  # damaged images that have no latent
    bytes: _Count
    sha256: str
    index_sha256: str


def plan_hash(plan: Plan) -> str:
    """Returns the hash of a plan that its shards hold."""
    return plan.get(HASH) or hashlib.sha256(json.dumps(plan).encode()).hexdigest()


def read_cache_record(path: Path, *keys: str, sources: Sequence[str] = (), remedy: str = RESTORE) -> dict[str, Any]:
    """Reads the plan.json or manifest.json of a cache without secrets of URLs. Every reader of these files uses it.

    If an older version left secrets, writes the file again without them. Its plan then keeps the hash that the shards
    hold, or they would count as those of another cache. `keys`, `remedy`: see `read_record`. `sources`: see
    `stored_without_secrets`.
    """
    stored = read_record(path, *keys, remedy=remedy)
    clean: dict[str, Any] = stored_without_secrets(stored, sources)
    if clean == stored:
        return stored
    plan, shards = plan_of(clean), {key: clean[key] for key in clean if key == "shards"}
    if "subset_of" not in plan:  # a subset's shards have the hash of the original cache's plan
        plan[HASH] = plan_hash(plan_of(stored))
    clean = {**plan, **shards}
    write_again(path, clean)
    return clean


def plan_of(record: dict[str, Any]) -> Plan:
    """Returns the plan that a plan.json or manifest.json holds."""
    return {key: value for key, value in record.items() if key != "shards"}


def describe(shard: Path) -> ShardEntry:
    """Returns the manifest entry of a finished shard."""
    index = read_index(shard)
    return ShardEntry(
        shard=shard.name,
        samples=len(index.members),
        left_out=len(index.left_out),
        bytes=index.bytes,
        sha256=index.sha256,
        index_sha256=sha256(index_path(shard)),
    )


def shard_entries(manifest: dict[str, Any], path: Path) -> list[ShardEntry]:
    """Returns the entries of a manifest. `path`: its file. Raises UserError if it is not the manifest of a cache."""
    try:
        return TypeAdapter(list[ShardEntry]).validate_python(manifest["shards"])
    except KeyError:
        raise UserError(f"{path}: not the manifest of a cache: it has no key shards; {rewrite(path.parent)}") from None
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise UserError(
            f"{path}: not the manifest of a cache: shards.{key}: {first['msg']}; {rewrite(path.parent)}"
        ) from None


def captions_of_shard(number: int, shard_size: int, captions: int) -> range:
    """Returns the caption numbers of a shard. `shard_size`: captions per shard; `captions`: those of the cache."""
    first = number * shard_size
    return range(min(first, captions), min(first + shard_size, captions))


def wrong_captions(held: Sequence[int], left_out: Iterable[int], expected: range) -> str:
    """Returns how the captions of a shard differ from the expected ones, "" if they are the same in the same order.

    `held`: caption number of each latent; `left_out`: captions without a latent; both may have numbers only once.
    """
    here = f"captions {expected.start} to {expected.stop - 1}"
    left = [number for number in left_out if number in expected]
    if outside := [number for number in held if number not in expected]:
        return f"it holds caption {outside[0]}, expected {here}"
    both = [*held, *left]
    if len(set(both)) < len(both):
        repeated = next(number for number in both if both.count(number) > 1)
        return f"it holds caption {repeated} twice"
    if missing := sorted(set(expected) - set(both)):
        return f"it lacks {len(missing)} of {here}, the first is {missing[0]}"
    return "" if list(held) == sorted(held) else f"its captions are not in order, expected {here}"


def first_entries(
    entries: Sequence[ShardEntry], shard_size: int, count: int, shard: Callable[[int], Shard], skip: bool = False
) -> list[ShardEntry]:
    """Returns the entries of the shards that contain the first `count` captions of a cache.

    The last entry may use only a part of its shard. `shard_size`: captions per shard. `shard`: opens a shard by number.
    `skip`: if a damaged shard can't be opened, assume that it is complete; the caller skips it later.
    Raises UserError if there are fewer entries.
    """
    found = []
    numbers = range(-(-count // shard_size))
    if len(entries) < len(numbers):
        raise UserError(
            f"manifest.json lists {len(entries)} shards, but {count} captions are in {len(numbers)}; {rewrite()}"
        )
    for number in numbers:
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

    `read_all`: also read the whole shard and verify its checksum. Notes a shard that does not match it.
    """
    if read_all and sha256(shard.path) != shard.sha256:
        remedy = note_damage(shard.path, "it does not match its checksum")
        raise UserError(f"shard {shard.path}: does not match its checksum, so it is damaged; {remedy}")
    same = sha256(index_path(shard.path)) == entry.index_sha256 and shard.sha256 == entry.sha256
    if not same or len(shard) < entry.samples:
        raise UserError(f"shard {shard.path}: the shard or its index does not match the manifest; {repair(shard.path)}")


def check_captions(shard: Shard, entry: ShardEntry, expected: range) -> None:
    """Raises UserError if the used latents of a shard are not those of the expected captions."""
    if wrong := wrong_captions(shard.caption_ids[: entry.samples].tolist(), shard.left_out, expected):
        raise UserError(f"shard {shard.path}: {wrong}; {repair(shard.path)}")
