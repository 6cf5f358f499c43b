"""Caption sources: which files a folder, glob or URL stands for, and what tells one file from another."""

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
    """The caption files a source stands for, in a fixed order: itself, a folder's or a glob's.

    Raises UserError naming a source that stands for none.
    """
    system, path = open_system(source)
    if any(sign in path for sign in ("*[" if is_web(source) else "*?[")):
        found = sorted(each for each in ask(source, lambda: system.glob(path)) if kind_of(each))
    elif ask(source, lambda: system.isdir(path)):
        found = sorted(each for each in ask(source, lambda: system.find(path)) if kind_of(each))
    else:
        if not ask(source, lambda: system.exists(path)):
            raise MissingInput(f"caption source {source}: no such file{missing_input(source)}")
        if not kind_of(path):
            known = ", ".join(KINDS)
            raise UserError(f"caption source {source}: unknown kind {PurePosixPath(path).suffix!r}; known: {known}")
        return [source]
    if not found:
        kinds = ", ".join(KINDS)
        raise MissingInput(f"caption source {source}: holds no file of a known kind ({kinds}){missing_input(source)}")
    local = "file" in system.protocol
    return [each if local else system.unstrip_protocol(each) for each in found]


def identify(source: str) -> dict[str, Any]:
    """What tells one source file from another: its bytes' sha256, or what a server says of them."""
    system, path = open_system(source)
    name = file_name(path)
    if "file" in system.protocol:
        return {"name": name, "sha256": sha256(Path(path))}
    facts = ask(source, lambda: system.info(path))
    said = {key: str(facts[key]) for key in ("ETag", "etag", "LastModified", "mtime") if facts.get(key)}
    return {"name": name, "url": source, "size": facts.get("size"), **said}


def file_name(path: str) -> str:
    """The last part of a path; of a web address without its query."""
    return PurePosixPath(path.partition("?")[0] if is_web(path) else path).name


def kind_of(path: str) -> str | None:
    """The kind of a caption file by its name, compression aside."""
    name = PurePosixPath(file_name(path))
    name = name.with_suffix("") if name.suffix in COMPRESSED else name
    return name.suffix if name.suffix in KINDS else None
