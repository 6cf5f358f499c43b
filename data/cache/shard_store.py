"""Locates the shards of a cache: in a local folder, or on a server, from which they are copied on first use."""

import os
import posixpath
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from randcond.data.cache.manifest import ShardEntry
from randcond.data.cache.shards import index_path
from randcond.data.inputs.fetch import fetch
from randcond.launch.errors import UserError
from randcond.launch.runtime.files import remove
from randcond.launch.runtime.locks import locked


class LocalShards:
    """Shards in a local folder."""

    open_at_once: int | None = None  # maximum number of open shards; None: no limit
    window: int | None = None  # number of shards whose latents are mixed; None: all

    def __init__(self, folder: Path, entries: list[ShardEntry]) -> None:
        self.folder, self.entries = folder, entries

    def path(self, number: int) -> Path:
        """Returns the path of a shard."""
        return self.folder / self.entries[number].shard

    def prefetch(self, number: int) -> None:
        """Does nothing: local shards need no prefetch."""


class RemoteShards:
    """Shards on a server, copied to a local folder on first use. All processes of a host share the copies.

    A copy is named after its shard's checksum, so different caches can share one folder. When the folder is full, the
    least recently opened copies are deleted. A process that has a deleted copy open can still read it.
    """

    def __init__(self, url: str, entries: list[ShardEntry], folder: Path, max_bytes: float) -> None:
        """`max_bytes`: total size of all copies. Raises UserError if two shards don't fit."""
        self.url, self.entries, self.folder, self.max_bytes = url, entries, folder, max_bytes
        self.window = window_of([entry.bytes for entry in entries], max_bytes)
        self.open_at_once = self.window  # when a window starts, the shards of the previous one are no longer needed
        self._pending: dict[int, Future[Path]] = {}
        self._threads: ThreadPoolExecutor | None = None

    def __reduce__(self) -> Any:
        return RemoteShards, (self.url, self.entries, self.folder, self.max_bytes)

    def path(self, number: int) -> Path:
        """Returns the path of a shard's local copy. Fetches the shard if there is no copy yet.

        Raises OSError with the URL if the server does not deliver the shard.
        """
        if (pending := self._pending.pop(number, None)) is not None:
            pending.exception()  # waits for the prefetch; ignores its error because _copy tries again
        return self._copy(number)

    def prefetch(self, number: int) -> None:
        """Starts to fetch a shard in the background."""
        if number not in self._pending and not self._target(number).exists():
            if self._threads is None:
                self._threads = ThreadPoolExecutor(2, thread_name_prefix="shards")
            self._pending[number] = self._threads.submit(self._copy, number)

    def discard(self, number: int) -> None:
        """Removes a shard's local copy, so that it is fetched again."""
        remove(index_path(self._target(number)))
        remove(self._target(number))

    def _target(self, number: int) -> Path:
        return self.folder / f"{self.entries[number].sha256}.tar"

    def _copy(self, number: int) -> Path:
        entry, target = self.entries[number], self._target(number)
        try:
            os.utime(target)  # marks it as recently used: _free_space deletes the oldest copies first
            if index_path(target).exists():
                return target
        except FileNotFoundError:
            pass
        # One process at a time: two would both count the same free space as theirs.
        with locked(self.folder / ".fetching", patience=float("inf")):
            if not (target.exists() and index_path(target).exists()):
                self._free_space(entry.bytes)
                scheme, _, address = self.url.partition("://")
                # Shard paths of a subset contain "../", which S3 does not resolve.
                shard = Path(posixpath.normpath(f"{address}/{entry.shard}"))
                fetch(f"{scheme}://{shard}", target, entry.sha256)
                fetch(f"{scheme}://{index_path(shard)}", index_path(target), entry.index_sha256)
        return target

    def _free_space(self, needed: int) -> None:
        copies = sorted(self.folder.glob("*.tar"), key=lambda path: path.stat().st_mtime)
        used = sum(path.stat().st_size for path in copies)
        for path in copies:
            if used + needed <= self.max_bytes:
                return
            used -= path.stat().st_size
            remove(path)
            remove(index_path(path))


def window_of(sizes: list[int], max_bytes: float) -> int | None:
    """Returns the number of shards in a window. None: all shards fit into `max_bytes`, no windows are needed.

    A window takes at most half of `max_bytes`, so that the next window can be fetched while this one is read.
    `sizes`: bytes of each shard. Raises UserError if two shards don't fit.
    """
    if sum(sizes) <= max_bytes:
        return None
    window = int(max_bytes // (2 * max(sizes)))
    if window < 1:
        raise UserError(
            f"cache.local_gb: is {max_bytes / 1e9:g}, but must hold at least two shards of {max(sizes) / 1e9:.2f} GB"
        )
    return window
