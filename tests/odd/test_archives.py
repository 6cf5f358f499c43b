"""Odd archives: tars of pairs for `cache.images`, and downloaded tar, tar.gz and zip files.

Each is whole or refused with the place of the damage. With on_error=skip, the pairs before the damage are kept.
"""

import gzip
import struct
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from randcond.data.cache.captioned_images import find_pictures, read_picture
from randcond.data.images.left_out import LeftOut
from randcond.data.inputs.archives import unpack, unpacked_path
from randcond.launch.errors import UserError
from tests.odd.archive_cases import ARCHIVES, FETCH, FILES, Archive, zip_of
from tests.odd.tar_cases import COLOURS, PAIRS, PNG, WHOLE, Pairs, pair
from tests.support.odd_tars import END, checked, header, member, sized, tar, zipped


@pytest.mark.parametrize("case", PAIRS.values(), ids=PAIRS.keys())
def test_a_tar_of_pairs_is_whole_or_refused(tmp_path: Path, case: Pairs) -> None:
    path = tmp_path / "pairs.tar"
    path.write_bytes(case.data)
    if case.error:
        with pytest.raises(UserError, match=case.error) as raised:
            find_pictures(str(path))
        assert str(raised.value).startswith("cache.images: ") and str(raised.value).isprintable()
    else:
        assert len(find_pictures(str(path))) == case.kept
    left_out, passed_over = LeftOut(skip=True), Counter[str]()
    if not case.kept:
        with pytest.raises(UserError, match="contains no image with a caption: 0 images taken"):
            find_pictures(str(path), left_out, passed_over)
        return
    found = find_pictures(str(path), left_out, passed_over)
    assert len(found) == case.kept
    assert left_out.counts == case.left_out and passed_over == case.passed_over
    assert all(np.array_equal(np.asarray(read_picture(picture)), COLOURS) for picture in found)


def test_a_caption_with_a_byte_order_mark(tmp_path: Path) -> None:
    (tmp_path / "pairs.tar").write_bytes(tar([member("1.png", PNG), member("1.txt", b"\xef\xbb\xbfa picture")]))
    assert find_pictures(str(tmp_path / "pairs.tar"))[0].caption == "a picture"


def test_a_folder_of_tars_with_other_files(tmp_path: Path) -> None:
    """Hidden files beside the tars, as macOS leaves them, and images are counted."""
    (tmp_path / "a.tar").write_bytes(WHOLE)
    (tmp_path / "B.TAR").write_bytes(tar(pair(4)))
    (tmp_path / "._a.tar").write_bytes(b"\0\5\x16\7")
    (tmp_path / "5.png").write_bytes(PNG)
    passed_over = Counter[str]()
    found = find_pictures(str(tmp_path), LeftOut(skip=False), passed_over)
    assert [picture.name for picture in found] == ["B.TAR/4", "a.tar/1", "a.tar/2", "a.tar/3"]
    assert passed_over == {"hidden": 1, "image beside the tars": 1}


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("case", ARCHIVES.values(), ids=ARCHIVES.keys())
def test_an_archive_is_unpacked_whole_or_not_at_all(tmp_path: Path, case: Archive) -> None:
    archive = tmp_path / "in" / case.name
    archive.parent.mkdir()
    archive.write_bytes(case.data)
    if case.error:
        with pytest.raises(UserError, match=case.error) as raised:
            unpack(archive)
        assert str(raised.value).startswith(f"{archive}: ") and str(raised.value).endswith(FETCH)
        assert [path.name for path in archive.parent.iterdir()] == [case.name]
        assert [path.name for path in tmp_path.iterdir()] == ["in"]
        return
    unpack(archive)
    folder = unpacked_path(archive)
    found = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert found == dict(FILES)


@pytest.mark.parametrize("name", ["x.zip", "x.tar"])
def test_an_archive_larger_than_the_disk_is_refused_before_unpacking(tmp_path: Path, name: str) -> None:
    """The table claims, or the (sparse) file has, ten terabytes or more."""
    archive = tmp_path / name
    if name == "x.zip":
        archive.write_bytes(huge_zip(10**14))
    else:
        with archive.open("wb") as file:
            file.write(sized("1", 10 << 40))
            file.seek(512 + (10 << 40))
            file.write(END)
    with pytest.raises(UserError, match=r"needs 10[\d,]+ bytes when unpacked, but .* has [\d,]+ free; free some space"):
        unpack(archive)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def huge_zip(size: int) -> bytes:
    """Returns a zip whose one entry claims `size` bytes, by a zip64 field."""
    data = zip_of(("1", b"x"))
    at = data.find(b"PK\1\2")
    extra = struct.pack("<HHQ", 1, 8, size)
    entry = data[at:]
    end = entry.find(b"PK\5\6")
    record = entry[:24] + b"\xff" * 4 + entry[28:30] + struct.pack("<H", len(extra)) + entry[32:end] + extra
    tail = entry[end : end + 12] + struct.pack("<I", len(record)) + entry[end + 16 :]
    return data[:at] + record + tail


def test_what_a_tar_holds_is_unpacked_as_it_is(tmp_path: Path) -> None:
    """Empty files and folders, names in any alphabet, files of exactly a block."""
    files = {"leer": b"", "ordner/größe.txt": b"x" * 512, "日本/1": b"y" * 1023, "ordner/b": b"z" * 1024}
    members = [member("nichts", type=tarfile.DIRTYPE), *(member(name, data) for name, data in files.items())]
    for name, data in (("a.tar", tar(members)), ("b.tar.gz", gzip.compress(tar(members))), ("c.zip", zipped(files))):
        (tmp_path / name).write_bytes(data)
        unpack(tmp_path / name)
        folder = unpacked_path(tmp_path / name)
        assert {
            str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()
        } == files
    assert (tmp_path / "a/nichts").is_dir() and (tmp_path / "b/nichts").is_dir()
    assert header(tarfile.TarInfo("x")) == checked(header(tarfile.TarInfo("x")))


def test_the_corpus_is_as_large_as_it_should_be() -> None:
    assert len(PAIRS) >= 25 and len(ARCHIVES) >= 25
