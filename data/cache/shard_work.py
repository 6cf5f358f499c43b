"""The shards that the cache stage must make, and how it replaces one while trainings read the cache.

What is checked when:

- At each start of the cache stage, for every shard: that it and its index exist, its size, and by its index its plan,
  its captions, and that the manifest lists this index. No latent is read: a cache may have terabytes.
- `randcond cache verify` reads everything, and a training verifies every checksum. They note a shard that is damaged
  in NAME.damaged beside it. All ranks, and all commands on the folder, see these notes.
- The process that has claimed a noted shard, or one whose index is not the manifest's, reads the whole of it. If it is
  sound, it stays, and its note goes. If only its index is wrong, and the manifest has its checksum, the index is
  written again from the shard.

A shard is replaced only when the new one is drawn and written under another name: the shard is renamed, then its index,
then its note is removed, and the manifest is written last. A training that has the old shard open keeps it; one that
opens it meanwhile finds the old one or the new one. Between the two renames it finds the new shard with the old index:
this fits, unless the old index was damaged or of another cache, and then the old shard could not be opened either. So
trainings and the cache stage need no common lock.
"""

import hashlib
import os
import shutil
import tarfile
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from randcond.data.cache.cache_faults import shard_faults
from randcond.data.cache.manifest import ShardEntry, captions_of_shard, describe, shard_entries, wrong_captions
from randcond.data.cache.shards import index_path, index_text, note_path, read_index
from randcond.data.captions.caption_file import Captions
from randcond.launch.errors import UserError
from randcond.launch.runtime.files import atomic_write, read_record, remove, sha256, write_text

FOREIGN = "foreign-"  # how the name of another cache's shard begins when it is put aside


@dataclass(frozen=True)
class ShardWork:
    """The shards of a cache, and what each of them must hold."""

    shards: list[Path]
    made_of: str  # hash of the plan
    shard_size: int  # captions per shard
    captions: Captions
    latent_shape: tuple[int, ...]  # (C, h, w)
    listed: dict[str, ShardEntry]  # the entries of the manifest, by the names of their shards
    sound: set[Path] = field(default_factory=set)  # shards that need not be looked at again

    @cached_property
    def numbers(self) -> dict[Path, int]:
        """The number of each shard."""
        return {shard: number for number, shard in enumerate(self.shards)}

    def ids(self, shard: Path) -> range:
        """Returns the caption numbers of a shard."""
        return captions_of_shard(self.numbers[shard], self.shard_size, len(self.captions))

    def is_done(self, shard: Path) -> bool:
        """Returns True if a shard seems sound. Reads its index, and no latent."""
        if shard not in self.sound and not self.fault(shard) and not self.doubt(shard):
            self.sound.add(shard)
        return shard in self.sound

    def fault(self, shard: Path) -> str:
        """Returns what the size and the index of a shard say against it, "" if there is nothing."""
        if not shard.is_file():
            return "it is missing"
        if not index_path(shard).is_file():
            return "its index is missing"
        try:
            index, size = read_index(shard), shard.stat().st_size
        except UserError:
            return "its index is damaged"
        except FileNotFoundError:
            return "it is missing"
        if index.made_of != self.made_of:
            return f"it belongs to a cache with other settings; it is kept as {self.foreign_path(shard).name}"
        held = [caption_id for _, caption_id, _, _ in index.members]
        left_out = [entry.caption_id for entry in index.left_out]
        if wrong := wrong_captions(held, left_out, self.ids(shard)):
            return wrong
        return f"it has {size} bytes, expected {index.bytes}" if size != index.bytes else ""

    def doubt(self, shard: Path) -> str:
        """Returns why the whole of a shard must be read, "" if it need not."""
        if note_path(shard).exists():
            return "it was noted as damaged"
        listed = self.listed.get(shard.name)
        other = listed is not None and listed.index_sha256 != sha256(index_path(shard))
        return "the manifest lists another index" if other else ""

    def damage(self, shard: Path) -> str:
        """Reads the whole of a shard. Returns what is wrong with it, "" if it is sound."""
        if fault := self.fault(shard):
            return fault
        if sha256(shard) != read_index(shard).sha256:
            return "it does not match its checksum"
        faults = list(shard_faults(shard, describe(shard), self.ids(shard), self.captions, self.latent_shape))
        return f"{len(faults)} of its latents or captions are damaged" if faults else ""

    def restore_index(self, shard: Path) -> bool:
        """Writes the index of a shard again, and returns True, if the manifest lists shard and index by checksum.

        The new index must match the checksum, too. It does not if images were left out: the shard does not name them.
        """
        listed = self.listed.get(shard.name)
        if listed is None or not shard.is_file() or sha256(shard) != listed.sha256:
            return False
        try:
            text = index_text(shard, shard.name, self.made_of, [])
        except (tarfile.TarError, ValueError):  # no shard, although the manifest lists it
            return False
        if hashlib.sha256(text.encode()).hexdigest() != listed.index_sha256:
            return False
        write_text(index_path(shard), text)
        return not self.damage(shard)

    def declare_sound(self, shard: Path) -> None:
        """Ends the work on a shard that is sound, or has just been made."""
        remove(note_path(shard))
        self.sound.add(shard)

    def foreign_path(self, shard: Path) -> Path:
        """Returns where a shard of another cache is kept: a path that is free, or where it is kept already."""
        index = index_path(shard).read_bytes()
        path = shard.with_name(f"{FOREIGN}{shard.name}")
        if index_path(path).exists() and index_path(path).read_bytes() != index:
            path = shard.with_name(f"{FOREIGN}{read_index(shard).made_of[:8]}-{shard.name}")
        return path

    def keep_foreign(self, shard: Path) -> None:
        """Gives a shard of another cache a second name, before it is replaced. Does nothing for other shards."""
        try:
            if not shard.is_file() or read_index(shard).made_of == self.made_of:
                return
        except (UserError, FileNotFoundError):
            return
        kept = self.foreign_path(shard)
        for path, other in ((index_path(shard), index_path(kept)), (shard, kept)):
            if other.exists():  # a killed command has kept it
                continue
            try:
                os.link(path, other)
            except OSError:  # a file system without hard links
                with atomic_write(other) as temporary:
                    shutil.copyfile(path, temporary)


def listed_shards(manifest: Path) -> dict[str, ShardEntry]:
    """Returns the entries of a manifest by the names of their shards; {} if there is none, or it is damaged."""
    with suppress(UserError):
        if manifest.is_file():
            return {entry.shard: entry for entry in shard_entries(read_record(manifest), manifest)}
    return {}


def plans_of(shards: Iterable[Path]) -> Iterator[tuple[Path, str]]:
    """Yields each shard whose index can be read, with the hash of its plan."""
    for shard in filter(Path.is_file, shards):
        with suppress(UserError, FileNotFoundError):
            yield shard, read_index(shard).made_of
