"""Finds files on this machine: in folders and by globs, without symlink loops and without hidden files."""

import errno
import os
from collections.abc import Callable, Iterable, Iterator
from fnmatch import fnmatchcase

from randcond.launch.errors import UserError


def expand_local(source: str, wanted: Callable[[str], object]) -> list[str] | str | None:
    """Returns the path of a file, the wanted files of a folder or a glob in order, or None if there is no such path.

    A path that exists is no glob, whatever signs it has. `wanted`: returns whether a file of a folder counts.
    Raises UserError if a folder that is searched can't be read.
    """
    if os.path.isdir(source):
        return sorted(
            file for file in _entries(_folders_below([os.path.abspath(source)]), folders=False) if wanted(file)
        )
    if os.path.exists(source):
        return source
    if not any(sign in source for sign in "*?["):
        return None
    return sorted(file for file in _glob(os.path.abspath(source)) if wanted(file))


def _glob(pattern: str) -> Iterable[str]:
    """Returns the paths of no folders that match a pattern: *, ?, [...] within a name, ** for folders at any depth.

    Reads only folders that the pattern leads to. A name that exists has no signs. Hidden names match only a name in the
    pattern that begins with a dot.
    """
    found: list[str] = ["/"]
    *names, last = pattern.strip("/").split("/")
    for name in names:
        if name == "**":
            found = list(_folders_below(found))
        elif "**" in name:
            raise UserError(f"caption source {pattern}: '**' can only be an entire path component")
        else:
            found = list(_once(_matching(found, name, folders=True)))
    if last == "**":
        return _entries(_folders_below(found), folders=False)
    if "**" in last:
        raise UserError(f"caption source {pattern}: '**' can only be an entire path component")
    return _matching(found, last, folders=False)


def _matching(parents: Iterable[str], name: str, folders: bool) -> Iterator[str]:
    """Yields what has a name in some folders: folders or other things."""
    for parent in parents:
        path = os.path.join(parent, name)
        if (exists := _exists(path)) or not any(sign in name for sign in "*?["):
            if exists and os.path.isdir(path) == folders:
                yield path
        else:
            for path in _entries([parent], folders, hidden=name.startswith(".")):
                if fnmatchcase(os.path.basename(path), name):
                    yield path


def _exists(path: str) -> bool:
    """Returns True for a path that exists. Raises UserError if its folder can't be entered."""
    try:
        os.lstat(path)
    except PermissionError as error:
        folder = os.path.dirname(path)
        raise UserError(f"caption source {folder}: the folder can't be read ({error.strerror})") from None
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP):
            return False
        raise
    return True


def _folders_below(tops: Iterable[str]) -> Iterator[str]:
    """Yields folders and the folders below them, and those they link to, each once.

    A folder that several paths lead to has the path without links, if there is one.
    """
    seen: set[tuple[int, int]] = set()
    links = list(tops)  # read after all folders that are no links
    while links:
        folders = [links.pop(0)]
        while folders:
            for folder in _once([folders.pop()], seen):
                yield folder
                for path in _entries([folder], folders=True):
                    (links if os.path.islink(path) else folders).append(path)


def _once(folders: Iterable[str], seen: set[tuple[int, int]] | None = None) -> Iterator[str]:
    """Yields each folder once, with a path that is no link if there is one. `seen`: those that were yielded before."""
    seen = set() if seen is None else seen
    for folder in sorted(folders, key=os.path.islink):
        facts = os.stat(folder)
        if (facts.st_dev, facts.st_ino) not in seen:
            seen.add((facts.st_dev, facts.st_ino))
            yield folder


def _entries(parents: Iterable[str], folders: bool, hidden: bool = False) -> Iterator[str]:
    """Yields the paths in some folders, of folders or of other things."""
    for parent in parents:
        try:
            with os.scandir(parent) as entries:
                found = [entry for entry in entries if hidden or not entry.name.startswith(".")]
        except OSError as error:
            raise UserError(f"caption source {parent}: the folder can't be read ({error.strerror})") from None
        yield from sorted(entry.path for entry in found if _is_folder(entry) == folders)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    return os.path.isdir(entry.path) if entry.is_symlink() else entry.is_dir()
