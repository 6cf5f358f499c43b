"""Odd tables, lists and captions: each is read rightly, or is an error that names file, line and cause.

With `on_error: skip` only the bad rows are left out, counted by reason, and the first three quoted.
"""

import bz2
import gzip
import io
import json
import lzma
import re
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from randcond.data.captions.caption_lists import read_unique
from randcond.data.captions.pool import build, open_pool, take
from randcond.data.captions.row_filter import RowFilter
from randcond.launch.errors import UserError

HALF = 300
TEXTS = [f"caption number {number}" for number in range(2 * HALF)]


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


def jsonl_of(*extra: bytes) -> bytes:
    return lines(*extra, row='{{"caption": "{}"}}\n')


def bad(
    id: str, name: str, data: bytes, error: str, reason: str, more: list[str] | None = None, count: int = 1
) -> Case:
    """A file with bad rows, which cost nothing else."""
    return Case(id, name, data, more or TEXTS, error, {reason: count})


def refused(id: str, name: str, data: bytes, error: str, captions: list[str] | None = None) -> Case:
    """A file that is damaged as a whole, or from some place on."""
    return Case(id, name, data, captions or [], error, damaged=error)


HEAD, TAIL = TEXTS[:HALF], TEXTS[HALF:]
LONG = "a long caption " * 20_000
MIXED = "line 22 ends in a line feed, but the lines before in a carriage return alone"
PLAIN = csv_of().decode()

CSV = [
    bad(
        "a comma without quotes",
        "a.csv",
        csv_of(b"8,a cat, asleep"),
        "line 302: has 3 fields, expected 2 as in the header; put double quotes around a caption",
        "number of fields",
    ),
    bad("fewer fields", "a.csv", csv_of(b"8"), "line 302: has 1 fields, expected 2", "number of fields"),
    bad(
        "an open quote up to the end",
        "a.csv",
        csv_of(b'8,"a cat'),
        "line 302: has a quote that is never closed; close it",
        "unclosed quote",
    ),
    bad(
        "an open quote that another row's quotes close",
        "a.csv",
        csv_of(b'8,"a cat', b"8,a dog", b'8,"a bird, blue"'),
        "line 302: has a quote that is closed only by a quote in line 304",
        "unclosed quote",
        [*HEAD, "a dog", "a bird, blue", *TAIL],
    ),
    bad(
        "an open quote that a sign for inches closes",
        "a.csv",
        csv_of(b'8,"a cat', b"8,a dog", b'8,a pipe of 5"'),
        "line 302: has a quote that is closed only by a quote in line 304",
        "unclosed quote",
        [*HEAD, "a dog", 'a pipe of 5"', *TAIL],
    ),
    bad(
        "an open quote in the first of two columns",
        "a.csv",
        csv_of(b'"8,a cat', b'8",a dog'),
        "line 302: has a quote that is closed only by a quote in line 303",
        "unclosed quote",
        [*HEAD, "a dog", *TAIL],
    ),
    bad(
        "an open quote after a row of two lines",
        "a.csv",
        csv_of(b'8,"a cat', b'on a mat"', b'8,"a dog'),
        "line 304: has a quote that is never closed",
        "unclosed quote",
        [*HEAD, "a cat on a mat", *TAIL],
    ),
    Case(
        "an open quote, and a row in Latin-1 after it",
        "a.csv",
        csv_of(b'8,"a cat', b"8,caf\xe9", b"8,a dog"),
        [*HEAD, "a dog", *TAIL],
        "line 302: has a quote that is never closed",
        {"unclosed quote": 1, "not UTF-8": 1},
    ),
    bad(
        "a quote inside quotes",
        "a.csv",
        csv_of(b'8,"a "cat" here"'),
        "line 302: has text after a closing quote; write a quote inside",
        "stray quote",
    ),
    Case(
        "quotes, a comma and a line break inside",
        "a.csv",
        csv_of(b'8,"a ""cat"", asleep', b'on, a, mat"'),
        [*HEAD, 'a "cat", asleep on, a, mat', *TAIL],
    ),
    Case(
        "an open quote that swallows odd rows too",
        "a.csv",
        csv_of(b'8,"a cat', b"8,a dog", b"8,a bird, blue", b"8,a cow", b'8,a pipe of 5"'),
        [*HEAD, "a dog", "a cow", 'a pipe of 5"', *TAIL],
        "line 302: has a quote that is closed only by a quote in line 306",
        {"unclosed quote": 1, "number of fields": 1},
    ),
    Case(
        "two quoted lines that could be rows but for their first field",
        "a.csv",
        csv_of(b'8,"a cat', b'on a mat, asleep"'),
        [*HEAD, "a cat on a mat, asleep", *TAIL],
    ),
    bad(
        "a caption of two lines, and a comma without quotes",
        "a.csv",
        csv_of(b'8,"a cat', b'asleep",on a mat'),
        "line 302: has 3 fields, expected 2",
        "number of fields",
    ),
    Case(
        "a quoted caption of two lines with one comma each",
        "a.csv",
        csv_of(b'8,"a cat, asleep', b'on a mat, blue"'),
        [*HEAD, "a cat, asleep on a mat, blue", *TAIL],
    ),
    Case("a sign for inches", "a.csv", csv_of(b'8,a 5" pipe'), [*HEAD, 'a 5" pipe', *TAIL]),
    Case("semicolons", "a.csv", PLAIN.replace(",", ";").encode()),
    Case("tabs", "a.csv", PLAIN.replace(",", "\t").encode()),
    Case("bars", "a.csv", PLAIN.replace(",", "|").encode()),
    Case("tabs and the suffix tsv", "a.tsv", PLAIN.replace(",", "\t").encode()),
    Case("a comma in a file of tabs", "a.tsv", b"id\tcaption\n1\ta cat, asleep\n", ["a cat, asleep"]),
    Case("a first line that names the delimiter", "a.csv", b"sep=;\r\n" + PLAIN.replace(",", ";").encode()),
    refused(
        "a header that two delimiters fit",
        "a.csv",
        b"caption,a;caption\nx,y\n",
        "line 1: the header has the wanted columns with a comma and with a semicolon as delimiter",
    ),
    refused("a header with an open quote", "a.csv", b'id,"caption\n1,x\n', "line 1: has a quote in the header"),
    Case("a field beyond Python's limit", "a.csv", csv_of(f"8,{LONG}".encode()), dropped={"too long": 1}),
    bad(
        "a line of 17 MB", "a.csv", csv_of(b"8," + b"x" * 17_000_000), "line 302: is longer than 16 MB", "line too long"
    ),
    Case("line ends of Windows", "a.csv", PLAIN.replace("\n", "\r\n").encode()),
    Case("line ends converted twice", "a.csv", PLAIN.replace("\n", "\r\r\n").encode()),
    Case("carriage returns alone", "a.csv", PLAIN.replace("\n", "\r").encode()),
    bad(
        "a carriage return in a row",
        "a.csv",
        csv_of(b"8,a cat\r9,a dog"),
        "line 302: has a carriage return inside",
        "carriage return",
    ),
    Case("a carriage return in quotes", "a.csv", csv_of(b'8,"a cat\rasleep"'), [*HEAD, "a cat asleep", *TAIL]),
    Case(
        "a line feed among carriage returns",
        "a.csv",
        b"id,caption\r" + f"7,{LONG}\r".encode() * 20 + b"8,y\n",
        [],
        MIXED,
        {"too long": 20},
        damaged=MIXED,
    ),
    Case("empty lines and lines of spaces", "a.csv", b"\n  \n" + csv_of(b"", b"   ") + b"\n\n"),
    refused("an empty file", "a.csv", b"", "a.csv: is empty, expected a header"),
    refused("no caption column", "a.csv", b"id,words\n1,x\n", "no column caption, text or prompt; it has id, words"),
    Case("a header with spaces and capitals", "a.csv", PLAIN.replace("id,caption", "ID, Caption ").encode()),
    Case("a column TEXT", "a.csv", PLAIN.replace("caption\n", "TEXT\n").encode()),
    Case("a column Prompt", "a.csv", PLAIN.replace("caption\n", "Prompt\n").encode()),
    Case("columns text and caption", "a.csv", PLAIN.replace("id,caption", "Text,caption").encode()),
    refused(
        "two columns of one name", "a.csv", b"Text,TEXT\nx,y\n", "the columns 'Text' and 'TEXT' are both named text"
    ),
    refused("a header in Latin-1", "a.csv", "größe,caption\n1,x\n".encode("latin-1"), "line 1: not UTF-8 (byte 0xf6"),
    Case(
        "two files joined, each with a byte-order mark",
        "a.csv",
        csv_of(b"\xef\xbb\xbf8,a cat"),
        [*HEAD, "a cat", *TAIL],
    ),
]

ENCODED = [
    Case("UTF-8 with a byte-order mark", "a.csv", b"\xef\xbb\xbf" + csv_of()),
    *(
        Case(
            f"{codec} {'with' if mark else 'without'} a byte-order mark, {kind}",
            f"a.{kind}",
            mark + data.decode().encode(codec),
        )
        for kind, data in (("csv", csv_of()), ("txt", lines()), ("jsonl", jsonl_of()))
        for codec, marks in (("utf-16-le", (b"\xff\xfe", b"")), ("utf-16-be", (b"\xfe\xff", b"")))
        for mark in marks
    ),
    Case("UTF-16 in Chinese", "a.txt", "一只猫\n两只狗🐕\n".encode("utf-16"), ["一只猫", "两只狗🐕"]),
    bad(
        "half a character in UTF-16",
        "a.txt",
        b"\xff\xfe" + "a cat\nx\ud83dy\na dog\n".encode("utf-16-le", "surrogatepass"),
        "line 2: not UTF-16 (half a character)",
        "not UTF-16",
        ["a cat", "a dog"],
    ),
    refused(
        "UTF-16 that is cut",
        "a.txt",
        "\ufeffa cat\na dog\n".encode("utf-16-le")[:-1],
        "ends in the middle of a character of UTF-16",
        ["a cat"],
    ),
    refused("UTF-32", "a.txt", "a cat\n".encode("utf-32"), "contains text in UTF-32; convert the file with `iconv"),
    bad(
        "a row in Latin-1",
        "a.csv",
        csv_of("8,café".encode("latin-1")),
        "line 302: not UTF-8 (byte 0xe9 at column 6; Latin-1?); convert the file with `iconv -f latin1 -t utf-8`",
        "not UTF-8",
    ),
    bad("a line in Latin-1", "a.txt", lines("café".encode("latin-1")), "line 301: not UTF-8 (byte 0xe9", "not UTF-8"),
    bad(
        "a row in Latin-1, JSON",
        "a.jsonl",
        jsonl_of('{"caption": "café"}'.encode("latin-1")),
        "line 301: not UTF-8",
        "not UTF-8",
    ),
    bad(
        "quotes of Windows",
        "a.txt",
        lines(b"a \x93cat\x94"),
        "byte 0x93 at column 3; Windows-1252?); convert the file with `iconv -f cp1252",
        "not UTF-8",
    ),
    bad(
        "a damaged character among sound ones",
        "a.txt",
        lines("un café et un ".encode() + b"\xe9"),
        "byte 0xe9 at column 15; damaged?); repair or remove the line",
        "not UTF-8",
    ),
    bad(
        "600 rows in Latin-1",
        "a.txt",
        b"a cat\n" + b"caf\xe9\n" * 600,
        "line 2: not UTF-8",
        "not UTF-8",
        ["a cat"],
        600,
    ),
    bad("a NUL byte in a row", "a.csv", csv_of(b"8,a\0cat"), "line 302: has a NUL byte", "NUL byte"),
    bad("a NUL byte in a line", "a.txt", lines(b"a\0cat"), "line 301: has a NUL byte", "NUL byte"),
    bad("a NUL byte in JSON", "a.jsonl", jsonl_of(b'{"caption": "a\0cat"}'), "line 301: has a NUL byte", "NUL byte"),
    refused(
        "a binary file",
        "a.txt",
        struct.pack("<400I", *range(0, 40_000_000, 100_000)),
        "is not a text file: it contains NUL bytes",
    ),
    bad("zeros at the end", "a.txt", lines(end=bytes(4096)), "line 601: has a NUL byte", "NUL byte"),
    refused("zeros alone", "a.txt", bytes(4096), "is not a text file: it contains NUL bytes"),
    refused(
        "gzip data without the suffix", "a.csv", gzip.compress(csv_of()), "contains gzip data; give its name the suffix"
    ),
    refused("zstandard data without the suffix", "a.txt", zstandard.compress(lines()), "contains zstandard data; give"),
    refused(
        "a tar archive",
        "a.txt",
        b"a.txt".ljust(257, b"\0") + b"ustar\0" + bytes(249) + lines(),
        "a tar archive; unpack",
    ),
    refused(
        "a spreadsheet", "a.csv", b"PK\x03\x04" + bytes(100), "a zip archive or a spreadsheet; unpack it, or save it"
    ),
    refused("a web page", "a.txt", b"<!DOCTYPE html>\n<html><body>Sign in</body></html>\n", "contains a web page"),
]

TXT = [
    bad(
        "a carriage return in a line",
        "a.txt",
        lines(b"a cat\ra dog"),
        "line 301: has a carriage return",
        "carriage return",
    ),
    Case("lines that end in carriage returns", "a.txt", lines().replace(b"\n", b"\r")),
    Case("no end of the last line", "a.txt", lines()[:-1]),
    Case(
        "a line separator and a form feed inside",
        "a.txt",
        lines("a\u2028cat\x0casleep".encode()),
        [*HEAD, "a cat asleep", *TAIL],
    ),
    bad("a text line of 17 MB", "a.txt", lines(b"x" * 17_000_000), "line 301: is longer than 16 MB", "line too long"),
    bad(
        "40 MB without a line end",
        "a.txt",
        lines(end=b"x" * 40_000_000),
        "line 601: is longer than 16 MB",
        "line too long",
    ),
    Case("empty lines", "a.txt", lines(b"", b"  "), dropped={"empty": 2}),
]

JSON = [
    bad("a line that is no JSON", "a.jsonl", jsonl_of(b'{"caption": oops}'), "line 301: not JSON (", "not JSON"),
    bad("a cut line", "a.jsonl", jsonl_of(b'{"caption": "a c'), "line 301: not JSON (", "not JSON"),
    bad(
        "two objects on a line",
        "a.jsonl",
        jsonl_of(b'{"caption": "a"} {"caption": "b"}'),
        "line 301: not JSON",
        "not JSON",
    ),
    bad("deep nesting", "a.jsonl", jsonl_of(b"[" * 100_000), "line 301: not JSON (nested too deeply)", "not JSON"),
    bad(
        "deep nesting in another key",
        "a.jsonl",
        jsonl_of(b'{"caption": "a", "x": ' + b'{"x":' * 100_000),
        "line 301: not JSON (nested too deeply)",
        "not JSON",
    ),
    bad(
        "a number of 5,000 digits",
        "a.jsonl",
        jsonl_of(b'{"caption": "a", "x": ' + b"9" * 5000 + b"}"),
        "line 301: not JSON (Exceeds the limit",
        "not JSON",
    ),
    bad("a list", "a.jsonl", jsonl_of(b'["a cat"]'), "line 301: not a JSON object", "not a JSON object"),
    bad("text alone", "a.jsonl", jsonl_of(b'"a cat"'), "line 301: not a JSON object", "not a JSON object"),
    bad(
        "a number as caption",
        "a.jsonl",
        jsonl_of(b'{"caption": 7}'),
        "line 301: caption is a number, expected text",
        "not text",
    ),
    bad("a list as caption", "a.jsonl", jsonl_of(b'{"caption": ["a", "b"]}'), "caption is a list", "not text"),
    bad("NaN as caption", "a.jsonl", jsonl_of(b'{"caption": NaN}'), "caption is a number", "not text"),
    bad("true as caption", "a.jsonl", jsonl_of(b'{"caption": true}'), "caption is true or false", "not text"),
    bad("half a character", "a.jsonl", jsonl_of(b'{"caption": "\\ud83d"}'), "caption is half a character", "not text"),
    Case(
        "a whole character as two escapes", "a.jsonl", jsonl_of(b'{"caption": "\\ud83d\\ude00"}'), [*HEAD, "😀", *TAIL]
    ),
    Case("null as caption", "a.jsonl", jsonl_of(b'{"caption": null}'), dropped={"empty": 1}),
    Case("NaN in another key", "a.jsonl", jsonl_of(b'{"caption": "a", "aesthetic": NaN}'), [*HEAD, "a", *TAIL]),
    bad("a missing key", "a.jsonl", jsonl_of(b'{"text": "a"}'), "line 301: has no key caption", "missing key"),
    bad(
        "a first line without a caption",
        "a.jsonl",
        b'{"version": 1}\n' + jsonl_of(),
        "line 1: no column caption, text or prompt; it has version",
        "missing key",
    ),
    bad(
        "a key that occurs twice",
        "a.jsonl",
        jsonl_of(b'{"caption": "a", "caption": "b"}'),
        "line 301: not JSON (the key 'caption' occurs twice)",
        "not JSON",
    ),
    bad(
        "a key that occurs twice in the first line",
        "a.jsonl",
        b'{"caption": "a", "caption": "b"}\n' + jsonl_of(),
        "line 1: not JSON (the key 'caption' occurs twice)",
        "not JSON",
    ),
    Case(
        "a key of a part that is named alike",
        "a.jsonl",
        jsonl_of(b'{"caption": "a", "x": {"caption": "b"}}'),
        [*HEAD, "a", *TAIL],
    ),
    Case("keys with capitals and spaces", "a.jsonl", jsonl_of().replace(b'"caption"', b'" Text"')),
    refused(
        "two keys of one name", "a.jsonl", b'{"Text": "a", "text": "b"}\n', "'Text' and 'text' are both named text"
    ),
    Case(
        "empty lines and spaces around", "a.jsonl", jsonl_of(b"", b"  ", b'  {"caption": "a"}  '), [*HEAD, "a", *TAIL]
    ),
    bad(
        "an array in place of lines",
        "a.jsonl",
        b'[\n{"caption": "a"}\n]\n',
        "line 1: not JSON (Expecting value at column 2); write one object on each line",
        "not JSON",
        ["a"],
        2,
    ),
]


def parquet_of(array: pa.Array, name: str = "caption", checksums: bool = True) -> bytes:
    """Returns a parquet file of row groups of 100 rows, whose texts stand in it as they are."""
    file, plain = io.BytesIO(), {"compression": "none", "use_dictionary": False}
    pq.write_table(pa.table({name: array}), file, row_group_size=100, write_page_checksum=checksums, **plain)
    return file.getvalue()


def with_a_damaged_row_group() -> bytes:
    data = bytearray(parquet_of(pa.array(TEXTS)))
    place = data.index(b"caption number 250")
    data[place : place + 7] = b"CAPTION"
    return bytes(data)


STRINGS = pa.array(TEXTS)
PARQUET = [
    Case("a dictionary", "a.parquet", parquet_of(STRINGS.dictionary_encode())),
    Case("large strings", "a.parquet", parquet_of(STRINGS.cast(pa.large_string()))),
    Case("views", "a.parquet", parquet_of(STRINGS.cast(pa.string_view()))),
    Case("a column TEXT in parquet", "a.parquet", parquet_of(STRINGS, "TEXT")),
    Case("compressed parquet", "a.parquet.gz", gzip.compress(parquet_of(STRINGS))),
    Case("nulls alone", "a.parquet", parquet_of(pa.nulls(600)), [], "no caption passes the filter", {"empty": 600}),
    refused("numbers", "a.parquet", parquet_of(pa.array(range(600))), "column caption is int64, expected text"),
    refused("parquet that is cut", "a.parquet", parquet_of(STRINGS)[:-100], "a.parquet: "),
    refused(
        "parquet without a caption",
        "a.parquet",
        parquet_of(STRINGS, "words"),
        "no column caption, text or prompt; it has",
    ),
    refused("text named parquet", "a.parquet", lines(), "a.parquet: "),
    bad(
        "text that is not UTF-8 in parquet",
        "a.parquet",
        parquet_of(STRINGS, checksums=False).replace(b"caption number 250", b"caption n\xe9mber 250"),
        "row 251: caption is not UTF-8 (byte 0xe9); write the file again as UTF-8",
        "not UTF-8",
        [*TEXTS[:250], *TEXTS[251:]],
    ),
    bad(
        "a damaged row group",
        "a.parquet",
        with_a_damaged_row_group(),
        "row group 3 (rows 201 to 300): damaged (",
        "damaged row group",
        [*TEXTS[:200], *TEXTS[300:]],
        100,
    ),
]

PACK: dict[str, Callable[[bytes], bytes]] = {
    "gz": gzip.compress,
    "bz2": bz2.compress,
    "xz": lzma.compress,
    "zst": zstandard.compress,
}
CUT = "Compressed file ended before the end-of-stream marker"
MORE = "".join(f"{n * n * 7919 % 1_000_003} caption {n}\n" for n in range(30_000))
COMPRESSED = [
    case
    for suffix, pack in PACK.items()
    for case in (
        Case(f"{suffix}", f"a.txt.{suffix}", pack(lines())),
        Case(f"{suffix} in capitals", f"a.TXT.{suffix.upper()}", pack(lines())),
        Case(f"{suffix} of two streams", f"a.txt.{suffix}", pack(lines()[:5000]) + pack(lines()[5000:])),
        Case(f"{suffix} with an empty stream", f"a.txt.{suffix}", pack(lines()) + pack(b"")),
        refused(
            f"{suffix} with bytes at its end",
            f"a.txt.{suffix}",
            pack(lines()) + b"garbage" * 9,
            "bytes after its ",
            TEXTS,
        ),
        Case(
            f"{suffix} of two streams, the second cut",
            f"a.txt.{suffix}",
            pack(lines()) + pack(MORE.encode())[:-5],
            TEXTS,
            CUT,
            damaged=CUT,
            more=MORE.split("\n"),
        ),
        refused(f"{suffix} that is empty", f"a.txt.{suffix}", b"", "the file is empty, expected"),
        refused(f"text named {suffix}", f"a.txt.{suffix}", lines(), "data ("),
    )
]

CASES = [*CSV, *ENCODED, *TXT, *JSON, *PARQUET, *COMPRESSED]


def source_of(case: Case, folder: Path) -> str:
    (folder / case.name).write_bytes(case.data)
    return str(folder / case.name)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_the_first_bad_thing_is_named_or_all_is_read(case: Case, tmp_path: Path) -> None:
    source = source_of(case, tmp_path)
    if case.error:
        with pytest.raises(UserError) as raised:
            build(tmp_path / "pool", [source])
        assert str(raised.value).startswith(f"caption source {source}") and case.error in str(raised.value)
        return
    manifest = build(tmp_path / "pool", [source])
    assert list(open_pool(tmp_path / "pool")) == case.captions
    assert (manifest["dropped"], manifest["damaged"]) == (case.dropped, {}) and "skipped" not in manifest


@pytest.mark.parametrize("case", [case for case in CASES if case.error], ids=lambda case: case.id)
def test_skip_costs_the_bad_rows_alone(case: Case, tmp_path: Path) -> None:
    source = source_of(case, tmp_path)
    manifest = build(tmp_path / "pool", [source], skip=True)
    captions = list(open_pool(tmp_path / "pool"))
    count = len(case.captions)
    assert captions[:count] == case.captions and captions[count:] == case.more[: len(captions) - count]
    assert manifest["captions"] == len(captions) and manifest["dropped"] == case.dropped
    assert case.damaged in manifest["damaged"].get(source, "") and bool(case.damaged) == bool(manifest["damaged"])
    skipped = [reason for reason in case.dropped if reason not in ("too long", "empty")]
    quotes = manifest.get("skipped", {}).get(source, [])
    units = 1 if "row group" in case.error else sum(case.dropped[reason] for reason in skipped)
    assert len(quotes) == min(3, units)
    assert not quotes or case.error in quotes[0]


def test_several_bad_rows_are_counted_by_reason_and_the_first_three_quoted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A pool, a part of it, and a list in memory say the same."""
    extra = [b"8", b"8,a,b", b"8,caf\xe9", b'8,"a "cat""', b"8,a\0b"]
    (tmp_path / "a.csv").write_bytes(csv_of(*extra))
    source = str(tmp_path / "a.csv")
    reasons = {"NUL byte": 1, "not UTF-8": 1, "number of fields": 2, "stray quote": 1}
    manifest = build(tmp_path / "pool", [source], skip=True)
    assert manifest["dropped"] == reasons and list(open_pool(tmp_path / "pool")) == TEXTS
    quotes = manifest["skipped"][source]
    assert [re.search(r"line (\d+)", quote)[1] for quote in quotes] == ["302", "303", "304"]  # type: ignore[index]
    assert "a.csv: 5 bad rows are skipped (line 302: has 1 fields" in caplog.text and "; ...)" in caplog.text
    (tmp_path / "b.csv").write_bytes(b"caption\none,two\nthree\n")
    taken = take(tmp_path / "pool", tmp_path / "some", 10, seed=0, also=[str(tmp_path / "b.csv")], skip=True)
    assert list(taken["skipped"]) == [source, str(tmp_path / "b.csv")]
    assert taken["dropped"] == {**reasons, "number of fields": 3} and taken["captions"] == 11
    damaged: list[str] = []
    captions, dropped = read_unique([source], damaged)
    assert captions == TEXTS and dropped == reasons and len(damaged) == 1
    assert damaged[0].startswith(f"caption source {source}: 5 bad rows are skipped (line 302: ")


def test_columns_of_the_filter_are_found_by_the_same_rule(tmp_path: Path) -> None:
    rows = [("a cat", "UNLIKELY", "0.4", "512"), ("a dog", "NSFW", "0.4", "512"), ("a bird", "UNLIKELY", "0.4", "64")]
    names = [" Text", "nsfw", "Similarity", "Width"]
    (tmp_path / "a.csv").write_text("\n".join(map(";".join, [names, *rows])) + "\n")
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(dict(zip(names, row, strict=True))) + "\n" for row in rows))
    columns = dict(zip(names, map(list, zip(*rows, strict=True)), strict=True))
    columns["nsfw"] = pa.array(columns["nsfw"]).dictionary_encode()
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    wanted = RowFilter(nsfw=("UNLIKELY",), min_similarity=0.3, min_width=256)
    for kind in ("csv", "jsonl", "parquet"):
        source = tmp_path / f"a.{kind}"
        manifest = build(tmp_path / f"pool-{kind}", [str(source)], wanted)
        assert (manifest["captions"], manifest["dropped"]) == (1, {"nsfw": 1, "width": 1})
    (tmp_path / "a.csv").write_text("text,WIDTH\na cat,512\na dog,wide\n")
    with pytest.raises(UserError, match="line 3: WIDTH is 'wide', expected a number"):
        build(tmp_path / "stopped", [str(tmp_path / "a.csv")], RowFilter(min_width=256))
    manifest = build(tmp_path / "pool", [str(tmp_path / "a.csv")], RowFilter(min_width=256), skip=True)
    assert (manifest["captions"], manifest["dropped"]) == (1, {"not a number": 1})
