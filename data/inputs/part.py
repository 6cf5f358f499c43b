"""A half-fetched file, TARGET.part, and what its server said about it, TARGET.part.json.

A download goes on from the file only if the server says that it still has the same version.
"""

from dataclasses import asdict, dataclass
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from randcond.launch.errors import UserError
from randcond.launch.runtime.files import read_json, remove, sync, write_json
from randcond.launch.urls import show_url


class FileChanged(ConnectionError):
    """The server has another version of the file than the one that was half fetched. The download starts anew."""


@dataclass(frozen=True)
class Version:
    """What a server says about the version of a file that it has."""

    size: int | None = None  # bytes
    etag: str = ""  # as the server writes it; W/"..." is a weak one, which says nothing about bytes
    modified: str = ""  # the time of the last change, as the server writes it

    @property
    def strong_etag(self) -> str:
        """The ETag if equal ones mean equal bytes, else ""."""
        return "" if self.etag.startswith("W/") else self.etag

    @property
    def condition(self) -> str:
        """What an If-Range header says: the strong ETag, else the time of the last change.

        "" if neither can tell the file from another version: a time alone, without the size, does not.
        """
        return self.strong_etag or (self.modified if self.size is not None else "")

    def is_same(self, other: "Version") -> bool:
        """Returns True if both are surely the same version: an equal strong ETag, or equal size and time of change."""
        sizes = {self.size, other.size} - {None}
        if len(sizes) > 1 or (self.etag and other.etag and self.etag != other.etag):
            return False
        if self.strong_etag and other.strong_etag:
            return True
        return bool(self.modified) and self.modified == other.modified and self.size == other.size is not None


class Part:
    """The part of a file that has arrived. `version`: the version it belongs to; None: it can't be gone on from."""

    def __init__(self, target: Path, url: str) -> None:
        """Reads the note beside TARGET.part. Without one, as of older versions of randcond, the part is removed."""
        self.target, self.shown = target, show_url(url)
        self.path = target.with_name(f"{target.name}.part")
        self._note = target.with_name(f"{target.name}.part.json")
        self.ranges = True  # False if the server's answers to range requests are wrong
        self.version = self._stored()
        if self.version is None or not self.version.condition:
            self.drop()

    def _stored(self) -> Version | None:
        if not (self.path.is_file() and self._note.is_file()):
            return None
        try:
            note = read_json(self._note)
            version = TypeAdapter(Version).validate_python(note["version"])
        except (UserError, ValidationError, KeyError, TypeError):
            return None
        return version if note.get("url") == self.shown else None

    @property
    def size(self) -> int:
        """The number of bytes that have arrived."""
        return self.path.stat().st_size if self.path.is_file() else 0

    @property
    def complete(self) -> bool:
        """True if all bytes have arrived, or if the server does not say how many there are."""
        return self.version is not None and self.version.size in (None, self.size)

    def begin(self, version: Version) -> None:
        """Starts anew with a version of the file."""
        self.drop()
        self.version = version
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_json(self._note, {"url": self.shown, "version": asdict(version)})
        self.path.touch()

    def cut(self, size: int) -> None:
        """Forgets the bytes after the first `size` ones."""
        with self.path.open("r+b") as file:
            file.truncate(size)

    def drop(self) -> None:
        """Removes the part and its note."""
        remove(self.path)
        remove(self._note)
        self.version = None

    def finish(self) -> Path:
        """Makes the part the target, and returns it."""
        sync(self.path)
        self.path.rename(self.target)
        remove(self._note)
        return self.target
