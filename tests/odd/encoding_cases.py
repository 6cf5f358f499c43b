"""Odd encodings of text, files that are no text, and odd lines of txt."""

import gzip
import struct
from functools import partial

import zstandard

from tests.odd.text_cases import HEAD, TAIL, Case, among, bad, csv_of, jsonl_of, lines, refused

row, line, entry = partial(among, ".csv"), partial(among, ".txt"), partial(among, ".jsonl")
LATIN, NUL = "not UTF-8", "NUL byte"

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
    row(
        "a row in Latin-1",
        b"8,caf\xe9",
        "line 302: not UTF-8 (byte 0xe9 at column 6; Latin-1?); convert the file with `iconv -f latin1 -t utf-8`",
        LATIN,
    ),
    line("a line in Latin-1", b"caf\xe9", "line 301: not UTF-8 (byte 0xe9", LATIN),
    entry("a row in Latin-1, JSON", b'{"caption": "caf\xe9"}', "line 301: not UTF-8", LATIN),
    line(
        "quotes of Windows",
        b"a \x93cat\x94",
        "byte 0x93 at column 3; Windows-1252?); convert the file with `iconv -f cp1252",
        LATIN,
    ),
    line(
        "a damaged character among sound ones",
        "un café et un ".encode() + b"\xe9",
        "byte 0xe9 at column 15; damaged?); repair or remove the line",
        LATIN,
    ),
    bad("600 rows in Latin-1", "a.txt", b"a cat\n" + b"caf\xe9\n" * 600, "line 2: not UTF-8", LATIN, ["a cat"], 600),
    row("a NUL byte in a row", b"8,a\0cat", "line 302: has a NUL byte", NUL),
    line("a NUL byte in a line", b"a\0cat", "line 301: has a NUL byte", NUL),
    entry("a NUL byte in JSON", b'{"caption": "a\0cat"}', "line 301: has a NUL byte", NUL),
    bad("zeros at the end", "a.txt", lines(end=bytes(4096)), "line 601: has a NUL byte", NUL, [*HEAD, *TAIL]),
]

NO_TEXT = [
    refused(
        "a binary file",
        "a.txt",
        struct.pack("<400I", *range(0, 40_000_000, 100_000)),
        "is not a text file: it contains NUL bytes",
    ),
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
    line("a carriage return in a line", b"a cat\ra dog", "line 301: has a carriage return", "carriage return"),
    Case("lines that end in carriage returns", "a.txt", lines().replace(b"\n", b"\r")),
    Case("no end of the last line", "a.txt", lines()[:-1]),
    line("a line separator and a form feed inside", "a\u2028cat\x0casleep".encode(), kept=("a cat asleep",)),
    line("a text line of 17 MB", b"x" * 17_000_000, "line 301: is longer than 16 MB", "line too long"),
    bad(
        "40 MB without a line end",
        "a.txt",
        lines(end=b"x" * 40_000_000),
        "line 601: is longer than 16 MB",
        "line too long",
        [*HEAD, *TAIL],
    ),
    line("empty lines", b"\n  ", "", "empty", "empty"),
]
