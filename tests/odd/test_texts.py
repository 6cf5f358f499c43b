"""Odd tables, lists and captions: each is read rightly, or is an error that names file, line and cause.

With `on_error: skip` only the bad rows are left out, counted by reason, and the first three quoted.
"""

import gzip
import json
import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from randcond.data.captions.caption_lists import read_unique
from randcond.data.captions.pool import build, open_pool, take
from randcond.data.captions.row_filter import RowFilter
from randcond.launch.errors import UserError
from tests.odd.compressed_cases import COMPRESSED
from tests.odd.csv_cases import CSV
from tests.odd.encoding_cases import ENCODED, NO_TEXT, TXT
from tests.odd.json_cases import JSON
from tests.odd.parquet_cases import PARQUET
from tests.odd.text_cases import TEXTS, Case, csv_of

CASES = [*CSV, *ENCODED, *NO_TEXT, *TXT, *JSON, *PARQUET, *COMPRESSED]


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


def test_the_row_before_a_damage_counts_bad_rows_too(tmp_path: Path) -> None:
    """600 good rows and 3 bad ones, in whole streams, then a stream that is cut in its first bytes."""
    rows = gzip.compress(csv_of(b"8", b"8,a,b", b"8,caf\xe9"))
    (tmp_path / "a.csv.gz").write_bytes(rows + gzip.compress(b"9,a cat\n")[:5])
    manifest = build(tmp_path / "pool", [str(tmp_path / "a.csv.gz")], skip=True)
    (said,) = manifest["damaged"].values()
    assert "a.csv.gz, after row 603: Compressed file ended before" in said and manifest["captions"] == 600


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
