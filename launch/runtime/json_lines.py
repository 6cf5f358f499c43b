"""JSON Lines files. A kill may cut off the last line. A resumed run removes the lines that it will write again."""

import json
from collections.abc import Iterator
from itertools import takewhile
from pathlib import Path
from typing import Any

from randcond.launch.errors import UserError
from randcond.launch.runtime.files import write_text


def whole_lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields the lines of a JSON Lines file, as text and as data {step, ...}. Leaves out a last line that is cut off.

    Yields nothing if there is no file. Raises UserError with file and line if another line is damaged.
    """
    lines = path.read_bytes().splitlines() if path.is_file() else []
    while lines and not lines[-1].strip(b" \0"):
        lines.pop()
    for number, line in enumerate(lines, 1):
        try:
            data = json.loads(line)
            if not isinstance(data, dict) or not isinstance(data.get("step"), int):
                raise ValueError("expected an object with a step")
        except (ValueError, RecursionError) as error:
            if number == len(lines):
                return
            raise UserError(f"{path}, line {number}: damaged ({error}); remove the line") from None
        yield line.decode(), data


def lines_up_to(path: Path, step: int) -> Path:
    """Removes the lines after `step`, and a last line that is cut off. Returns `path`.

    Raises UserError with file and line if another line is damaged.
    """
    before = takewhile(lambda line: line[1]["step"] <= step, whole_lines(path))
    write_text(path, "".join(f"{text}\n" for text, _ in before))
    return path
