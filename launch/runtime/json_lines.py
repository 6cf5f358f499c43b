"""Files of JSON lines: read up to a line that a kill cut off, cut back where a resumed run goes on."""

import json
from collections.abc import Iterator
from itertools import takewhile
from pathlib import Path
from typing import Any

from randcond.launch.runtime.files import write_text


def whole_lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The lines of a file of JSON lines, as text and as data, up to one that a kill cut off; none without a file."""
    for line in path.read_text().splitlines() if path.is_file() else []:
        try:
            yield line, json.loads(line)
        except json.JSONDecodeError:
            return


def lines_up_to(path: Path, step: int) -> Path:
    """Drops the lines after a step, which a resumed run writes again, and a last line that was cut off."""
    before = takewhile(lambda line: line[1]["step"] <= step, whole_lines(path))
    write_text(path, "".join(f"{text}\n" for text, _ in before))
    return path
