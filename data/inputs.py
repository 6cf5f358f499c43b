"""What the full-scale experiments read: where it is published, and `randcond fetch`, which brings it.

In: inputs.yaml, a name. Out: FOLDER/NAME/, whole, with fetched.json: each file's address and checksum.
"""

import lzma
import shutil
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from pydantic import TypeAdapter
from tqdm import tqdm

from randcond.data.fetch import fetch as bring
from randcond.data.fetch import open_system
from randcond.data.files import read_json, sha256, write_json, written_whole
from randcond.data.lock import holding
from randcond.launch.config import PACKAGE, read_yaml

FOLDER = "inputs"
NOTE = "fetched.json"


@dataclass(frozen=True)
class Input:
    """One line of the table."""

    what: str
    files: list[str] = field(default_factory=list)  # addresses; one that ends in "/" is a page that lists files
    size: str = ""
    licence: str = ""
    made: list[str] = field(default_factory=list)  # instead of files: the commands that make it here
    pattern: str = ""  # of the files that are taken from such a page
    unpack: bool = False
    sha256: dict[str, str] = field(default_factory=dict)  # by file name, its beginning or all, where it is known


def known_inputs() -> dict[str, Input]:
    """The table, by name."""
    return TypeAdapter(dict[str, Input]).validate_python(read_yaml(PACKAGE / "data/inputs.yaml"))


class MissingInput(ValueError):
    """What an experiment reads is not there yet; nothing else is known to be wrong with the experiment."""


@contextmanager
def collecting(missing: list[str] | None) -> Iterator[None]:
    """Notes what is not there yet in `missing` and goes on; without a list it is an error like any other."""
    try:
        yield
    except MissingInput as error:
        if missing is None:
            raise
        missing.append(str(error))


def missing_input(path: str) -> str:
    """How to get a file that is not there, when it is one of an input; else nothing."""
    parts = PurePosixPath(path).parts
    for name, entry in known_inputs().items():
        if name in parts[1:] and parts[parts.index(name) - 1] == FOLDER:
            return (
                f"; it is made by `{' && '.join(entry.made)}`" if entry.made else f"; `randcond fetch {name}` brings it"
            )
    return ""


def fetch(name: str = "", *, from_: str = "", to: str = FOLDER, list: bool = False) -> None:
    """Brings what an experiment reads to inputs/NAME: resumed where it was cut, checked, unpacked.

    --list           the table: names, sizes, licences, addresses, and what is here already
    --from WHERE     a mirror (URL or folder that holds the files) or the file itself, instead of the address
    --to FOLDER      (default inputs)

    Checksums that nobody publishes are recorded at the first fetch, in NAME/fetched.json, and hold from then on.

    examples    randcond fetch --list
                randcond fetch coco-annotations
                randcond fetch laion-212k --from /mnt/mirror/preprocessed_212k.tar.gz
    """
    inputs = known_inputs()
    if list:
        for each, entry in inputs.items():
            note = Path(to) / each / NOTE
            here = ("here" if read_json(note)["complete"] else "in part") if note.is_file() else ""
            lines = [entry.what, *filter(None, [entry.licence]), *entry.made, *entry.files[:1]]
            print(f"{each:<22}{entry.size or 'made here':<16}{here:<8}" + f"\n{'':<46}".join(lines))
        return
    if name not in inputs:
        raise ValueError(f"unknown input {name!r}; known: {', '.join(inputs)}")
    if inputs[name].made:
        raise ValueError(f"{name} is published nowhere; it is made by `{' && '.join(inputs[name].made)}`")
    folder = Path(to) / name
    with holding(folder):
        _fetch(inputs[name], folder, from_)
    print(f"{name}: {folder}")


def _fetch(entry: Input, folder: Path, source: str) -> None:
    note: dict[str, Any] = {"licence": entry.licence, "complete": False, "files": {}}
    if (folder / NOTE).is_file():
        note = read_json(folder / NOTE)
    if note["complete"] and all((folder / kept["as"]).exists() for kept in note["files"].values()):
        return
    for name, address in _addresses(entry, source).items():
        wanted = note["files"].get(name, {}).get("sha256") or entry.sha256.get(name)
        target = folder / name
        lasting = _unpacked(target) if entry.unpack else target
        if name in note["files"] and lasting.exists():
            continue
        if not target.exists():  # a kill may have come between bringing and unpacking it
            part = target.with_name(f"{name}.part")
            start = part.stat().st_size if part.exists() else 0
            with tqdm(total=_size(address), initial=start, desc=name, unit="B", unit_scale=True) as bar:
                bring(address, target, wanted, bar.update)
        found = sha256(target)
        if wanted and not found.startswith(wanted):
            raise ValueError(f"{target}: does not have the checksum {wanted[:16]}...; remove it and fetch it again")
        size = target.stat().st_size
        if entry.unpack:
            _unpack(target)
            target.unlink()
        facts = {"from": address, "bytes": size, "sha256": found, "as": lasting.name}
        note["files"][name] = facts
        write_json(folder / NOTE, note)
    write_json(folder / NOTE, {**note, "complete": True})


def _addresses(entry: Input, source: str) -> dict[str, str]:
    """Each file's name -> where it is; raises ValueError naming what gives none."""
    if entry.pattern:
        system, path = open_system(source or entry.files[0])
        found = sorted(system.glob(f"{path.rstrip('/')}/{entry.pattern}"))
        if not found:
            raise ValueError(f"{source or entry.files[0]}: lists no {entry.pattern}")
        local = "file" in system.protocol
        return {PurePosixPath(each).name: str(each) if local else system.unstrip_protocol(each) for each in found}
    names = {PurePosixPath(address).name: address for address in entry.files}
    if not source:
        return names
    within = {name: f"{source.rstrip('/')}/{name}" for name in names}
    system, path = open_system(next(iter(within.values())))
    if system.exists(path):
        return within
    if len(names) > 1:
        raise ValueError(f"--from: {len(names)} files are needed, and {source} is no folder that holds {path}")
    return dict.fromkeys(names, source)  # the file itself, whatever it is called there


def _size(address: str) -> int | None:
    system, path = open_system(address)
    try:
        return system.info(path)["size"]
    except OSError:
        return None  # bringing it says what is wrong


def _unpacked(archive: Path) -> Path:
    return archive.with_name(archive.name.removesuffix(".gz").removesuffix(".tar").removesuffix(".zip"))


def _extract(packed: tarfile.TarFile, folder: Path) -> None:
    """Files and folders; raises TarError for a link or a name that leads outside (3.11's tarfile has no filter)."""
    for member in packed:
        place = folder / member.name
        if not place.resolve().is_relative_to(folder.resolve()):
            raise tarfile.TarError(f"{member.name} would lie outside")
        if member.isdir():
            place.mkdir(parents=True, exist_ok=True)
            continue
        content = packed.extractfile(member) if member.isreg() else None
        if content is None:
            raise tarfile.TarError(f"{member.name} is no file")
        place.parent.mkdir(parents=True, exist_ok=True)
        with content, place.open("wb") as out:
            shutil.copyfileobj(content, out, 1 << 20)


def _unpack(archive: Path) -> None:
    """Unpacks an archive beside it, whole; raises ValueError naming one that is damaged or leaves its folder."""
    with written_whole(_unpacked(archive)) as aside:
        aside.mkdir()
        try:
            if archive.suffix == ".zip":
                with zipfile.ZipFile(archive) as packed:
                    packed.extractall(aside)  # takes no absolute or upward paths
            else:
                with tarfile.open(archive) as packed_tar:
                    _extract(packed_tar, aside)
                    while packed_tar.fileobj and packed_tar.fileobj.read(1 << 20):
                        pass  # to the end, where gzip keeps its checksum
        except (zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, EOFError, OSError) as error:
            if isinstance(error, OSError) and error.errno is not None:  # the disk's, not the archive's
                raise
            raise ValueError(f"{archive}: {error}; remove it and fetch it again") from None
        inner = list(aside.iterdir())
        if [each.name for each in inner] == [_unpacked(archive).name] and inner[
            0
        ].is_dir():  # its name would stand twice
            lifted = inner[0].rename(aside.with_name(f"{aside.name}.inner"))
            aside.rmdir()
            lifted.rename(aside)
