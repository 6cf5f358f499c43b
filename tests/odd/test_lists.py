"""Odd evaluation lists, splits, image lists and annotations."""

import gzip
import json
import re
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from randcond.data.cache.captioned_images import find_pictures
from randcond.data.concepts.coco import split_coco
from randcond.data.concepts.words import read_words
from randcond.data.texts.datafree_command import sample
from randcond.eval.compbench.prompts import read_prompts
from randcond.eval.images.prompts import Prompts, choose_prompts
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


def write_list(path: Path, rows: list[tuple[str, str]]) -> str:
    """Writes a list with the columns file_name and caption as its suffix says; a list of captions alone as txt."""
    if path.suffix == ".parquet":
        pq.write_table(
            pa.table(dict(zip(("file_name", "caption"), map(list, zip(*rows, strict=True)), strict=True))), path
        )
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps({"file_name": image, "caption": text}) + "\n" for image, text in rows))
    elif path.suffix == ".txt":
        path.write_text("".join(f"{text}\n" for _, text in rows))
    else:
        data = "".join(f"{image},{text}\n" for image, text in [("file_name", "caption"), *rows]).encode()
        path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return str(path)


def chosen(captions: str, unseen: str) -> Prompts:
    words = [f"eval.captions=[{captions}]", f"eval.unseen={unseen}", "eval.size=null", "cache.exclude=[]"]
    return choose_prompts(load_config("demo-with", words))


OTHER_KINDS = ["list.jsonl", "list.csv.gz", "list.parquet"]
TWO = [("a.png", "a cat"), ("b.png", "a dog")]


@pytest.mark.parametrize("name", OTHER_KINDS)
def test_images_of_an_evaluation_list_of_another_kind(tmp_path: Path, name: str) -> None:
    """Before, their file names were passed over, and the images of a list of unseen ones counted as seen."""
    write_list(tmp_path / name, TWO)
    assert evaluation(tmp_path, name) == ["a.png", "b.png"]
    csv = write_list(tmp_path / "other.csv", [("b.png", "another")])
    assert chosen(str(tmp_path / name), csv).splits["unseen"] == [1]
    csv = write_list(tmp_path / "other.csv", TWO)
    assert chosen(csv, write_list(tmp_path / name, [("b.png", "another")])).splits["unseen"] == [1]


@pytest.mark.parametrize("unseen", [*OTHER_KINDS, "list.txt"])
@pytest.mark.parametrize("name", OTHER_KINDS)
def test_unseen_captions_of_a_list_of_another_kind(tmp_path: Path, name: str, unseen: str) -> None:
    """Captions tell its rows apart, as in evaluations of older versions: all of them, whatever image they name."""
    rows = [(f"{image}.png", f"caption {number} of {image}") for image in "ab" for number in range(5)]
    listed = [("a.png", "caption 2 of a"), ("a.png", "caption 3 of b")]
    found = chosen(write_list(tmp_path / f"all-{name}", rows), write_list(tmp_path / f"unseen-{unseen}", listed))
    assert found.captions == [caption for _, caption in rows] and found.splits["unseen"] == [2, 8]
    with pytest.raises(UserError, match="more than once, the first is 'caption 2 of a', rows 3, 11"):
        chosen(
            write_list(tmp_path / f"all-{name}", [*rows, ("c.png", "caption 2 of a")]), str(tmp_path / f"all-{name}")
        )


@pytest.mark.parametrize("unseen", ["list.csv", "list.jsonl"])
def test_unseen_images_of_a_list_in_csv(tmp_path: Path, unseen: str) -> None:
    rows = [("a.png", "a cat"), ("b.png", "a cat"), ("c.png", "a dog")]
    found = chosen(
        write_list(tmp_path / "all.csv", rows), write_list(tmp_path / unseen, [("b.png", "a dog"), ("c.png", "a fox")])
    )
    assert found.splits["unseen"] == [1, 2]
    with pytest.raises(UserError, match=r"more than once, the first is 'b\.png', rows 2, 4"):
        chosen(write_list(tmp_path / "all.csv", [*rows, ("b.png", "a cow")]), str(tmp_path / unseen))


@pytest.mark.parametrize("image", [7, None, ["a.png"], "no key"])
def test_wrong_names_of_images_in_a_list_of_captions(tmp_path: Path, image: object) -> None:
    rows = [{"caption": "a cat", "file_name": "a.png"}, {"caption": "a dog", "file_name": image}]
    if image == "no key":
        del rows[1]["file_name"]
    (tmp_path / "list.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "unseen.txt").write_text("a dog\n")
    assert chosen(str(tmp_path / "list.jsonl"), str(tmp_path / "unseen.txt")).splits["unseen"] == [1]


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
