"""Random csv files: what Python's csv.writer wrote is read as it was, and a damaged quote costs its own row alone."""

import csv
import io
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from randcond.data.rows.bad_rows import BadRows
from randcond.data.rows.columns import CAPTION
from randcond.data.rows.tables import read_batches

QUOTING = {"minimal": csv.QUOTE_MINIMAL, "all": csv.QUOTE_ALL}
COLUMNS = (("caption",), ("id", "caption"), ("url", "caption", "width"), ("title", "caption"), ("caption", "url"))
PROSE = ["a", "the", "cat", "dog,", "house", "on", "mat,", "big", "red", "1000", "5", "asleep.", "quietly"]
PIECES = [
    "a",
    "cat,",
    " 1,",
    "dog",
    "\n",
    "\n",
    '"hi"',
    "\n\n",
    ";",
    "\t",
    '5"',
    "http://x/a.jpg,",
    "\n1,a",
    "\n2, b",
    "7",
]


def written(rows: list[list[str]], quoting: int, delimiter: str = ",") -> str:
    file = io.StringIO()
    csv.writer(file, quoting=quoting, delimiter=delimiter, lineterminator="\n").writerows(rows)
    return file.getvalue()


def row_of(dice: random.Random, columns: tuple[str, ...], number: int, caption: str) -> list[str]:
    values = {
        "id": str(number),
        "url": f"http://x/{number}.jpg",
        "width": dice.choice(["", "512"]),
        "title": dice.choice(["A house", "cat", "x.png"]),
        "caption": caption,
    }
    return [values[column] for column in columns]


def read(path: Path, skip: bool = False) -> tuple[list[str], list[str]]:
    """Returns the captions of a file, and what is said of its bad rows."""
    bad = BadRows(str(path), skip)
    captions = [
        caption for batch in read_batches(str(path), {"caption": CAPTION}, bad) for caption in batch[0].to_pylist()
    ]
    return captions, bad.quotes


def of_pieces(dice: random.Random) -> str:
    return dice.choice(["", " "]).join(dice.choices(PIECES, k=dice.randrange(1, 25)))


def of_characters(dice: random.Random) -> str:
    return "".join(dice.choices('a1,\n" ;\t|', k=dice.randrange(30)))


@pytest.mark.parametrize("quoting", QUOTING)
@pytest.mark.parametrize("caption", [of_pieces, of_characters])
def test_what_a_writer_of_csv_wrote_is_read_back(
    tmp_path: Path, caption: Callable[[random.Random], str], quoting: str
) -> None:
    for seed in range(150):
        dice = random.Random(seed)
        columns = dice.choice(COLUMNS)
        delimiter, name = dice.choice([(",", "a.csv"), (";", "a.csv"), ("\t", "a.csv"), ("\t", "a.tsv")])
        if len(columns) == 1:
            delimiter, name = ",", "a.csv"
        captions = [text for _ in range(dice.randrange(1, 30)) if (text := caption(dice)).strip()]
        rows = [row_of(dice, columns, number, text) for number, text in enumerate(captions)]
        (tmp_path / name).write_text(written([list(columns), *rows], QUOTING[quoting], delimiter))
        assert read(tmp_path / name) == (captions, []), f"seed {seed}"


def test_lines_in_a_column_that_was_empty_so_far(tmp_path: Path) -> None:
    rows = [[str(number), f"a cat {number}", ""] for number in range(12)] + [
        ["12", "a dog", "one\ntwo"],
        ["13", "a", ""],
    ]
    (tmp_path / "a.csv").write_text(written([["id", "caption", "comment"], *rows], QUOTING["minimal"]))
    assert read(tmp_path / "a.csv") == ([row[1] for row in rows], [])


def prose(dice: random.Random) -> str:
    """Returns a caption of one to four lines, perhaps with quotes inside, that is like no other."""
    lines = [" ".join(dice.choices(PROSE, k=dice.randrange(2, 9))) for _ in range(dice.choice([1, 1, 1, 2, 3, 4]))]
    text = "\n".join(lines)
    return (f'He said "{text}"' if dice.random() < 0.1 else text) + f" {dice.random()}"


@pytest.mark.parametrize("quoting", QUOTING)
@pytest.mark.parametrize("damage", ["open", "not written twice"])
def test_a_damaged_quote_costs_its_own_row_of_a_thousand(tmp_path: Path, damage: str, quoting: str) -> None:
    """The other lines of that row are certainly no rows, because they lack an address or number, and are dropped."""
    for seed in range(10):
        dice = random.Random(seed)
        columns = dice.choice((("id", "caption"), ("url", "caption", "width")))
        rows = [row_of(dice, columns, number, prose(dice)) for number in range(1000)]
        parts = [written([row], QUOTING[quoting]) for row in rows]
        place, column = dice.randrange(1000), columns.index("caption")
        caption = rows[place].pop(column).replace('"', '""')
        if damage == "not written twice":
            before, _, after = caption.rpartition(" ")
            caption = f'{before} "big" {after}"'
        fields = written([rows[place]], QUOTING[quoting]).rstrip("\n").split(",")
        parts[place] = ",".join([*fields[:column], f'"{caption}', *fields[column:]]) + "\n"
        others = [row[column] for row in rows if len(row) == len(columns)]
        (tmp_path / "a.csv").write_text("".join([written([list(columns)], QUOTING[quoting]), *parts]))
        captions, said = read(tmp_path / "a.csv", skip=True)
        assert captions == others and said, f"seed {seed}"
