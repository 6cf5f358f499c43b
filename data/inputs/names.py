"""Names of files: of a path or URL, and as one line of text for messages."""

from pathlib import Path, PurePosixPath

from randcond.launch.config.paths import is_url
from randcond.launch.urls import TAKEN_OFF, show_url


def file_name(path: str) -> str:
    """Returns the file name of a path, or of a URL without its query.

    >>> file_name("https://me:secret@host/captions.csv?sig=1"), file_name("texts/captions.csv")
    ('captions.csv', 'captions.csv')
    """
    return PurePosixPath(show_url(path).removesuffix(TAKEN_OFF) if is_url(path) else path).name


def shown(name: Path | str) -> str:
    """Returns a name as one line of text: bytes that are not UTF-8, and control characters, are escaped.

    >>> shown("a\\nb\\udcff.png")
    'a\\\\nb\\\\udcff.png'
    """
    text = str(name).encode("utf-8", "backslashreplace").decode()
    return "".join(character if character.isprintable() else repr(character)[1:-1] for character in text)
