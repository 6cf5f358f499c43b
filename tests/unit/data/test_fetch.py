"""`randcond fetch`: the list of inputs, and downloads from a real server whose connections are cut."""

import hashlib
import io
import json
import tarfile
import zipfile
from pathlib import Path

import pytest

from randcond.data.captions.caption_lists import read_source
from randcond.data.inputs import fetch as fetching
from randcond.data.inputs import fetch_command as inputs
from randcond.data.inputs.catalogue import known_inputs, missing_input
from randcond.launch.errors import UserError
from tests.support import warm
from tests.support.web import plain, served


def test_the_table_says_what_is_needed(capsys: pytest.CaptureFixture[str]) -> None:
    inputs.fetch(list=True)
    said = capsys.readouterr().out
    for name, entry in known_inputs().items():
        assert name in said and entry.licence in said and entry.what in said
        assert all(address.startswith(("https://", "http://")) for address in entry.files)
    with pytest.raises(UserError, match="unknown input 'coco'; known: laion-212k"):
        inputs.fetch("coco")


def write_tar(path: Path, names: list[str]) -> None:
    with tarfile.open(path, "w:gz") as tar:
        for name in names:
            member = tarfile.TarInfo(name)
            member.size = 100_000
            tar.addfile(member, io.BytesIO(bytes(range(256)) * 390 + bytes(160)))


def test_an_archive_is_brought_over_a_line_that_is_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetching, "PATIENCE", 0.01)
    monkeypatch.setattr(fetching, "BLOCK", 100)
    (tmp_path / "mirror").mkdir()
    archive = tmp_path / "mirror/preprocessed_11k.tar.gz"
    write_tar(archive, [f"pictures/{number}.jpg" for number in range(3)])
    checksum = hashlib.sha256(archive.read_bytes()).hexdigest()
    with served(tmp_path / "mirror", cuts=[500, 900, 350]) as url:
        inputs.fetch("laion-11k", from_=f"{url}/preprocessed_11k.tar.gz", to=str(tmp_path / "inputs"))
    folder = tmp_path / "inputs/laion-11k"
    assert sorted(path.name for path in folder.iterdir()) == [".lock", "fetched.json", "preprocessed_11k"]
    assert len(list((folder / "preprocessed_11k/pictures").iterdir())) == 3
    note = json.loads((folder / "fetched.json").read_text())
    assert note["files"]["preprocessed_11k.tar.gz"]["sha256"] == checksum
    inputs.fetch("laion-11k", to=str(tmp_path / "inputs"))  # already there: no server is asked
    write_tar(archive, ["other.jpg"])
    (folder / "preprocessed_11k").rename(folder / "gone")
    with pytest.raises(UserError, match=r"checksum is .* expected"):
        inputs.fetch("laion-11k", from_=str(archive), to=str(tmp_path / "inputs"))


def test_a_folder_packed_as_such_has_its_name_once(tmp_path: Path) -> None:
    write_tar(tmp_path / "preprocessed_11k.tar.gz", ["preprocessed_11k/metadata.csv", "preprocessed_11k/0.jpg"])
    inputs.fetch("laion-11k", from_=str(tmp_path), to=str(tmp_path / "inputs"))
    folder = tmp_path / "inputs/laion-11k/preprocessed_11k"
    assert sorted(path.name for path in folder.iterdir()) == ["0.jpg", "metadata.csv"]
    with pytest.raises(UserError, match="animals is not published; create it with `randcond concepts split inputs/an"):
        inputs.fetch("animals", to=str(tmp_path / "inputs"))
    assert "create it with `randcond concepts split" in missing_input("inputs/animals/seen.txt")


def test_several_files_and_files_of_a_page(tmp_path: Path) -> None:
    mirror = tmp_path / "mirror"
    mirror.mkdir()
    for address in known_inputs()["compbench"].files:
        (mirror / Path(address).name).write_text("a red book and a yellow vase\n")
    to = str(tmp_path / "inputs")
    inputs.fetch("compbench", from_=str(mirror), to=to)
    assert len(list((tmp_path / "inputs/compbench").glob("*_val*.txt"))) == 9
    with pytest.raises(UserError, match=r"expected a folder with 9 files, but .* does not contain"):
        inputs.fetch("compbench", from_=str(mirror / "color_val.txt"), to=str(tmp_path / "other"))
    for number in range(2):
        (mirror / f"part-0000{number}-x.parquet").write_bytes(b"x" * (number + 1))
    pages = "".join(f'<a href="part-0000{number}-x.parquet">part</a>' for number in range(2))
    (mirror / "index.html").write_text(f"<html>{pages}</html>")
    inputs.fetch("laion-400m-captions", from_=str(mirror), to=to)
    assert len(list((tmp_path / "inputs/laion-400m-captions").glob("*.parquet"))) == 2
    with pytest.raises(UserError, match=r"lists no file part-0000"):
        inputs.fetch("laion-400m-captions", from_=str(tmp_path / "inputs/compbench"), to=str(tmp_path / "other"))


def test_archives_that_are_none_or_reach_out(tmp_path: Path) -> None:
    (tmp_path / "annotations_trainval2014.zip").write_bytes(b"PK no zip")
    with pytest.raises(UserError, match=r"annotations_trainval2014\.zip: File is not a zip file; remove it"):
        inputs.fetch("coco-annotations", from_=str(tmp_path), to=str(tmp_path / "inputs"))
    with zipfile.ZipFile(tmp_path / "val2014.zip", "w") as archive:
        archive.writestr("../../outside.txt", "x")
    with pytest.raises(UserError, match=r"val2014\.zip: \.\./\.\./outside\.txt lies outside the archive's folder"):
        inputs.fetch("coco-images", from_=str(tmp_path), to=str(tmp_path / "inputs"))
    assert not (tmp_path / "outside.txt").exists() and not (tmp_path / "inputs/outside.txt").exists()
    write_tar(tmp_path / "preprocessed_11k.tar.gz", ["../outside.jpg"])
    with pytest.raises(UserError, match="outside"):
        inputs.fetch("laion-11k", from_=str(tmp_path), to=str(tmp_path / "inputs"))
    link = tarfile.TarInfo("preprocessed_11k/link")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    with tarfile.open(tmp_path / "preprocessed_11k.tar.gz", "w:gz") as archive:
        archive.addfile(link)
    with pytest.raises(UserError, match="preprocessed_11k/link is a link, not a regular file; remove it"):
        inputs.fetch("laion-11k", from_=str(tmp_path), to=str(tmp_path / "elsewhere"))


def test_a_file_of_another_name_comes_under_its_own(tmp_path: Path) -> None:
    (tmp_path / "mirror").mkdir()
    (tmp_path / "mirror/metadata.csv").write_text("file_name,text\n")
    with served(tmp_path / "mirror") as url:
        inputs.fetch("coco-prompts", from_=url, to=str(tmp_path / "one"))  # a folder, without a slash at the end
    (tmp_path / "mirror/metadata.csv").rename(tmp_path / "mine.csv")
    inputs.fetch("coco-prompts", from_=str(tmp_path / "mine.csv"), to=str(tmp_path / "two"))
    for folder in ("one", "two"):
        assert (tmp_path / folder / "coco-prompts/metadata.csv").read_text() == "file_name,text\n"


def test_a_server_without_ranges_does_not_spoil_what_is_gone_on_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetching, "BLOCK", 1000)
    (tmp_path / "in").mkdir()
    (tmp_path / "in/file").write_bytes(bytes(range(250)) * 20)
    (tmp_path / "file.part").write_bytes(bytes(range(250)) * 6)
    with plain(tmp_path / "in") as url:
        fetching.fetch(f"{url}/file", tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == bytes(range(250)) * 20


def test_what_lacks_an_input_names_the_command() -> None:
    with pytest.raises(UserError, match="no such file; download it with `randcond fetch coco-prompts`"):
        list(read_source("inputs/coco-prompts/metadata.csv"))
    assert missing_input("elsewhere/coco-prompts/metadata.csv") == ""
    done = warm.run([warm.Command("randcond.launch.cli", ["fetch", "--from"], Path.cwd())])[0]
    assert done.returncode == 2 and "--from" in done.stderr and "--from_" not in done.stderr


def test_a_checksum_that_a_name_holds_the_beginning_of(tmp_path: Path) -> None:
    name = Path(known_inputs()["inception"].files[0]).name
    (tmp_path / "from").mkdir()
    (tmp_path / "from" / name).write_bytes(b"other weights")
    with pytest.raises(UserError, match=r"checksum is .* expected 6726825d"):
        inputs.fetch("inception", from_=str(tmp_path / "from"), to=str(tmp_path / "inputs"))
    assert not (tmp_path / "inputs" / "inception" / name).exists()
