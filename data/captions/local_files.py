"""Finds files on this machine: in folders and by globs, without symlink loops and without hidden files."""

import os
import re
from collections.abc import Callable, Iterator

from fsspec.utils import glob_translate

from randcond.launch.errors import UserError


def expand_local(source: str, wanted: Callable[[str], object]) -> list[str] | str | None:
    """Returns the path of a file, the wanted files of a folder or a glob in order, or None if there is no such path.

    A path that exists is no glob, whatever signs it has. `wanted`: returns whether a file of a folder counts.
    """
    if os.path.isdir(source):
        return sorted(file for file in files_below(os.path.abspath(source)) if wanted(file))
    if os.path.exists(source):
        return source
    if not any(sign in source for sign in "*?["):
        return None
    return sorted(file for file in _glob(os.path.abspath(source)) if wanted(file))


def files_below(folder: str, levels: int | None = None, hidden: bool = False) -> Iterator[str]:
    """Yields the paths below a folder that are no folders.

    Follows links to folders. A folder that several paths lead to is read once, by the path without links if there is
    one. `levels`: how deep to look; None: without a limit. `hidden`: take files and folders whose name starts with a
    dot.
    """
    seen: set[tuple[int, int]] = set()
    links: list[tuple[str, int]] = [(folder, 1)]  # read after all folders that are no links
    while links:
        folders = [links.pop(0)]
        while folders:
            path, level = folders.pop()
            facts = os.stat(path)
            if (facts.st_dev, facts.st_ino) in seen:
                continue
            seen.add((facts.st_dev, facts.st_ino))
            with os.scandir(path) as entries:
                for entry in sorted(entries, key=lambda entry: entry.name):
                    if entry.name.startswith(".") and not hidden:
                        continue
                    if not _is_folder(entry):
                        yield entry.path
                    elif levels is None or level < levels:
                        (links if entry.is_symlink() else folders).append((entry.path, level + 1))


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _glob(pattern: str) -> Iterator[str]:
    """Yields the paths that match a pattern: *, ?, [...] within a name, and ** for folders at any depth.

    The signs in the name of a folder that exists have no meaning.
    """
    root, rest = "/", pattern.strip("/").split("/")
    while rest and os.path.isdir(os.path.join(root, rest[0])):
        root = os.path.join(root, rest.pop(0))
    if not os.path.isdir(root) or not rest:
        return
    try:
        matches = re.compile(glob_translate("/".join(rest))).match
    except (ValueError, re.error) as error:
        raise UserError(f"caption source {pattern}: {error}") from None
    levels = None if "**" in rest else len(rest)
    hidden = any(name.startswith(".") for name in rest)
    for path in files_below(root, levels, hidden):
        if matches(path[len(root.rstrip("/")) + 1 :]):
            yield path
