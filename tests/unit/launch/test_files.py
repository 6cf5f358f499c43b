"""Files and folders that are replaced whole."""

import multiprocessing
import os
from pathlib import Path

import pytest

from randcond.launch.runtime.files import atomic_write


def test_a_folder_is_replaced_by_a_whole_one(tmp_path: Path) -> None:
    folder = tmp_path / "student"
    for text in ("first", "second"):
        with atomic_write(folder) as temporary:
            temporary.mkdir()
            (temporary / text).write_text(text)
        assert [path.name for path in folder.iterdir()] == [text]
    assert [path.name for path in tmp_path.iterdir()] == ["student"]


@pytest.mark.parametrize("fails", [0, 1])
def test_the_old_folder_stays_if_it_is_not_replaced(
    tmp_path: Path, fails: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`fails`: how many renames succeed before one fails."""
    (tmp_path / "student").mkdir()
    (tmp_path / "student/first").touch()
    inner, done = os.replace, []

    def replace(old: Path, new: Path) -> None:
        done.append(new)
        if len(done) == fails + 1:
            raise OSError(5, "input/output error")
        inner(old, new)

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(OSError), atomic_write(tmp_path / "student") as temporary:
        temporary.mkdir()
    assert [path.relative_to(tmp_path) for path in tmp_path.rglob("*")] == [Path("student"), Path("student/first")]


def _killed_while_it_writes(folder: Path) -> None:
    with atomic_write(folder) as temporary:
        temporary.mkdir()
        temporary.with_suffix(".old").mkdir()
        os._exit(9)


def test_what_a_killed_process_left_is_restored_or_removed(tmp_path: Path) -> None:
    process = multiprocessing.get_context("fork").Process(target=_killed_while_it_writes, args=(tmp_path / "student",))
    process.start()
    process.join()
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".old", ".part"]
    with pytest.raises(ZeroDivisionError), atomic_write(tmp_path / "student"):
        raise ZeroDivisionError  # the old folder is back before the new one is written
    assert [path.name for path in tmp_path.iterdir()] == ["student"]
    with atomic_write(tmp_path / "student") as temporary:
        temporary.mkdir()
    assert [path.name for path in tmp_path.iterdir()] == ["student"]
