"""Caption sources and pools: what is read, what is dropped, and which errors bad input gives."""

import codecs
import csv
import errno
import gzip
import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from randcond.data.cache.latent_source import choose_captions
from randcond.data.captions import row_filter
from randcond.data.captions.caption_file import Captions, write_captions
from randcond.data.captions.caption_lists import names_any, read_source, read_unique
from randcond.data.captions.pool import build, build_pool, check_sources_unchanged, open_pool, take
from randcond.data.captions.pool_merge import first_of_each
from randcond.data.captions.readers import read_batches
from randcond.data.captions.row_filter import RowFilter, select
from randcond.data.captions.sources import expand
from randcond.data.inputs import fetch as fetching
from randcond.data.rows.bad_rows import BadRows
from randcond.launch.config.experiments import load_config
from randcond.launch.config.paths import PACKAGE
from randcond.launch.errors import UserError
from randcond.launch.runtime.files import read_json, remove
from tests.support.web import served


def test_every_kind_of_source_reads_alike(tmp_path: Path) -> None:
    texts = ["a café", "two  dogs\tplay", "a cat, asleep"]
    (tmp_path / "a.txt").write_text("\n".join(texts) + "\n")
    (tmp_path / "a.csv").write_text('id,TEXT\n1,a café\n2,two  dogs\tplay\n3,"a cat, asleep"\n')
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"caption": text}) + "\n" for text in texts))
    pq.write_table(pa.table({"TEXT": texts, "width": [1, 2, 3]}), tmp_path / "a.parquet")
    for kind in ("txt", "csv", "jsonl"):  # a byte-order mark and empty lines, as spreadsheets write them
        path = tmp_path / f"a.{kind}"
        path.write_text((codecs.BOM_UTF8 if kind != "jsonl" else b"").decode() + path.read_text() + "\n\n")
    for kind in ("txt", "csv", "jsonl", "parquet"):
        assert list(read_source(str(tmp_path / f"a.{kind}"))) == ["a café", "two dogs play", "a cat, asleep"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("gone.txt", None, "gone.txt: no such file"),
        ("a.docx", "x", "unknown file type '.docx'"),
        ("b.csv", "id,caption\n1,x\n\n2\n", "b.csv, line 4: has 1 fields, expected 2"),
        ("b.jsonl", '{"caption": "x"}\n{"caption": 7}\n', "b.jsonl, line 2: caption is a number, expected text"),
        ("c.jsonl", '{"caption": "x"}\n{"text": "y"}\n', "c.jsonl, line 2: has no key caption"),
        ("d.jsonl", '["x"]\n', "d.jsonl, line 1: not a JSON object"),
        ("a.txt.gz", "not gzip", "a.txt.gz: not gzip data"),
        ("a.csv", "id,words\n1,x\n", "a.csv: no column caption, text or prompt; it has id, words"),
        ("a.jsonl", '{"caption": "x"}\n{oops\n', "a.jsonl, line 2"),
        ("a.parquet", "not parquet", "a.parquet"),
        ("empty.txt", "\n  \n", "empty.txt: contains no captions"),
    ],
)
def test_bad_sources_are_named(tmp_path: Path, name: str, content: str | None, message: str) -> None:
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=message):
        read_unique([str(tmp_path / name)])


def test_captions_that_are_taken_whole_may_be_long(tmp_path: Path) -> None:
    """The pool's filter does not apply to them. If there are too few, the error counts the dropped ones."""
    rambling = "a very " + "long " * 300 + "caption"
    (tmp_path / "a.txt").write_text(f"a cat\n{rambling}\na cat\n\n")
    source = str(tmp_path / "a.txt")
    assert read_unique([source]) == (["a cat", rambling], {"empty": 1, "duplicate": 1})
    config = load_config("demo-with", [f"cache.captions=[{source}]", "cache.size=3", "cache.exclude=[]"])
    with pytest.raises(UserError, match=r"the sources contain only 2 .*, 1 dropped: empty, 1 dropped: duplicate"):
        choose_captions(config)
    build(tmp_path / "pool", [], also=[source])
    assert len(Captions(tmp_path / "pool" / "captions.arrow")) == 2


def test_a_pool_keeps_order_drops_duplicates_and_is_built_once(tmp_path: Path) -> None:
    source = tmp_path / "a.txt"
    source.write_text("b\na\n\nb\nc\n")
    manifest = build(tmp_path / "pool", [str(source)])
    assert (manifest["captions"], manifest["dropped"]) == (3, {"empty": 1, "duplicate": 1})
    pool = open_pool(tmp_path / "pool")
    assert [pool[i] for i in range(len(pool))] == ["b", "a", "c"]
    written = (tmp_path / "pool" / "captions.arrow").stat().st_mtime_ns
    assert build(tmp_path / "pool", [str(source)]) == manifest
    assert (tmp_path / "pool" / "captions.arrow").stat().st_mtime_ns == written
    source.write_text("other\n")
    with pytest.raises(
        UserError, match=r"a\.txt has changed since the pool at .* was built.* give another paths\.pool"
    ):
        build(tmp_path / "pool", [str(source)])


def test_captions_are_cleaned_alike_and_rows_filtered_by_their_columns(tmp_path: Path) -> None:
    rows = [
        ("a  cafe\u0301\u2028\x07here", "UNLIKELY", 0.4, 512, 512),
        ("not safe", "NSFW", 0.4, 512, 512),
        ("an unlike picture", "UNLIKELY", 0.1, 512, 512),
        ("a narrow one", "UNLIKELY", 0.4, 64, 512),
        ("a flat one", "UNLIKELY", 0.4, 512, None),
        ("x", "UNLIKELY", 0.4, 512, 512),
        ("y" * 40, "UNLIKELY", 0.4, 512, 512),
        (None, "UNLIKELY", 0.4, 512, 512),
    ]
    names = ["TEXT", "NSFW", "similarity", "WIDTH", "HEIGHT"]
    columns = dict(zip(names, map(list, zip(*rows, strict=True)), strict=True))
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(dict(zip(names, row, strict=True))) + "\n" for row in rows))
    with gzip.open(tmp_path / "a.csv.gz", "wt", newline="") as file:
        csv.writer(file).writerows([names, *rows])
    wanted = RowFilter(2, 30, ("UNLIKELY",), 0.3, 256, 256)
    reasons = {"nsfw": 1, "similarity": 1, "width": 1, "height": 1, "too short": 1, "too long": 1, "empty": 1}
    for name in ("a.parquet", "a.jsonl", "a.csv.gz"):
        manifest = build(tmp_path / f"pool-{name}", [str(tmp_path / name)], wanted)
        assert manifest["dropped"] == reasons and manifest["filter"]["min_width"] == 256
        assert list(open_pool(tmp_path / f"pool-{name}")) == ["a caf\u00e9 here"]
    with pytest.raises(UserError, match=r"no column NSFW, which pool\.nsfw needs; it has caption"):
        build(tmp_path / "pool-x", [str(PACKAGE / "data/digits/captions.txt")], wanted)


def test_folders_globs_and_duplicates_across_files(tmp_path: Path) -> None:
    """The pool has several record batches, and captions are found by index in each of them."""
    texts = [f"caption {number % 150_000}" for number in range(200_000)]
    (tmp_path / "in/deeper").mkdir(parents=True)
    (tmp_path / "in/a.txt").write_text("\n".join(texts[:90_000]))
    (tmp_path / "in/deeper/b.txt").write_text("\n".join(texts[90_000:]))
    (tmp_path / "in/notes.md").write_text("no source")
    manifest = build(tmp_path / "pool", [str(tmp_path / "in")])
    assert (manifest["captions"], manifest["dropped"]) == (150_000, {"duplicate": 50_000})
    pool = open_pool(tmp_path / "pool")
    for place in (0, 1, 65_535, 65_536, 131_071, 131_072, 149_999):
        assert pool[place] == texts[place]
    assert list(pool) == texts[:150_000] and pool[np.int64(7)] == "caption 7"
    with pytest.raises(IndexError):
        pool[150_000]
    assert not (tmp_path / "pool/parts").exists()
    assert [Path(file).name for file in expand(str(tmp_path / "in" / "*.txt"))] == ["a.txt"]


def test_equal_hashes_of_other_texts_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_captions(tmp_path / "a.arrow", ["one", "two", "one", "three", "two", "one"])
    monkeypatch.setattr("builtins.hash", lambda text: 7)
    keep = first_of_each([Captions(tmp_path / "a.arrow")])
    monkeypatch.undo()
    assert keep.tolist() == [True, True, False, True, False, False]


def test_a_killed_build_goes_on_at_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in "abc":
        (tmp_path / f"{name}.txt").write_text(f"{name}1\n{name}2\n")
    sources = [str(tmp_path / f"{name}.txt") for name in "abc"]
    read: list[str] = []

    def reading(source: str, rows: RowFilter, bad: BadRows) -> Iterator[tuple[pa.StringArray, Counter[str]]]:
        read.append(Path(source).name)
        if len(read) == 2:
            raise KeyboardInterrupt
        yield from read_batches(source, rows, bad)

    monkeypatch.setattr("randcond.data.captions.pool.read_batches", reading)
    with pytest.raises(KeyboardInterrupt):
        build(tmp_path / "pool", sources)
    build(tmp_path / "pool", sources)
    assert read == ["a.txt", "b.txt", "b.txt", "c.txt"]
    assert list(open_pool(tmp_path / "pool")) == ["a1", "a2", "b1", "b2", "c1", "c2"]


def test_parts_of_a_pool_hold_each_other(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("\n".join(f"caption {number}" for number in range(1000)))
    build(tmp_path / "pool", [str(tmp_path / "a.txt")])
    parts = {}
    for count in (0, 10, 100):
        take(tmp_path / "pool", tmp_path / str(count), count, seed=1)
        parts[count] = list(open_pool(tmp_path / str(count)))
        assert len(parts[count]) == count
    assert set(parts[10]) < set(parts[100])
    with pytest.raises(UserError, match="contains 1000 captions, but 1001 are requested"):
        take(tmp_path / "pool", tmp_path / "more", 1001, seed=1)


def test_an_experiments_extra_texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No texts, a part of a shared whole pool, that part with other texts, or only texts with excluded concepts."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.txt").write_text("\n".join(f"caption {number}" for number in range(1000)))
    (tmp_path / "b.txt").write_text("caption 3\na Seven\nanother\n")

    def extra(folder: str, *words: str) -> list[str]:
        sources = ["pool.sources=[a.txt]", "pool.whole=whole", f"paths.pool={folder}", *words]
        config = load_config("demo-with", sources)
        build_pool(config)
        build_pool(config)  # the same again: nothing to do
        return list(open_pool(tmp_path / folder))

    assert extra("none", "pool.size=0") == [] and not (tmp_path / "whole").exists()
    few, more = extra("few", "pool.size=10"), extra("more", "pool.size=100")
    assert len(few) == 10 and set(few) < set(more) and len(list(open_pool(tmp_path / "whole"))) == 1000
    beside = extra("beside", "pool.size=10", "pool.also=[b.txt]")
    assert beside == ["caption 3", "a Seven", "another", *(text for text in few if text != "caption 3")]
    assert extra("alone", "pool.size=0", "pool.also=[b.txt]") == beside[:3]
    assert extra("other", "pool.size=10", "pool.seed=1") != few
    # The filter does not apply to pool.also, whatever pool.size is.
    for size in (["pool.size=10", "pool.whole=long"], ["pool.size=0"], ["pool.size=null"]):
        longer = ["pool.also=[b.txt]", "pool.min_length=10", *size]
        assert extra(f"longer-{size[0].partition('=')[2]}", *longer)[:3] == beside[:3]
    only = ["pool.sources=[b.txt]", "pool.excluded_only=true", "cache.exclude=[seven, nine]"]
    assert extra("only", *only) == ["a Seven"]
    assert read_json(tmp_path / "only/manifest.json")["dropped"]["other words"] == 2
    with pytest.raises(UserError, match="the pool at few does not match this experiment"):
        extra("few", "pool.size=11")
    for words, said in (
        (["pool.size=10", "pool.whole=''"], "pool.whole: is missing"),
        (["pool.size=-1"], "pool.size: must be at least 0"),
        (["pool.excluded_only=true", "cache.exclude=[]"], "pool.excluded_only: needs words in cache.exclude"),
    ):
        with pytest.raises(UserError, match=said):
            load_config("demo-with", words)


def test_an_unfinished_or_damaged_pool_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no caption pool at"):
        open_pool(tmp_path)
    (tmp_path / "a.txt").write_text("x\n")
    build(tmp_path / "pool", [str(tmp_path / "a.txt")])
    arrow = tmp_path / "pool" / "captions.arrow"
    arrow.write_bytes(arrow.read_bytes()[:40])
    with pytest.raises(UserError, match=r"captions\.arrow: cannot be read"):
        open_pool(tmp_path / "pool")


def test_words_match_whole() -> None:
    found = names_any(["three", "cat"])
    assert found.search("A Three, in red") and found.search("cat")
    assert not found.search("threefold category") and not names_any([]).search("anything")


def test_a_pool_and_a_cache_find_the_same_words_in_any_script() -> None:
    words = ["éléphant", "cat", "кот", "9th"]
    captions = ["un Éléphant", "caté", "a cat", "cat", "cat_like", "(cat)", "кот.", "котик", "the 9th", "19th", "écat"]
    batch = pa.RecordBatch.from_pydict({"caption": captions})
    taken, _ = select(batch, RowFilter(naming=tuple(words)))
    assert taken.to_pylist() == [caption for caption in captions if names_any(words).search(caption)]
    assert taken.to_pylist() == ["un Éléphant", "a cat", "cat", "(cat)", "кот.", "the 9th"]


def test_what_a_source_comes_over_is_not_its_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A lost server or a failing disk ends the build, even with skip=True.

    Otherwise, the pool would count as complete for ever, without this source.
    """
    monkeypatch.setattr(fetching, "TRIES", 1)
    (tmp_path / "a.txt").write_text("one\n")
    with served(tmp_path) as url:
        source = f"{url}/a.txt"
    monkeypatch.setattr("randcond.data.captions.pool.expand", lambda source: [source])
    monkeypatch.setattr("randcond.data.captions.pool.identify", lambda file: {"name": file})
    with pytest.raises(fetching.FetchError, match=r"a\.txt: failed after 1 tries"):
        build(tmp_path / "pool", [source], skip=True)
    assert not (tmp_path / "pool/manifest.json").exists()

    def stale(*args: object, **kwargs: object) -> None:
        raise OSError(errno.ESTALE, "Stale file handle")

    monkeypatch.setattr("randcond.data.rows.tables.open_file", stale)
    with pytest.raises(OSError, match=r"caption source .*a\.txt: Stale file handle"):
        build(tmp_path / "local", [str(tmp_path / "a.txt")], skip=True)


def test_damaged_sources_stop_the_build_or_stand_in_its_manifest(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\ntwo\n")
    lines = gzip.compress("".join(f"a caption of its own, number {n}\n" for n in range(200_000)).encode())
    (tmp_path / "b.txt.gz").write_bytes(lines[: len(lines) // 2])
    (tmp_path / "c.csv").write_text("words\nx\n")
    sources = [str(tmp_path / name) for name in ("a.txt", "b.txt.gz", "c.csv")]
    with pytest.raises(UserError, match=r"b\.txt\.gz, after row \d+: Compressed file ended"):
        build(tmp_path / "pool", sources)
    remove(tmp_path / "pool")
    manifest = build(tmp_path / "pool", sources, skip=True)
    assert list(manifest["damaged"]) == sources[1:]
    assert "no column caption, text or prompt" in manifest["damaged"][sources[2]]
    captions = list(open_pool(tmp_path / "pool"))
    assert captions[:3] == ["one", "two", "a caption of its own, number 0"]
    assert 2 < len(captions) == manifest["captions"] < 200_000
    taken = take(tmp_path / "pool", tmp_path / "some", 10, seed=0)
    assert taken["damaged"] == manifest["damaged"]  # a training reports it as missing
    also = take(tmp_path / "pool", tmp_path / "beside", 10, seed=0, also=[sources[0], sources[2]], skip=True)
    assert list(also["damaged"]) == sources[1:] and also["captions"] >= 10
    with pytest.raises(UserError, match="no column caption"):
        take(tmp_path / "pool", tmp_path / "stopped", 10, seed=0, also=[sources[2]])
    with pytest.raises(UserError, match="skip is True there, False here"):
        build(tmp_path / "pool", sources)


@pytest.mark.parametrize(
    ("name", "data", "said"),
    [
        (
            "a.jsonl",
            b'{"caption": "one"}\n{"caption": "\\ud83d"}\n',
            "line 2: caption is half a character (a lone surrogate), expected text",
        ),
        ("a.jsonl", b'{"caption": "one"}\n' + b"[" * 100_000 + b"\n", "line 2: not JSON (nested too deeply)"),
        ("a.txt", b"one\n" * 1000 + b"\xff\n", "line 1001: not UTF-8 (byte 0xff at column 1"),
        ("a.jsonl.zst", b"no zstandard", "a.jsonl.zst: not zstandard data"),
    ],
)
def test_what_no_library_reads_is_named(tmp_path: Path, name: str, data: bytes, said: str) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(UserError, match=f"caption source .*{re.escape(said)}"):
        list(read_source(str(tmp_path / name)))


def test_zstandard_is_read_and_numbers_that_are_none_pass_no_filter(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl.zst").write_bytes(zstandard.compress(b'{"caption": "one"}\n'))
    assert list(read_source(str(tmp_path / "a.jsonl.zst"))) == ["one"]
    pq.write_table(pa.table({"TEXT": ["a", "b"], "similarity": [float("nan"), 0.4]}), tmp_path / "a.parquet")
    captions, dropped = next(read_batches(str(tmp_path / "a.parquet"), RowFilter(min_similarity=0.3)))
    assert captions.to_pylist() == ["b"] and dropped == {"similarity": 1}


def test_a_pool_that_failed_at_its_first_file_does_not_block_its_folder(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("words\na cat\n")
    (tmp_path / "a.txt").write_text("a cat\n")
    with pytest.raises(UserError, match="no column caption"):
        build(tmp_path / "pool", [str(tmp_path / "a.csv")])
    assert build(tmp_path / "pool", [str(tmp_path / "a.txt")])["captions"] == 1


@pytest.mark.parametrize("composes", [row_filter._COMPOSES, False])  # this pyarrow, and one before 26
def test_captions_are_nfc_with_every_pyarrow(composes: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_filter, "_COMPOSES", composes)
    texts = ["a cat", None, "Hu\u0308hnerei", "", "e\u0301cole  \u00e9t\u00e9", "plain"]
    for kind in (pa.string(), pa.large_string()):
        found = row_filter.clean(pa.array(texts, kind)).to_pylist()
        assert found == ["a cat", "", "H\u00fchnerei", "", "\u00e9cole \u00e9t\u00e9", "plain"]
    assert row_filter.clean(pa.array([], pa.string())).to_pylist() == []


@pytest.mark.parametrize("size", ["null", "2"])
def test_a_caption_file_that_has_changed_is_named(tmp_path: Path, size: str) -> None:
    (tmp_path / "mine.txt").write_text("a cat\na dog\na tree\n")
    words = [f"pool.sources=[{tmp_path / 'mine.txt'}]", f"paths.pool={tmp_path / 'pool'}"]
    config = load_config("demo-with", [*words, f"pool.size={size}", f"pool.whole={tmp_path / 'whole'}"])
    check_sources_unchanged(config)  # nothing is built yet
    build_pool(config)
    check_sources_unchanged(config)
    (tmp_path / "mine.txt").write_text("a cat\na dog\na house\n")
    for check in (check_sources_unchanged, build_pool):
        with pytest.raises(
            UserError, match=r"^mine\.txt has changed since the pool at .* was built; restore what it was"
        ):
            check(config)
    (tmp_path / "mine.txt").unlink()
    check_sources_unchanged(config)  # a training needs only the pool
