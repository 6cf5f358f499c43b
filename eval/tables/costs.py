"""The table of what each network costs: size, seconds and memory per image, and how much faster than the teacher.

In: rows whose evaluations measured it (`eval.cost`). Out: a header and lines of cells.
"""

from collections.abc import Sequence
from typing import Any

from randcond.eval.images.prompts import ALL
from randcond.eval.tables.collect import Row
from randcond.eval.tables.table import COLUMNS

_SIZES = ("parameters", "unet", "macs")


def cost_table(rows: Sequence[Row]) -> list[list[str]]:
    """Returns a header and one line of cells per measured row; [] if none was measured."""
    measured = [row for row in rows if row.cost]
    if not measured:
        return []
    batches = sorted({int(batch) for row in measured for batch in row.cost["batches"]})
    sizes = [name for name in _SIZES if any(name in row.scores.get(ALL, {}) for row in measured)]
    header = ["cost of an image", *(COLUMNS[name].label for name in sizes)]
    for batch in batches:
        header += [f"s per image, batch {batch}", f"GB, batch {batch}", f"speed-up, batch {batch}"]
    lines = [header]
    for row in measured:
        size = row.scores.get(ALL, {})
        line = [row.name, *(COLUMNS[name].write(size[name]) if name in size else "" for name in sizes)]
        for batch in batches:
            line += _cells(row, _compared_with(row, measured), str(batch))
        lines.append(line)
    return lines


def _compared_with(row: Row, measured: Sequence[Row]) -> Row:
    """Returns the row that the speed of a row is compared with: its teacher; without one, the first row.

    Of several teachers, each is compared with itself alone.
    """
    teachers = {each.teacher for each in measured}
    if row.name in teachers:
        return row
    return next((each for each in measured if each.name == row.teacher), measured[0])


def _cells(row: Row, teacher: Row, batch: str) -> list[str]:
    """Returns seconds, GB and speed-up of one batch. teacher: the row that speeds are compared with."""
    found, of_teacher = row.cost["batches"].get(batch), teacher.cost["batches"].get(batch)
    if not found:
        return ["", "", ""]
    same = of_teacher and row is not teacher and _measured_on(row) == _measured_on(teacher)
    rough, rough_teacher = _is_rough(found), bool(of_teacher) and _is_rough(of_teacher)
    sign, of_ratio = "~" if rough else "", "~" if rough or rough_teacher else ""
    faster = f"{of_ratio}{of_teacher['seconds'] / found['seconds']:.2f}" if same else ""
    return [f"{sign}{found['seconds']:.3g}", f"{found['gb']:.3g}", faster]


def _is_rough(found: dict[str, Any]) -> bool:
    """Returns True for a time that may be a fifth off. Older evaluations did not store how steady it was."""
    return bool(found["extrapolated"]) or not found.get("steady", True)


def cost_remarks(rows: Sequence[Row]) -> list[str]:
    """Returns what the table of costs is about, in sentences; [] if nothing was measured."""
    measured = [row for row in rows if row.cost]
    if not measured:
        return []
    places = list(dict.fromkeys(map(_measured_on, measured)))
    over = [_compared_with(row, measured) for row in measured]
    compared = dict.fromkeys(each.name for each, row in zip(over, measured, strict=True) if each is not row)
    sentences = [
        f"Time per image and memory per batch, from captions to pixels, {' and '.join(places)}. Memory is that of "
        "tensors: weights, and the largest sum of all others at one time.",
        *([f"Speed-ups are over {' or '.join(compared)}."] if len(measured) > 1 else []),
    ]
    if len(places) > 1:
        sentences.append("Rows of different devices have no speed-up.")
    if any(_is_rough(found) for row in measured for found in row.cost["batches"].values()):
        sentences.append(
            "~: rough, because it is extrapolated from 2 and 4 steps, or is one run, or its runs differ by a fifth or "
            "more."
        )
    return [" ".join(sentences)]


def _measured_on(row: Row) -> str:
    threads = row.cost["threads"]
    at_once = f", {threads} thread{'' if threads == 1 else 's'}" if threads else ""
    return f"on {row.cost['device']}{at_once}, {row.cost['dtype']}"
