"""The identity that a run has in a tracker: RUN/SINK.json. A resumed run continues there."""

from pathlib import Path

from randcond.launch.runtime.files import read_record, write_json


def known_run(folder: Path, sink: str) -> str | None:
    """Returns the identity of a run in a tracker; None if it has none yet. folder: of the run."""
    path = folder / f"{sink}.json"
    return str(read_record(path, "id")["id"]) if path.is_file() else None


def remember_run(folder: Path, sink: str, identity: str) -> None:
    """Keeps the identity of a run in a tracker."""
    write_json(folder / f"{sink}.json", {"id": identity})
