"""Caption sources: finds the files of a folder, glob or URL, and identifies each file by its content."""

from pathlib import Path, PurePosixPath
from typing import Any

from randcond.data.inputs.catalogue import MissingInput, missing_input
from randcond.data.inputs.fetch import ask, is_web, open_system
from randcond.launch.errors import UserError
from randcond.launch.runtime.files import sha256

COLUMNS = ("caption", "TEXT", "text")
KINDS = (".txt", ".csv", ".jsonl", ".parquet")
COMPRESSED = (".gz", ".bz2", ".xz", ".zst")


def expand(source: str) -> list[str]:
    """Returns the caption files of a source in a fixed order. The source is a file, a folder or a glob, local or a URL.

    Raises UserError if the source does not exist or contains no caption file.
    """
    system, path = open_system(source)
    if any(sign in path for sign in ("*[" if is_web(source) else "*?[")):
        files = sorted(file for file in ask(source, lambda: system.glob(path)) if kind_of(file))
    elif ask(source, lambda: system.isdir(path)):
        files = sorted(file for file in ask(source, lambda: system.find(path)) if kind_of(file))
    else:
        if not ask(source, lambda: system.exists(path)):
            raise MissingInput(f"caption source {source}: no such file{missing_input(source)}")
        if not kind_of(path):
            known = ", ".join(KINDS)
            raise UserError(
                f"caption source {source}: unknown file type {PurePosixPath(path).suffix!r}; known: {known}"
            )
        return [source]
    if not files:
        kinds = ", ".join(KINDS)
        raise MissingInput(f"caption source {source}: contains no caption file ({kinds}){missing_input(source)}")
    local = "file" in system.protocol
    return [file if local else system.unstrip_protocol(file) for file in files]


def identify(source: str) -> dict[str, Any]:
    """Returns what identifies a caption file: its name and sha256, or for a URL the server's metadata (ETag, ...)."""
    system, path = open_system(source)
    name = file_name(path)
    if "file" in system.protocol:
        return {"name": name, "sha256": sha256(Path(path))}
    facts = ask(source, lambda: system.info(path))
    version = {key: str(facts[key]) for key in ("ETag", "etag", "LastModified", "mtime") if facts.get(key)}
    return {"name": name, "url": source, "size": facts.get("size"), **version}


def file_name(path: str) -> str:
    """Returns the file name of a path, or of a web address without its query."""
    return PurePosixPath(path.partition("?")[0] if is_web(path) else path).name


def kind_of(path: str) -> str | None:
    """Returns the file type by the name, without the compression suffix. None: not a caption file."""
    name = PurePosixPath(file_name(path))
    name = name.with_suffix("") if name.suffix in COMPRESSED else name
    return name.suffix if name.suffix in KINDS else None
