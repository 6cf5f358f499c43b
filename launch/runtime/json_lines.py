"""JSON Lines files. A kill may cut off the last line. A resumed run removes the lines that it will write again."""

import json
from collections.abc import Iterator
from itertools import takewhile
from pathlib import Path
from typing import Any

from randcond.launch.runtime.files import write_text


def whole_lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields the lines of a JSON Lines file, as text and as data, up to a line that is cut off.

    Yields nothing if there is no file.
    """
    for line in path.read_text().splitlines() if path.is_file() else []:
        try:
            yield line, json.loads(line)
        except json.JSONDecodeError:
            return


def lines_up_to(path: Path, step: int) -> Path:
    """Removes the lines after `step`, and a last line that is cut off. Returns `path`."""
    before = takewhile(lambda line: line[1]["step"] <= step, whole_lines(path))
    write_text(path, "".join(f"{text}\n" for text, _ in before))
    return path
