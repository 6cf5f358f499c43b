"""Odd evaluation lists, splits, image lists, annotations and names of files."""

import gzip
import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from randcond.data.cache.captioned_images import find_pictures
from randcond.data.captions.pool import build, open_pool
from randcond.data.captions.sources import expand
from randcond.data.concepts.coco import split_coco
from randcond.data.concepts.words import read_words
from randcond.data.texts.datafree_command import sample
from randcond.eval.compbench.prompts import read_prompts
from randcond.eval.images.prompts import choose_prompts
from randcond.eval.scores.real_images import read_splits
from randcond.launch.config.experiments import load_config
from randcond.launch.errors import UserError
from randcond.launch.runtime.files import write_json

LIST = b"file_name,caption\na.png,a cat\nb.png,a dog\n"
GOOD = {  # a list of two images -> its name and content
    "csv": ("list.csv", LIST),
    "semicolons": ("list.csv", LIST.replace(b",", b";")),
    "tsv": ("list.tsv", LIST.replace(b",", b"\t")),
    "UTF-16": ("list.csv", LIST.decode().encode("utf-16")),
    "carriage returns": ("list.csv", LIST.replace(b"\n", b"\r")),
    "names with capitals and spaces": ("list.csv", LIST.replace(b"file_name,caption", b"File Name, TEXT")),
    "names with hyphens": ("list.csv", LIST.replace(b"file_name,caption", b"file-name,Prompt")),
}
BAD = {  # name, content, part of the message
    "a comma without quotes": ("list.csv", LIST + b"c.png,a cat, asleep\n", "line 4: has 3 fields, expected 2"),
    "an open quote": ("list.csv", LIST + b'c.png,"a cat\nd.png,a dog\n', "line 4: has a quote that is never closed"),
    "Latin-1": ("list.csv", LIST + b"c.png,caf\xe9\n", "line 4: not UTF-8 (byte 0xe9 at column 10; Latin-1?)"),
    "gzip data": ("list.csv", gzip.compress(LIST), "contains gzip data"),
    "two columns of one name": ("list.csv", b"file_name,File Name,caption\na,b,c\n", "'file_name' and 'File Name'"),
}
READERS: dict[str, Callable[[Path, str], list[str]]] = {}


def reader(function: Callable[[Path, str], list[str]]) -> Callable[[Path, str], list[str]]:
    READERS[function.__name__] = function
    return function


@reader
def evaluation(folder: Path, name: str) -> list[str]:
    words = [f"eval.captions=[{folder / name}]", "eval.size=null", "cache.exclude=[]"]
    return choose_prompts(load_config("demo-with", words)).images


@reader
def splits(folder: Path, name: str) -> list[str]:
    if not name.endswith(".csv"):
        return ["a.png", "b.png"]
    images = [folder / image for image in ("b.png", "a.png")]
    return sorted(images[number].name for number in read_splits(folder, images)["list"])


@reader
def image_list(folder: Path, name: str) -> list[str]:
    if not name.endswith(".csv"):
        return ["a.png", "b.png"]
    (folder / name).rename(folder / "metadata.csv")
    for image in "abcd":
        Image.new("RGB", (8, 8)).save(folder / f"{image}.png")
    return [picture.name for picture in find_pictures(str(folder))]


@reader
def coco(folder: Path, name: str) -> list[str]:
    write_coco(folder)
    split_coco(folder, folder / "out", "animal", folder / name)
    lines = (folder / "out/all.csv").read_text().splitlines()[1:]
    assert lines == ["a.png,a cat", "b.png,a dog"]
    return [line.partition(",")[0] for line in lines]


def write_coco(folder: Path, **changes: object) -> None:
    images = [{"id": 1, "file_name": "a.png"}, {"id": 2, "file_name": "b.png"}]
    captions = [{"id": n, "image_id": n, "caption": f"caption {n}"} for n in (1, 2)]
    categories = [{"id": 18, "supercategory": "animal"}]
    objects = [{"image_id": 1, "category_id": 18}]
    parts = {"images": images, "captions": captions, "categories": categories, "objects": objects, **changes}
    (folder / "instances_val2014.json").write_text(
        json.dumps({"categories": parts["categories"], "annotations": parts["objects"]})
    )
    (folder / "captions_val2014.json").write_text(
        json.dumps({"images": parts["images"], "annotations": parts["captions"]})
    )


@pytest.mark.parametrize("use", READERS)
@pytest.mark.parametrize("id", GOOD)
def test_a_list_is_read_alike_everywhere(tmp_path: Path, use: str, id: str) -> None:
    name, data = GOOD[id]
    (tmp_path / name).write_bytes(data)
    assert READERS[use](tmp_path, name) == ["a.png", "b.png"]


@pytest.mark.parametrize("use", READERS)
@pytest.mark.parametrize("id", BAD)
def test_a_bad_list_is_named_alike_everywhere(tmp_path: Path, use: str, id: str) -> None:
    name, data, said = BAD[id]
    (tmp_path / name).write_bytes(data)
    with pytest.raises(UserError, match=rf"{'metadata' if use == 'image_list' else 'list'}\.csv.*{re.escape(said)}"):
        READERS[use](tmp_path, name)


@pytest.mark.parametrize("name", ["list.jsonl", "list.csv.gz", "list.parquet"])
def test_images_of_an_evaluation_list_of_another_kind(tmp_path: Path, name: str) -> None:
    """Before, their file names were passed over, and the images of a list of unseen ones counted as seen."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [{"file_name": "a.png", "caption": "a cat"}, {"file_name": "b.png", "caption": "a dog"}]
    if name.endswith("jsonl"):
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif name.endswith("gz"):
        (tmp_path / name).write_bytes(gzip.compress(LIST))
    else:
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / name)
    assert evaluation(tmp_path, name) == ["a.png", "b.png"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"captions": [{"id": 1, "image_id": 1}]}, r"captions_val2014\.json: .*: annotations\[0\] has a wrong caption"),
        ({"captions": [{"id": 1, "image_id": 1, "caption": "\ud83d"}]}, r"annotations\[0\] has a wrong caption"),
        ({"images": [7]}, r"captions_val2014\.json: .*: images\[0\] has a wrong id"),
        ({"objects": [{"image_id": 1, "category_id": 7}]}, r"instances_val2014\.json: .* category 7, which it lacks"),
        ({"categories": {}}, r"instances_val2014\.json: .* lacks a list of categories or annotations"),
    ],
)
def test_annotations_that_are_none_of_cocos(tmp_path: Path, changes: dict[str, object], said: str) -> None:
    write_coco(tmp_path, **changes)
    with pytest.raises(UserError, match=said):
        split_coco(tmp_path, tmp_path / "out", "animal", None)


@pytest.mark.parametrize("text", ["[]", "7", '{"images": ', "[" * 100_000, '"\ud83d'])
def test_other_json_in_place_of_annotations(tmp_path: Path, text: str) -> None:
    write_coco(tmp_path)
    (tmp_path / "captions_val2014.json").write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(
        UserError, match=r"captions_val2014\.json: .*download it with `randcond fetch coco-annotations`"
    ):
        split_coco(tmp_path, tmp_path / "out", "animal", None)


def test_two_captions_of_one_image_in_a_list_for_coco(tmp_path: Path) -> None:
    write_coco(tmp_path)
    (tmp_path / "list.csv").write_bytes(LIST + b"a.png,another\n")
    with pytest.raises(UserError, match=r"list\.csv, line 4: a\.png has another caption in line 2"):
        split_coco(tmp_path, tmp_path / "out", "animal", tmp_path / "list.csv")


@pytest.mark.parametrize("codec", ["utf-8-sig", "utf-16", "utf-16-le"])
def test_lines_in_other_encodings(tmp_path: Path, codec: str) -> None:
    """The lists of T2I-CompBench, of words, and of WordNet's nouns."""
    (tmp_path / "color_val.txt").write_bytes("a red cup\tcolor\r\nun café bleu\r\n".encode(codec))
    assert read_prompts(tmp_path, "color") == ["a red cup", "un café bleu"]
    (tmp_path / "words.txt").write_bytes("# animals\nchat\nélan\n".encode(codec))
    assert read_words(tmp_path / "words.txt").find("un élan") == "élan"


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"a red cup\ncaf\xe9\n", r"color_val\.txt, line 2: not UTF-8 \(byte 0xe9 at column 4; Latin-1\?\)"),
        (b"a red cup\na\rb\n", r"color_val\.txt, line 2: has a carriage return"),
        (b"a red cup\na\0b\n", r"color_val\.txt, line 2: has a NUL byte"),
        (gzip.compress(b"a red cup\n"), r"color_val\.txt: contains gzip data"),
    ],
)
def test_lists_of_compbench_that_are_no_text(tmp_path: Path, data: bytes, said: str) -> None:
    (tmp_path / "color_val.txt").write_bytes(data)
    with pytest.raises(UserError, match=said):
        read_prompts(tmp_path, "color")


def test_a_damaged_line_of_generated_prompts(tmp_path: Path) -> None:
    write_json(tmp_path / "prompts.json", {})
    (tmp_path / "prompts.jsonl").write_text('{"caption": "a", "noun": "b"}\n{"caption": "c"}\n')
    with pytest.raises(UserError, match=r"prompts\.jsonl, line 2: has no key noun"):
        sample(str(tmp_path), n=1)


# Names of files.


@pytest.mark.parametrize("name", ["a[1].txt", "a?.txt", "a*.txt", "a::b.txt", "#a.txt", "a b.txt", "é.txt", "a.TXT"])
def test_a_file_is_found_whatever_its_name(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("a cat\n")
    (tmp_path / "a1.txt").write_text("a dog\n")
    source = str(tmp_path / name)
    assert expand(source) == [source]
    build(tmp_path / "pool", [source])
    assert list(open_pool(tmp_path / "pool")) == ["a cat"]


@pytest.mark.parametrize("name", ["set[1]", "set?", "a::b"])
def test_a_folder_is_found_whatever_its_name(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    (tmp_path / name / "a.txt").write_text("a cat\n")
    found = [str(tmp_path / name / "a.txt")]
    assert expand(str(tmp_path / name)) == found
    assert expand(str(tmp_path / name / "*.txt")) == found


def test_globs_that_match_nothing_or_are_wrong(tmp_path: Path) -> None:
    for pattern in ("*.txt", "none/*.txt", "[.txt", "a?.csv"):
        with pytest.raises(UserError, match="contains no caption file"):
            expand(str(tmp_path / pattern))
    with pytest.raises(UserError, match=r"'\*\*' can only be an entire path component"):
        expand(str(tmp_path / "a**.txt"))


def test_a_folder_is_walked_without_loops_and_without_hidden_files(tmp_path: Path) -> None:
    top = tmp_path / "in"
    for name in ("b/c.txt", "a.txt", ".hidden.txt", ".git/d.txt", "b/._c.txt", "notes.md"):
        (top / name).parent.mkdir(parents=True, exist_ok=True)
        (top / name).write_text(name)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/e.csv").write_text("caption\nx\n")
    (top / "b/up").symlink_to(top)
    (top / "a-link").symlink_to(top / "b")
    (top / "more").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere/back").symlink_to(top)
    assert [os.path.relpath(file, top) for file in expand(str(top))] == ["a.txt", "b/c.txt", "more/e.csv"]
    assert [os.path.relpath(file, top) for file in expand(str(top / "**/*.txt"))] == ["a.txt", "b/c.txt"]
    assert [os.path.relpath(file, top) for file in expand(str(top / "*.txt"))] == ["a.txt"]
    assert [os.path.relpath(file, top) for file in expand(str(top / ".h*.txt"))] == [".hidden.txt"]


@pytest.mark.parametrize("kind", ["a pipe", "a socket", "a device", "a link to nothing", "a link to itself"])
@pytest.mark.parametrize("inside", [False, True])
def test_what_is_no_file_is_refused(tmp_path: Path, kind: str, inside: bool) -> None:
    path = tmp_path / "in/a.txt"
    path.parent.mkdir()
    if kind == "a pipe":
        os.mkfifo(path)
    elif kind == "a socket":
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(os.path.relpath(path))  # the length of such a path is limited
    else:
        targets = {"a device": "/dev/null", "a link to nothing": "none", "a link to itself": "a.txt"}
        path.symlink_to(targets[kind])
    said = "no such file" if "link" in kind else "is a pipe, a socket or a device, expected a file"
    with pytest.raises(UserError, match=rf"caption source .*a\.txt: {said}"):
        expand(str(path.parent if inside else path))


HOSTILE = """
import resource, sys
from pathlib import Path
from randcond.data.captions.pool import build
from randcond.launch.errors import UserError
used = int(Path("/proc/self/status").read_text().split("VmData:")[1].split()[0]) * 1024
resource.setrlimit(resource.RLIMIT_DATA, (used + (2 << 30),) * 2)
try:
    print(build(Path(sys.argv[1]) / "pool", [sys.argv[2]], skip=sys.argv[3] == "skip")["dropped"])
except UserError as error:
    print(error)
"""


def endless(folder: Path, suffix: str, size: int) -> Path:
    """Writes a small file that decompresses to `size` MiB without a line end."""
    import zstandard

    path, piece = folder / f"a.txt.{suffix}", bytes(b"x" * (1 << 20))
    if suffix == "zst":
        with path.open("wb") as file, zstandard.ZstdCompressor(level=1).stream_writer(file) as out:
            for _ in range(size):
                out.write(piece)
    else:
        path.write_bytes(gzip.compress(piece, 1) * size)
    return path


def open_quotes(folder: Path, row: bytes, size: int) -> Path:
    """Writes csv of a size in bytes in which each row's quote is open."""
    path = folder / "a.csv"
    path.write_bytes(b"a,caption\n" + row * (size // len(row)))
    return path


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("make", "skip", "said"),
    [
        (lambda folder: endless(folder, "gz", 4096), "stop", "line 1: is longer than 16 MB"),
        (lambda folder: endless(folder, "zst", 4096), "stop", "line 1: is longer than 16 MB"),
        (lambda folder: endless(folder, "zst", 1024), "skip", "{'line too long': 1}"),
        (lambda folder: open_quotes(folder, b'a","b\n', 20_000_000), "stop", "line 2: has a quote that"),
        (lambda folder: open_quotes(folder, b'a","b\n', 20_000_000), "skip", "{'unclosed quote': "),
        (lambda folder: open_quotes(folder, b'1,"a\n', 2_000_000), "skip", "{'unclosed quote': 400000}"),
    ],
)
def test_hostile_files_need_little_memory(tmp_path: Path, make: Callable[[Path], Path], skip: str, said: str) -> None:
    words = [sys.executable, "-c", HOSTILE, str(tmp_path), str(make(tmp_path)), skip]
    done = subprocess.run(words, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert said in done.stdout
