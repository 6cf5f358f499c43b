"""Compares stored caption sources with those of an experiment, and takes secrets out of what older versions stored.

Older versions stored a URL with its user, password and query, and named a source with its query.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from randcond.data.inputs.names import file_name
from randcond.launch.config.paths import is_url
from randcond.launch.runtime.files import RESTORE, read_record, write_json
from randcond.launch.runtime.logs import log
from randcond.launch.urls import without_secrets

_NAME_LISTS = ("sources", "also")


def source_name(source: str) -> str:
    """Returns the name of a caption source, as identities store it: the last part of its path, without a query.

    >>> source_name("https://me:secret@host/captions.csv?sig=1"), source_name("texts/captions.csv")
    ('captions.csv', 'captions.csv')
    """
    return file_name(source)


def stored_without_secrets(data: Any, sources: Sequence[str] = ()) -> Any:
    """Returns a stored manifest or plan without secrets. `sources`: the experiment's, whose names may have a query."""
    from_urls = {source_name(source) for source in sources if is_url(source)}
    return _without_queries(without_secrets(data), from_urls)


def _without_queries(data: Any, from_urls: set[str]) -> Any:
    """Returns plain data in which lists of names (`sources: [captions.csv?sig=1]`) have no queries."""
    if not isinstance(data, dict):
        return data
    found = {key: _without_queries(value, from_urls) for key, value in data.items()}
    for key in _NAME_LISTS:
        if isinstance(names := found.get(key), list):
            found[key] = [_without_query(name, from_urls) if isinstance(name, str) else name for name in names]
    return found


def _without_query(name: str, from_urls: set[str]) -> str:
    before, _, query = name.partition("?")
    return before if "=" in query or before in from_urls else name


def read_stored(path: Path, *keys: str, sources: Sequence[str] = (), remedy: str = RESTORE) -> dict[str, Any]:
    """Reads a stored JSON file without secrets. If it holds some, also writes it again without them, and logs it.

    `keys`, `remedy`: see `read_record`. `sources`: see `stored_without_secrets`. Where the
    file can't be written, it stays as it is. With several ranks, only the first one writes.
    """
    stored = read_record(path, *keys, remedy=remedy)
    clean: dict[str, Any] = stored_without_secrets(stored, sources)
    if clean != stored:
        write_again(path, clean)
    return clean


def write_again(path: Path, clean: Any) -> None:
    """Writes a stored file again, without the secrets that an older version left in it. Logs it.

    Does nothing if its folder can't be written.
    """
    if os.environ.get("RANK", "0") == "0" and os.access(path.parent, os.W_OK):
        write_json(path, clean)
        log.info(f"{path}: held a password or a query of a URL; written again without it")


def as_expected(stored: Any, expected: list[dict[str, Any]]) -> Any:
    """Returns the stored sources of a pool, with each one that matches its expected source replaced by that one.

    A source matches if all that is stored of it is as expected: an older version stored less of a server's answer.
    """
    if not isinstance(stored, list) or len(stored) != len(expected):
        return stored
    return [new if _matches(old, new) else old for old, new in zip(stored, expected, strict=True)]


def _matches(old: Any, new: dict[str, Any]) -> bool:
    return isinstance(old, dict) and "url" in old and all(new.get(key) == value for key, value in old.items())


def changed_files(stored: Any, expected: list[dict[str, Any]]) -> list[str]:
    """Returns the names of local files that a pool's stored sources have with another content.

    `expected`: sources of `identify`, some of the pool's. Several sources may have the same name.
    """
    known: dict[str, set[str]] = {}
    for source in stored if isinstance(stored, list) else []:
        if isinstance(source, dict) and "sha256" in source:
            known.setdefault(str(source.get("name")), set()).add(str(source["sha256"]))
    return [
        source["name"]
        for source in expected
        if "sha256" in source and source["sha256"] not in known.get(source["name"], {source["sha256"]})
    ]
