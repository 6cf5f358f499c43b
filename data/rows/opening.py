"""Opens a file to read its rows, local or from a server, plain or compressed, and names it in every error."""

import errno
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory

from randcond.data.inputs.compressed import SUFFIXES, Decompressed, Readable
from randcond.data.inputs.fetch import fetch
from randcond.data.inputs.names import file_name
from randcond.launch.config.paths import is_url
from randcond.launch.errors import UserError

_PIECE = 1 << 16


def compression_of(path: str) -> str:
    """Returns the compression suffix of a file name in lower case (.gz, .bz2, .xz, .zst), or ""."""
    suffix = PurePosixPath(file_name(path)).suffix.lower()
    return suffix if suffix in SUFFIXES else ""


@contextmanager
def open_file(source: str, where: str) -> Iterator[Readable]:
    """Opens a file for reading its content once, decompressed. A file on a server is downloaded first.

    `where`: names the file in messages. Raises UserError if it is not a regular file (a pipe, a socket, a device), or
    if the server doesn't have it.
    """
    with local_file(source, where) as path, path.open("rb") as file:
        suffix = compression_of(source)
        yield Decompressed(file, suffix) if suffix else file


@contextmanager
def local_file(source: str, where: str, decompress: bool = False) -> Iterator[Path]:
    """Gives the path of a file on this machine. A file on a server is downloaded into a temporary folder.

    `decompress`: gives a decompressed copy of a compressed file. Raises UserError as `open_file` does.
    """
    with TemporaryDirectory(prefix="randcond-") as folder:
        # fetch() resumes after a lost connection.
        path = fetch(source, Path(folder) / file_name(source)) if is_url(source) else Path(source)
        check_regular(path, where)
        if decompress and (suffix := compression_of(source)):
            copy = Path(folder) / "content"
            with path.open("rb") as file, copy.open("wb") as out:
                content = Decompressed(file, suffix)
                while data := content.read(_PIECE):
                    out.write(data)
            path = copy
        yield path


def check_regular(path: Path, where: str) -> None:
    """Raises UserError if a path is no regular file, because reading from a pipe can wait for ever."""
    try:
        mode = os.stat(path).st_mode
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ELOOP, errno.ENOTDIR):
            raise
        raise UserError(f"{where}: no such file") from None
    if not stat.S_ISREG(mode):
        kind = "a folder" if stat.S_ISDIR(mode) else "a pipe, a socket or a device"
        raise UserError(f"{where}: is {kind}, expected a file; write its content to a file first")


@contextmanager
def naming_errors(where: str, rows_done: Callable[[], int]) -> Iterator[None]:
    """Raises UserError, with the file's name, for every error that comes from the content of a file.

    `where`: names the file. `rows_done`: returns the number of rows read so far. Raises OSError if the file's server,
    disk or file system fails.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # libraries raise many types for a damaged file
        if isinstance(error, ConnectionError | TimeoutError) and error.errno is None:
            raise  # raised by fetch(): the message contains the URL
        done = rows_done()
        place = f"{where}, after row {done}" if done else where
        # Decompressors raise OSError without an errno if the data is damaged.
        if isinstance(error, OSError) and error.errno not in (None, errno.ENOENT):
            raise OSError(error.errno, f"{place}: {error.strerror}") from None
        raise UserError(f"{place}: {error or type(error).__name__}") from None
