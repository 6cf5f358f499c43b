"""The catalogue of inputs (inputs.yaml), and the error for an input that is not on this machine."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from pydantic import TypeAdapter

from randcond.launch.config.paths import PACKAGE
from randcond.launch.config.strict_yaml import read_yaml
from randcond.launch.errors import UserError

FOLDER = "inputs"


@dataclass(frozen=True)
class Input:
    """One entry of the catalogue."""

    what: str
    files: list[str] = field(default_factory=list)  # URLs; a URL that ends in "/" is a page that links to files
    size: str = ""
    licence: str = ""
    made: list[str] = field(default_factory=list)  # instead of files: the commands that create the input
    pattern: str = ""  # glob that selects the files on such a page
    unpack: bool = False
    sha256: dict[str, str] = field(default_factory=dict)  # file name -> checksum, or the start of it, if published


def known_inputs() -> dict[str, Input]:
    """Returns the catalogue: name -> entry."""
    return TypeAdapter(dict[str, Input]).validate_python(read_yaml(PACKAGE / "data/inputs/inputs.yaml"))


class MissingInput(UserError):
    """An input of an experiment is not on this machine yet. The experiment itself may be correct."""


@contextmanager
def collecting_missing(missing: list[str] | None) -> Iterator[None]:
    """Appends the message of a MissingInput error to `missing`. If `missing` is None, the error is raised."""
    try:
        yield
    except MissingInput as error:
        if missing is None:
            raise
        missing.append(str(error))


def missing_input(path: str) -> str:
    """Returns the end of an error message: the command that gets the input at `path`. Empty for any other path."""
    parts = PurePosixPath(path).parts
    for name, entry in known_inputs().items():
        if name in parts[1:] and parts[parts.index(name) - 1] == FOLDER:
            if entry.made:
                return f"; create it with `{' && '.join(entry.made)}`"
            return f"; download it with `randcond fetch {name}`"
    return ""
