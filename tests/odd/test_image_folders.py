"""Odd folders of captioned images, and tars that can't be opened: what is taken, passed over, left out and refused."""

import os
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from randcond.data.cache.captioned_images import find_pictures
from randcond.data.images.left_out import LeftOut
from randcond.launch.errors import UserError
from tests.odd.image_formats import COLOURS, palette_image
from tests.odd.tar_cases import WHOLE
from tests.support.odd_images import saved

JPEG, GIF = saved(COLOURS, "JPEG"), saved(palette_image(), "GIF")


@dataclass(frozen=True)
class Case:
    """Files beside a.jpg, a.txt, b.jpg and b.txt, and the right outcome."""

    files: dict[str, bytes]
    passed_over: dict[str, int] = field(default_factory=dict)
    error: str = ""  # with on_error=stop
    left_out: dict[str, int] = field(default_factory=dict)  # with on_error=skip
    more: list[str] = field(default_factory=list)  # images taken beside a.jpg and b.jpg


CASES = {
    "json": Case({"a.json": b"{}"}, {"suffix .json": 1}),
    "csv": Case({"b.csv": b"x,y\n"}, {"suffix .csv": 1}),
    "hidden": Case({".DS_Store": b"\0", "._a.jpg": b"\0"}, {"hidden": 2}),
    "Thumbs.db": Case({"Thumbs.db": b"\0"}, {"suffix .db": 1}),
    "other captions": Case({"a.caption": b"x", "b.npz": b""}, {"suffix .caption": 1, "suffix .npz": 1}),
    "a readme": Case({"README.md": b"", "LICENSE": b""}, {"suffix .md": 1, "without a suffix": 1}),
    "a text of no image": Case({"notes.txt": b""}),
    "a gif of the same picture": Case({"a.gif": GIF}, {"other format of a captioned image": 1}),
    "layers of the same picture": Case({"a.psd": b"", "b.TIF": b""}, {"other format of a captioned image": 2}),
    "a png of the same picture": Case({"a.png": saved(COLOURS, "PNG")}, more=["a.png"]),  # as every version reads it
    "a cover in another format": Case({"cover.gif": GIF}, {"suffix .gif without a caption": 1}),
    "covers in two other formats": Case(
        {"cover.gif": GIF, "cover.bmp": b""}, {"suffix .gif without a caption": 1, "suffix .bmp without a caption": 1}
    ),
    "an icon": Case({"favicon.ico": b""}, {"suffix .ico without a caption": 1}),
    "a gif with a caption": Case({"c.gif": GIF, "c.txt": b"c"}, more=["c.gif"]),
    "one gif of two has a caption": Case(
        {"c.gif": GIF, "c.txt": b"c", "cover.GIF": GIF}, {}, r"cover\.GIF has no caption", {"no caption": 1}, ["c.gif"]
    ),
    "a jpeg without a caption": Case({"c.jpeg": JPEG}, {}, r"c\.jpeg has no caption; add c\.txt", {"no caption": 1}),
    "two other formats of a caption": Case(
        {"c.bmp": b"", "c.gif": GIF, "c.txt": b"c"},
        {},
        r"c\.gif: is the second image of c\.txt; remove one of them",
        {"second image of a caption": 1},
        ["c.bmp"],
    ),
    "a table whose files are missing": Case(
        {"metadata.csv": f"file_name,text\na.jpg,a\nb.jpg,b\nnone.jpg,x\n{'n' * 300}.jpg,x\n,x\n".encode()},
        {},
        r"line 4: no such file: none\.jpg",
        {"no such file": 2, "no file name": 1},
    ),
    "a table with other files": Case(
        {
            "metadata.jsonl": b'{"file_name": "a.jpg", "text": "a"}\n{"file_name": "b.jpg", "text": "b"}\n',
            "c.jpg": JPEG,
        },
        {"image that metadata.jsonl does not list": 1},
    ),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_what_stands_beside_captioned_images(tmp_path: Path, case: Case) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.jpg").write_bytes(JPEG)
        (tmp_path / f"{name}.txt").write_text(name)
    for name, data in case.files.items():
        (tmp_path / name).write_bytes(data)
    passed_over, left_out = Counter[str](), LeftOut(skip=True)
    if case.error:
        with pytest.raises(UserError, match=case.error):
            find_pictures(str(tmp_path))
    else:
        find_pictures(str(tmp_path))
    found = find_pictures(str(tmp_path), left_out, passed_over)
    assert sorted(picture.name for picture in found) == sorted(["a.jpg", "b.jpg", *case.more])
    assert passed_over == case.passed_over and left_out.counts == case.left_out


@pytest.mark.parametrize("kind", ["a folder", "a broken link", "a link to itself", "a pipe", "a device"])
def test_a_tar_that_cannot_be_opened_is_named(tmp_path: Path, kind: str) -> None:
    """A glob finds it. With on_error=skip it is counted, and the pairs of the other tar are used."""
    (tmp_path / "a.tar").write_bytes(WHOLE)
    bad = tmp_path / "b.tar"
    if kind == "a folder":
        bad.mkdir()
    elif kind == "a pipe":
        os.mkfifo(bad)
    else:
        bad.symlink_to({"a broken link": "nothing", "a link to itself": "b.tar"}.get(kind, "/dev/null"))
    with pytest.raises(UserError, match=r"^cache\.images: .*b\.tar: (is not a regular file|can't be read \(.*\)); it "):
        find_pictures(str(tmp_path / "*.tar"))
    left_out = LeftOut(skip=True)
    assert len(find_pictures(str(tmp_path / "*.tar"), left_out)) == 3
    assert left_out.counts.total() == 1 and "b.tar" in str(left_out)
    if bad.is_fifo():
        with pytest.raises(UserError, match="is not a regular file"):
            find_pictures(str(bad))
