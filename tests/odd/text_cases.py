"""Odd caption files: what a case is, and the 600 good rows that odd ones stand among."""

from dataclasses import dataclass, field

HALF = 300
TEXTS = [f"caption number {number}" for number in range(2 * HALF)]
HEAD, TAIL = TEXTS[:HALF], TEXTS[HALF:]
LONG = "a long caption " * 20_000


@dataclass(frozen=True)
class Case:
    """A caption file and its right outcome. Without `error`, the pool holds `captions` and nothing is dropped."""

    id: str
    name: str
    data: bytes
    captions: list[str] = field(default_factory=lambda: TEXTS)  # with `error`: those that on_error: skip keeps
    error: str = ""  # part of the message without skip
    dropped: dict[str, int] = field(default_factory=dict)  # with skip, or without `error`
    damaged: str = ""  # with skip: part of what the manifest says of the file
    more: list[str] = field(default_factory=list)  # with skip: what may follow `captions`, up to some place


def lines(*extra: bytes, header: bytes = b"", row: str = "{}\n", end: bytes = b"") -> bytes:
    """Returns a file of 600 rows with `extra` lines in the middle."""
    rows = [row.format(text).encode() for text in TEXTS]
    return header + b"".join(rows[:HALF]) + b"".join(line + b"\n" for line in extra) + b"".join(rows[HALF:]) + end


def csv_of(*extra: bytes, end: bytes = b"") -> bytes:
    return lines(*extra, header=b"id,caption\n", row="7,{}\n", end=end)


def tsv_of(*extra: bytes) -> bytes:
    return lines(*extra, header=b"id\tcaption\n", row="7\t{}\n")


def jsonl_of(*extra: bytes) -> bytes:
    return lines(*extra, row='{{"caption": "{}"}}\n')


MAKE = {".txt": lines, ".csv": csv_of, ".tsv": tsv_of, ".jsonl": jsonl_of}


def among(suffix: str, id: str, rows: bytes, error: str = "", *reasons: str, kept: tuple[str, ...] = ()) -> Case:
    """Odd rows among 600 good ones. `reasons`: one for each row that is dropped. `kept`: the captions of the others."""
    dropped = {reason: reasons.count(reason) for reason in reasons}
    return Case(id, f"a{suffix}", MAKE[suffix](*rows.split(b"\n")), [*HEAD, *kept, *TAIL], error, dropped)


def bad(id: str, name: str, data: bytes, error: str, reason: str, captions: list[str], count: int = 1) -> Case:
    """A file with bad rows, which cost nothing else."""
    return Case(id, name, data, captions, error, {reason: count})


def refused(id: str, name: str, data: bytes, error: str, captions: list[str] | None = None) -> Case:
    """A file that is damaged as a whole, or from some place on."""
    return Case(id, name, data, captions or [], error, damaged=error)
