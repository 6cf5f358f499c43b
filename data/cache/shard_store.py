"""Where a cache's shards are: a folder, or a server whose shards are copied whole into a folder of bounded size."""

import os
import posixpath
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from randcond.data.cache.shards import index_path
from randcond.data.inputs.fetch import fetch
from randcond.launch.errors import UserError
from randcond.launch.runtime.files import remove
from randcond.launch.runtime.locks import locked


class LocalShards:
    """Shards of a folder."""

    open_at_once: int | None = None  # all of them
    window: int | None = None  # shards whose latents are mixed: all of them

    def __init__(self, folder: Path, entries: list[dict[str, Any]]) -> None:
        self.folder, self.entries = folder, entries

    def path(self, number: int) -> Path:
        """Where a shard is."""
        return self.folder / self.entries[number]["shard"]

    def expect(self, number: int) -> None:
        """Says that a shard will be wanted; here it is there already."""


class RemoteShards:
    """Shards of a server, copied when they are wanted; a host's processes share the copies.

    Copies bear their shard's checksum as a name, so that two caches never meet; the least recently opened ones go when
    there is no room. What a process has open stays readable for it.
    """

    def __init__(self, url: str, entries: list[dict[str, Any]], folder: Path, room: float) -> None:
        """`room`: bytes of all copies. Raises UserError when not even two shards have room."""
        self.url, self.entries, self.folder, self.room = url, entries, folder, room
        self.window = window_of([entry["bytes"] for entry in entries], room)
        self.open_at_once = self.window  # who has begun with a window is done with the one before
        self._pending: dict[int, Future[Path]] = {}
        self._pool: ThreadPoolExecutor | None = None

    def __reduce__(self) -> Any:
        return RemoteShards, (self.url, self.entries, self.folder, self.room)

    def path(self, number: int) -> Path:
        """The copy of a shard, fetched if it is not there; raises OSError naming what the server doesn't give."""
        if (pending := self._pending.pop(number, None)) is not None:
            pending.exception()  # waits; what went wrong then may go well now
        return self._copy(number)

    def expect(self, number: int) -> None:
        """Fetches a shard meanwhile."""
        if number not in self._pending and not self._target(number).exists():
            if self._pool is None:
                self._pool = ThreadPoolExecutor(2, thread_name_prefix="shards")
            self._pending[number] = self._pool.submit(self._copy, number)

    def _target(self, number: int) -> Path:
        return self.folder / f"{self.entries[number]['sha256']}.tar"

    def _copy(self, number: int) -> Path:
        entry, target = self.entries[number], self._target(number)
        try:
            os.utime(target)  # read last: it goes last
            if index_path(target).exists():
                return target
        except FileNotFoundError:
            pass
        with locked(self.folder / ".fetching", patience=float("inf")):  # one at a time, or two would take one's room
            if not (target.exists() and index_path(target).exists()):
                self._make_room(entry["bytes"])
                scheme, _, there = self.url.partition("://")
                shard = Path(posixpath.normpath(f"{there}/{entry['shard']}"))  # of a subset: ../, which S3 doesn't know
                fetch(f"{scheme}://{shard}", target, entry["sha256"])
                fetch(f"{scheme}://{index_path(shard)}", index_path(target), entry["index_sha256"])
        return target

    def _make_room(self, wanted: int) -> None:
        copies = sorted(self.folder.glob("*.tar"), key=lambda path: path.stat().st_mtime)
        held = sum(path.stat().st_size for path in copies)
        for path in copies:
            if held + wanted <= self.room:
                return
            held -= path.stat().st_size
            remove(path)
            remove(index_path(path))


def window_of(sizes: list[int], room: float) -> int | None:
    """How many shards are read from at once so that as many can come meanwhile; None when all have room.

    Raises UserError when not even two have.
    """
    if sum(sizes) <= room:
        return None
    window = int(room // (2 * max(sizes)))
    if window < 1:
        raise UserError(f"cache.local_gb: {room / 1e9:g} GB have no room for two shards of {max(sizes) / 1e9:.2f} GB")
    return window
