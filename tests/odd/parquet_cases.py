"""Odd parquet: types of text, damaged row groups, and files that are cut."""

import gzip
import io

import pyarrow as pa
import pyarrow.parquet as pq

from tests.odd.text_cases import TEXTS, Case, bad, lines, refused


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
