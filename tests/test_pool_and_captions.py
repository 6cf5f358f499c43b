"""Caption sources and the pool: what is read, what is dropped, and how bad input is named."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from randcond.data.captions import names_any, read_source, read_unique
from randcond.data.pool import build, open_pool


def test_every_kind_of_source_reads_alike(tmp_path: Path) -> None:
    texts = ["a café", "two  dogs\tplay", "a cat, asleep"]
    (tmp_path / "a.txt").write_text("\n".join(texts) + "\n")
    (tmp_path / "a.csv").write_text('id,TEXT\n1,a café\n2,two  dogs\tplay\n3,"a cat, asleep"\n')
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"caption": text}) + "\n" for text in texts))
    pq.write_table(pa.table({"TEXT": texts, "width": [1, 2, 3]}), tmp_path / "a.parquet")
    for kind in ("txt", "csv", "jsonl", "parquet"):
        assert list(read_source(tmp_path / f"a.{kind}")) == ["a café", "two dogs play", "a cat, asleep"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("gone.txt", None, "gone.txt: no such file"),
        ("a.docx", "x", "unknown kind '.docx'"),
        ("a.csv", "id,words\n1,x\n", "a.csv: no column caption or TEXT or text; it has id, words"),
        ("a.jsonl", '{"caption": "x"}\n{oops\n', "a.jsonl, line 2"),
        ("a.parquet", "not parquet", "a.parquet"),
        ("empty.txt", "\n  \n", "empty.txt: holds no caption"),
    ],
)
def test_bad_sources_are_named(tmp_path: Path, name: str, content: str | None, message: str) -> None:
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        read_unique([tmp_path / name])


def test_a_pool_keeps_order_drops_duplicates_and_is_built_once(tmp_path: Path) -> None:
    source = tmp_path / "a.txt"
    source.write_text("b\na\n\nb\nc\n")
    manifest = build(tmp_path / "pool", [source])
    assert (manifest["captions"], manifest["dropped"]) == (3, {"empty": 1, "duplicate": 1})
    pool = open_pool(tmp_path / "pool")
    assert [pool[i] for i in range(len(pool))] == ["b", "a", "c"]
    written = (tmp_path / "pool" / "captions.arrow").stat().st_mtime_ns
    assert build(tmp_path / "pool", [source]) == manifest
    assert (tmp_path / "pool" / "captions.arrow").stat().st_mtime_ns == written
    source.write_text("other\n")
    with pytest.raises(ValueError, match=r"was made otherwise: sources .* give another paths\.pool"):
        build(tmp_path / "pool", [source])


def test_an_unfinished_or_damaged_pool_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no caption pool at"):
        open_pool(tmp_path)
    (tmp_path / "a.txt").write_text("x\n")
    build(tmp_path / "pool", [tmp_path / "a.txt"])
    arrow = tmp_path / "pool" / "captions.arrow"
    arrow.write_bytes(arrow.read_bytes()[:40])
    with pytest.raises(ValueError, match=r"captions\.arrow: cannot be read"):
        open_pool(tmp_path / "pool")


def test_words_match_whole() -> None:
    found = names_any(["three", "cat"])
    assert found.search("A Three, in red") and found.search("cat")
    assert not found.search("threefold category") and not names_any([]).search("anything")
