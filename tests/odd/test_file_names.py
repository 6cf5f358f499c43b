"""Odd names of caption files and folders: signs of globs, links, loops, hidden files, pipes and devices."""

import os
import socket
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

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


GLOBS = {  # pattern -> files, in a folder with the folders `real` and `real/deep`, and links to them and to itself
    "link/*.txt": ["link/a.txt"],
    "l*k/*.txt": ["link/a.txt"],
    "l[i]nk/a.txt": ["link/a.txt"],
    "l*/*/*.txt": ["link/deep/b.txt", "link/itself/a.txt"],
    "link/**/*.txt": ["link/a.txt", "link/deep/b.txt"],
    "l*/**/b.txt": ["link/deep/b.txt"],
    "**/link/*.txt": ["link/a.txt"],
    "**/up/real/*.txt": ["real/deep/up/real/a.txt"],
    "up*/*.txt": [],
    "*/*.txt": ["real/a.txt"],
    "*/deep/*.txt": ["real/deep/b.txt"],
    "**/*.txt": ["real/a.txt", "real/deep/b.txt"],
    "**/deep/**": ["real/deep/b.txt", "real/deep/up/real/a.txt"],
    "**": ["real/a.txt", "real/deep/b.txt"],
    "real/deep/up/**/a.txt": ["real/deep/up/real/a.txt"],
    "real/../l*/*.txt": ["link/a.txt"],
    ".git/*.txt": [".git/c.txt"],
    ".g*/*.txt": [".git/c.txt"],
}


@pytest.mark.parametrize("pattern", GLOBS)
def test_a_glob_leads_through_links(tmp_path: Path, pattern: str) -> None:
    for name in ("real/a.txt", "real/deep/b.txt", ".git/c.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("a cat\n")
    (tmp_path / "link").symlink_to("real")
    (tmp_path / "real/deep/up").symlink_to(tmp_path)
    (tmp_path / "real/itself").symlink_to(".")
    if GLOBS[pattern]:
        assert [os.path.relpath(file, tmp_path) for file in expand(str(tmp_path / pattern))] == GLOBS[pattern]
    else:
        with pytest.raises(UserError, match="contains no caption file"):
            expand(str(tmp_path / pattern))


def test_thirty_folders_that_link_to_each_other_are_read_once(tmp_path: Path) -> None:
    folders = [tmp_path / f"{number}" for number in range(30)]
    for folder in folders:
        folder.mkdir()
        (folder / "a.txt").write_text("a cat\n")
    for folder in folders:
        for other in folders:
            (folder / f"to-{other.name}").symlink_to(other)
    files = sorted(str(folder / "a.txt") for folder in folders)
    assert expand(str(tmp_path)) == expand(str(tmp_path / "**/*.txt")) == files
    assert len(expand(str(tmp_path / "*/*/*/*.txt"))) == 30


@pytest.fixture
def readable() -> Iterator[Path]:
    """A folder of files beside a folder that can't be read, for a user who isn't root."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        for below in ("good/a.txt", "bad/b.txt"):
            (folder / below).parent.mkdir()
            (folder / below).write_text("a cat\n")
        (folder / "bad").chmod(0)
        user = os.geteuid()
        try:
            if user == 0:
                os.seteuid(65534)
            yield folder
        finally:
            os.seteuid(user)
            (folder / "bad").chmod(0o755)


@pytest.mark.parametrize("pattern", ["good/*.txt", "g*/*.txt", "g*/**/*.txt", "g*", "[g]ood/a.txt"])
def test_a_glob_does_not_read_folders_that_it_does_not_need(readable: Path, pattern: str) -> None:
    if pattern == "g*":
        with pytest.raises(UserError, match="contains no caption file"):
            expand(str(readable / pattern))
    else:
        assert expand(str(readable / pattern)) == [str(readable / "good/a.txt")]


@pytest.mark.parametrize("pattern", ["", "*/*.txt", "**/*.txt", "b*/*.txt"])
def test_a_folder_that_can_not_be_read_is_named(readable: Path, pattern: str) -> None:
    with pytest.raises(UserError, match=r"caption source .*/bad: the folder can't be read \(Permission denied\)"):
        expand(str(readable / pattern))


@pytest.mark.parametrize("pattern", ["*/b.txt", "[b]ad/b.txt", "bad/b.txt*"])
def test_a_folder_that_can_not_be_entered_is_named(readable: Path, pattern: str) -> None:
    with pytest.raises(UserError, match=r"caption source .*/bad: the folder can't be read \(Permission denied\)"):
        expand(str(readable / pattern))


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
