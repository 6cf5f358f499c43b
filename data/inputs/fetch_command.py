"""`randcond fetch`: downloads an input of the full-scale experiments.

Reads inputs.yaml. Writes FOLDER/NAME/ with the files and fetched.json, which records each file's URL and checksum.
"""

from collections.abc import Iterable
from fnmatch import fnmatchcase
from html.parser import HTMLParser
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urljoin, urlsplit, urlunsplit

from randcond.data.inputs.archives import unpack, unpacked_path
from randcond.data.inputs.catalogue import FOLDER, Input, known_inputs
from randcond.data.inputs.compressed import read_up_to
from randcond.data.inputs.fetch import ask, is_web, open_system, version_of
from randcond.data.inputs.fetch import fetch as fetch_file
from randcond.data.inputs.names import file_name
from randcond.data.inputs.web import PAGE_NAMES
from randcond.launch.errors import UserError
from randcond.launch.runtime.files import read_record, sha256, write_json
from randcond.launch.runtime.locks import locked
from randcond.launch.runtime.logs import log
from randcond.launch.runtime.progress import Progress
from randcond.launch.urls import show_url, without_secrets

RECORD = "fetched.json"
LONGEST_PAGE = 16 << 20  # bytes that are read of a page that links to files


def fetch(name: str = "", *, from_: str = "", to: str = FOLDER, list: bool = False) -> None:
    """Downloads an input of an experiment to inputs/NAME, compares checksums and unpacks. Continues if interrupted.

    --list           print the catalogue: names, sizes, licences, URLs, and which inputs are already downloaded
    --from WHERE     a mirror (URL or folder with the files), or the file itself, instead of the published URL;
                     the query of a signed address of a folder goes to each file
    --to FOLDER      (default inputs)

    Where no checksum is published, NAME/fetched.json records the checksum of the first download. Later downloads must
    match it.

    examples    randcond fetch --list
                randcond fetch coco-annotations
                randcond fetch laion-212k --from /mnt/mirror/preprocessed_212k.tar.gz
    """
    inputs = known_inputs()
    if list:
        for each, entry in inputs.items():
            _print_entry(each, entry, Path(to) / each)
        return
    if name not in inputs:
        raise UserError(f"unknown input {name!r}; known: {', '.join(inputs)}")
    if inputs[name].made:
        raise UserError(f"{name} is not published; create it with `{' && '.join(inputs[name].made)}`")
    folder = Path(to) / name
    with locked(folder):
        _fetch_input(inputs[name], folder, from_)
    print(f"{name}: {folder}")


def _print_entry(name: str, entry: Input, folder: Path) -> None:
    record = folder / RECORD
    state = ("here" if read_record(record, "complete")["complete"] else "partly") if record.is_file() else ""
    lines = [entry.what, *filter(None, [entry.licence]), *entry.made, *entry.files[:1]]
    print(f"{name:<22}{entry.size or 'created here':<16}{state:<8}" + f"\n{'':<46}".join(lines))


def _fetch_input(entry: Input, folder: Path, source: str) -> None:
    record: dict[str, Any] = {"licence": entry.licence, "complete": False, "files": {}}
    if (folder / RECORD).is_file():
        record = _read_record(folder / RECORD)
    if record["complete"] and all((folder / facts["as"]).exists() for facts in record["files"].values()):
        return
    for name, url in _urls(entry, source).items():
        expected = record["files"].get(name, {}).get("sha256") or entry.sha256.get(name)
        target = folder / name
        final = unpacked_path(target) if entry.unpack else target
        if name in record["files"] and final.exists():
            continue
        if not target.exists():  # it exists if the process was killed between the download and unpacking
            part = target.with_name(f"{target.name}.part")
            start = part.stat().st_size if part.exists() else 0
            with Progress(total=_size(url), initial=start, desc=name, unit="B", unit_scale=True) as progress:
                fetch_file(url, target, expected, progress.update)
        found = sha256(target)
        if expected and not found.startswith(expected):
            raise UserError(
                f"{target}: its checksum is {found[:16]}, expected {expected[:16]}; remove it and fetch it again"
            )
        size = target.stat().st_size
        if entry.unpack:
            unpack(target)
            target.unlink()
        record["files"][name] = {"from": show_url(url), "bytes": size, "sha256": found, "as": final.name}
        write_json(folder / RECORD, record)
    write_json(folder / RECORD, {**record, "complete": True})


def _read_record(path: Path) -> dict[str, Any]:
    """Returns a record. One of an older version that holds a password or a query is written again without it."""
    stored = read_record(path, "complete", "files")
    record: dict[str, Any] = without_secrets(stored)
    if record != stored:
        write_json(path, record)
        log.info(f"{path}: held a password or a query of a URL; written again without it")
    return record


def _urls(entry: Input, source: str) -> dict[str, str]:
    """Returns file name -> URL.

    Raises UserError if `source` lists no matching file, if two files have one name, or if it is not a folder although
    the input has several files.
    """
    if entry.pattern:
        found = _by_name(_listed(source or entry.files[0], entry.pattern))
        if not found:
            raise UserError(f"{source or entry.files[0]}: lists no file {entry.pattern}")
        return found
    names = _by_name(entry.files)
    if not source or names.keys() == {file_name(source)}:
        return {name: source or url for name, url in names.items()}
    in_folder = {name: _inside(source, name) for name in names}
    first = next(iter(in_folder.values()))
    if not (reason := _missing(first)):
        return in_folder
    if len(names) > 1:
        raise UserError(
            f"--from: expected a folder with {len(names)} files, but {source} does not contain {show_url(first)}"
            f"{reason}"
        )
    return dict.fromkeys(names, source)  # the file itself; its name may differ


def _by_name(urls: Iterable[str]) -> dict[str, str]:
    """Returns file name -> URL. Raises UserError if two of the URLs have the same file name."""
    found: dict[str, str] = {}
    for url in urls:
        name = file_name(url)
        if found.setdefault(name, url) != url:
            raise UserError(
                f"{show_url(url)}: two addresses that differ in their folder or query have the name {name}; give a "
                f"folder or a page with one of them"
            )
    return found


def _inside(folder: str, name: str) -> str:
    """Returns the URL or path of a file in a folder. A query is that of the folder, as of signed addresses.

    >>> _inside("https://host/folder/?sig=1", "a.csv"), _inside("s3://bucket/folder", "a.csv")
    ('https://host/folder/a.csv?sig=1', 's3://bucket/folder/a.csv')
    """
    path, mark, query = folder.partition("?") if is_web(folder) else (folder, "", "")
    return f"{path.rstrip('/')}/{name}{mark}{query}"


def _missing(url: str) -> str:
    """Returns why a file can't be read, as the end of a sentence; "" if it can."""
    system, path = open_system(url)
    if not is_web(url):
        return "" if ask(url, lambda: system.exists(path)) else "; give the folder that contains it"
    try:
        version_of(url)
    except UserError as error:
        return f" ({error})"
    return ""


def _listed(source: str, pattern: str) -> list[str]:
    """Returns the files of a folder, or those that a page links to, whose names match a glob."""
    system, path = open_system(source)
    if not is_web(source):
        found = sorted(system.glob(f"{path.rstrip('/')}/{pattern}"))
        return found if "file" in system.protocol else [_inside(source, PurePosixPath(each).name) for each in found]
    page = _Links(_inside(path, "") if PurePosixPath(file_name(path)).suffix.lower() not in PAGE_NAMES else path)
    asked = path if "?" in path else page.base
    page.feed(ask(source, lambda: _read_page(system, asked)))
    return sorted(url for url in page.links if fnmatchcase(file_name(url), pattern))


def _read_page(system: Any, url: str) -> str:
    with system.open(url, block_size=0, size=1) as file:  # block_size=0: as it comes, without asking for its size first
        page, error = read_up_to(file, LONGEST_PAGE)  # it comes in pieces
    if error:
        raise error
    return page.decode("utf-8", "replace")


class _Links(HTMLParser):
    """The addresses that a page links to. Those on its host without a query get the query of the page."""

    def __init__(self, base: str) -> None:
        super().__init__()
        self.base = base
        self.links: set[str] = set()

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        link = dict(attrs).get("href") if tag == "a" else None
        if not link:
            return
        base = urlsplit(self.base)
        try:
            url = urlsplit(urljoin(self.base, link))
        except ValueError:  # no address
            return
        if not url.query and url.netloc == base.netloc:
            url = url._replace(query=base.query)
        if url.scheme in ("http", "https"):
            self.links.add(urlunsplit(url._replace(fragment="")))


def _size(url: str) -> int | None:
    try:
        return version_of(url).size
    except (OSError, UserError):
        return None  # fetch() reports the error
