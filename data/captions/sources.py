"""Caption sources: finds the files of a folder, glob or URL, and identifies each file by its content."""

import os
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import Any

from randcond.data.captions.local_files import expand_local
from randcond.data.inputs.catalogue import MissingInput, missing_input
from randcond.data.inputs.fetch import ask, fetch, is_web, open_system, told_of_version, version_of
from randcond.data.inputs.names import file_name
from randcond.data.rows.opening import check_regular
from randcond.data.rows.tables import KINDS, kind_of
from randcond.launch.config.paths import is_url
from randcond.launch.errors import UserError
from randcond.launch.runtime.files import sha256
from randcond.launch.urls import show_url


def expand(source: str) -> list[str]:
    """Returns the caption files of a source in a fixed order. The source is a file, a folder or a glob, local or a URL.

    Hidden files and folders of a local folder are left out. Raises UserError if the source does not exist, contains no
    caption file, or is not a regular file (a pipe, a device).
    """
    found = _expand_url(source) if is_url(source) else expand_local(os.path.expanduser(source), kind_of)
    if found is None:
        raise MissingInput(f"caption source {source}: no such file{missing_input(source)}")
    if isinstance(found, str):
        if not kind_of(found):
            known = ", ".join(KINDS)
            raise UserError(
                f"caption source {source}: unknown file type {PurePosixPath(found).suffix!r}; known: {known}"
            )
        found = [found]
    if not found:
        kinds = ", ".join(KINDS)
        raise MissingInput(f"caption source {source}: contains no caption file ({kinds}){missing_input(source)}")
    if not is_url(source):
        for file in found:
            check_regular(Path(file), f"caption source {file}")
    return found


def _expand_url(source: str) -> list[str] | str | None:
    """Returns the URL of a file, the URLs in a folder or of a glob in order, or None if it does not exist."""
    system, path = open_system(source)
    system.invalidate_cache()  # what the server says now, not earlier in this process
    if is_web(source) and kind_of(path) and not any(sign in file_name(path) for sign in "*["):
        version_of(source)  # raises an error if the server has no such file, or a page in its place
        return [source]
    if any(sign in path for sign in ("*[" if is_web(source) else "*?[")):
        files = sorted(file for file in ask(source, lambda: system.glob(path)) if kind_of(file))
    elif ask(source, lambda: system.isdir(path)):
        files = sorted(file for file in ask(source, lambda: system.find(path)) if kind_of(file))
    else:
        return source if ask(source, lambda: system.exists(path)) else None
    if "file" in system.protocol:
        return files
    first, chained, rest = source.partition("::")
    before, end = first.rstrip("/"), path.rstrip("/")
    if before.endswith(end):  # what stands before the path, such as github://owner:repository@branch/
        before = before.removesuffix(end) if end else f"{before}/"
        return [f"{before}{file}{chained}{rest}" for file in files]
    return [system.unstrip_protocol(file) for file in files]


def identify(source: str) -> dict[str, Any]:
    """Returns what identifies a caption file: its name and sha256, or for a URL what its server says of the version.

    The URL is stored without user, password and query. Addresses that differ only in their query are told apart by the
    ETag or the time of change. If the server gives neither (nor, on hf and github, git's hash), the file is downloaded,
    and its sha256 identifies it.
    """
    if not is_url(source):
        return {"name": PurePosixPath(source).name, "sha256": sha256(Path(source))}
    system, path = open_system(source)
    name = file_name(path)
    if "file" in system.protocol:
        return {"name": name, "sha256": sha256(Path(path))}
    if is_web(source):
        version = version_of(source)
        size, told = version.size, {"ETag": version.etag, "Last-Modified": version.modified}
    else:
        facts = ask(source, lambda: system.info(path))
        size, told = facts.get("size"), told_of_version(facts)
    told = {key: value for key, value in told.items() if value}
    shown = show_url(source)
    if not told and ("?" in source or not is_web(source)):
        with TemporaryDirectory(prefix="randcond-") as folder:
            told = {"sha256": sha256(fetch(source, Path(folder) / name))}
    return {"name": name, "url": shown, "size": size, **told}
