"""What a pool lacks of its sources: damaged files, and bad rows."""

from typing import Any

from randcond.data.rows.bad_rows import summary
from randcond.launch.runtime.logs import log
from randcond.launch.urls import show_url


class Losses:
    """Collects what a pool lacks of its sources, for its manifest and the log."""

    def __init__(self, manifest: dict[str, Any] | None = None) -> None:
        """`manifest`: of the pool that the new one is taken from."""
        self.damaged: dict[str, str] = dict(manifest["damaged"]) if manifest else {}
        self.skipped: dict[str, list[str]] = dict(manifest.get("skipped", {})) if manifest else {}

    def add(self, file: str, note: dict[str, Any]) -> None:
        """Adds and logs what a part's note says."""
        if note["damaged"]:
            _enter(self.damaged, file, note["damaged"])
            log.warning(f"pool: damaged source, only its readable part is used: {note['damaged']}")
        if note.get("skipped"):  # a part that an older version wrote has none
            _enter(self.skipped, file, note["skipped"])
            log.warning(f"pool: {summary(f'caption source {file}', note['skipped'], note['bad_rows'])}")

    def entries(self) -> dict[str, Any]:
        """Returns the entries of a manifest."""
        return {"damaged": self.damaged} | ({"skipped": self.skipped} if self.skipped else {})


def _enter(entries: dict[str, Any], file: str, loss: Any) -> None:
    """Enters a file's loss. Files whose URLs differ only in their query get different keys."""
    name, number = show_url(file), 1
    while entries.get(key := f"{name} ({number})" if number > 1 else name, loss) != loss:
        number += 1
    entries[key] = loss
