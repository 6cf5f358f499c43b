"""Odd names of caption files and folders: signs of globs, links, loops, hidden files, pipes and devices."""

import os
import socket
from pathlib import Path

import pytest

from randcond.data.captions.pool import build, open_pool
from randcond.data.captions.sources import expand
from randcond.launch.errors import UserError


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
