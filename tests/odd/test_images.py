"""Odd images: formats, kinds of pixels, rotation, transparency, damage, hostile sizes, names and folders.

Every file goes through what `cache.images` uses (find_pictures, read_picture) and what `randcond eval stats` uses
(statistics_of_folder).
"""

import json
import os
import socket
import subprocess
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import EpsImagePlugin, Image
from torchvision.transforms import v2

from randcond.data.cache.captioned_images import crop_extreme, find_pictures, read_picture, to_square
from randcond.data.images.decode import BadImage
from randcond.data.images.find import find_images
from randcond.data.images.formats import SIGNED, SUFFIXES
from randcond.data.images.left_out import LeftOut
from randcond.eval.scores.real_images import statistics_of_folder
from randcond.launch.config.sections import Eval
from randcond.launch.errors import UserError
from tests.odd.image_damage import CASES, LYING, SPIRIT
from tests.odd.image_formats import COLOURS, FORMATS, SMOOTH, Case
from tests.support import warm
from tests.support.networks import dino_folder
from tests.support.odd_images import saved


def write(folder: Path, case: Case) -> None:
    folder.mkdir(exist_ok=True, parents=True)
    (folder / case.name).write_bytes(case.data)
    (folder / case.name).with_suffix(".txt").write_text("a picture")


def test_the_corpus_is_as_large_as_it_should_be() -> None:
    assert len(CASES) >= 100


@pytest.mark.filterwarnings("ignore:Corrupt EXIF", "ignore:Image was not the expected size")
@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_an_image_is_read_by_the_rules_or_refused(tmp_path: Path, case: Case) -> None:
    write(tmp_path / "in", case)
    (picture,) = find_pictures(str(tmp_path / "in"))
    if case.error:
        with pytest.raises(BadImage, match=case.error):
            read_picture(picture)
        return
    found = read_picture(picture)
    assert case.pixels is not None and found.mode == "RGB"
    pixels = np.asarray(found)
    assert pixels.shape == case.pixels.shape
    assert np.abs(pixels.astype(int) - case.pixels.astype(int)).max() <= case.off


@pytest.mark.filterwarnings("ignore:Corrupt EXIF", "ignore:Image was not the expected size")
def test_an_image_in_a_tar_is_read_by_the_same_rules(tmp_path: Path) -> None:
    from tests.support.odd_tars import member, tar

    members = []
    for number, case in enumerate(CASES.values()):
        suffix = Path(case.name).suffix
        members += [member(f"{number:03d}{suffix}", case.data), member(f"{number:03d}.txt", b"a picture")]
    (tmp_path / "pairs.tar").write_bytes(tar(members))
    pictures = find_pictures(str(tmp_path / "pairs.tar"))
    assert len(pictures) == len(CASES)
    for picture, (name, case) in zip(pictures, CASES.items(), strict=True):
        if case.error:
            with pytest.raises(BadImage):
                read_picture(picture)
        else:
            assert case.pixels is not None
            difference = np.asarray(read_picture(picture)).astype(int) - case.pixels.astype(int)
            assert np.abs(difference).max() <= case.off, name


@pytest.mark.heavy
@pytest.mark.filterwarnings("ignore:Corrupt EXIF", "ignore:Image was not the expected size")
def test_statistics_leave_out_and_count_what_they_cannot_use(tmp_path: Path) -> None:
    """One folder of the whole corpus: stop names the first bad image, skip counts every one by its reason."""
    for number, case in enumerate(CASES.values()):
        write(tmp_path / f"in/{number:03d}", case)
    ev = Eval(dino=str(dino_folder(tmp_path / "dino")), metrics=["fd-dinov2"])
    folder, out = tmp_path / "in", tmp_path / "out"
    with pytest.raises(UserError, match=r"image .*in/\d+/a\.\w+: .*; repair or remove it, or leave it out with --on-"):
        statistics_of_folder(folder, out, ev, None, 32, jpeg=True)
    written = statistics_of_folder(folder, out, ev, None, 32, jpeg=True, on_error="skip")
    good = sum(not case.error for case in CASES.values())
    assert list(written.values()) == [good]
    with np.load(out / "all-dino.npz") as arrays:
        facts = json.loads(str(arrays["facts"]))
    assert sum(facts["left_out"].values()) == len(CASES) - good
    assert facts["passed_over"] == {"suffix .txt": len(CASES)} and facts["reading"] == 2
    assert {"not an image", "damaged", "too large", "empty", "values without a rule"} == set(facts["left_out"])
    with pytest.raises(UserError, match=r"an earlier command left out .*; give --on-error skip again"):
        statistics_of_folder(folder, out, ev, None, 32, jpeg=True)


def test_the_command_says_what_it_took_and_left_out(tmp_path: Path) -> None:
    """`randcond eval stats`: a line with the images taken and passed over, one with those left out."""
    (tmp_path / "in").mkdir()
    for number in range(4):
        (tmp_path / f"in/{number}.png").write_bytes(saved(SMOOTH // (number + 1), "PNG"))
    (tmp_path / "in/4.jpg").write_bytes(SPIRIT)
    (tmp_path / "in/notes.json").write_text("{}")
    (tmp_path / "in/.5.png").write_bytes(b"")
    words = ["eval", "stats", "in", "out", "metrics=[fd-dinov2]", f"dino={dino_folder(tmp_path / 'dino')}"]
    stopped, skipped, wrong = (
        warm.run([warm.Command("randcond.launch.cli", [*words, *more], tmp_path)])[0]
        for more in ([], ["--on-error", "skip"], ["--on-error", "ignore"])
    )
    assert stopped.returncode == 2 and "image in/4.jpg: is not an image: holds PostScript" in stopped.stderr
    assert "Traceback" not in stopped.stderr and "--on-error skip" in stopped.stderr
    assert skipped.returncode == 0, skipped.stderr
    assert "in: 5 images taken, 2 passed over (1 hidden, 1 suffix .json)" in skipped.stdout
    assert "in: left out 1 (1 not an image), the first: image in/4.jpg: " in skipped.stdout
    assert "all-dino.npz: 4 images" in skipped.stdout
    assert wrong.returncode == 2 and "--on-error: is 'ignore', expected stop or skip" in wrong.stderr


def test_statistics_without_facts_about_reading_are_still_read(tmp_path: Path) -> None:
    """Statistics of older versions say nothing about passed-over images, and are accepted."""
    from randcond.eval.scores.statistics import read_statistics

    (tmp_path / "in").mkdir()
    for number in range(3):
        (tmp_path / f"in/{number}.png").write_bytes(saved(SMOOTH // (number + 1), "PNG"))
    ev = Eval(dino=str(dino_folder(tmp_path / "dino")), metrics=["fd-dinov2"])
    (path,) = statistics_of_folder(tmp_path / "in", tmp_path / "out", ev, None, 32, jpeg=False)
    with np.load(path) as arrays:
        content = dict(arrays)
    facts = json.loads(str(content["facts"]))
    assert facts["left_out"] == {} and facts["passed_over"] == {}
    old = {key: value for key, value in facts.items() if key not in ("left_out", "passed_over", "reading")}
    np.savez(path, **{**content, "facts": np.array(json.dumps(old))})
    wanted = {"extractor": facts["extractor"], "jpeg": False}
    assert read_statistics(str(tmp_path / "out"), "all", "dino", wanted, 24).facts == old


def folder_of_oddities(folder: Path) -> None:
    """Builds a folder with links, loops, hidden and special files around 5 images."""
    (folder / "a/b").mkdir(parents=True)
    for place in ("a/1.png", "a/b/2.PNG", "3.png"):
        (folder / place).write_bytes(saved(COLOURS, "PNG"))
    elsewhere = folder.parent / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "4.png").write_bytes(saved(COLOURS, "PNG"))
    (folder / "linked").symlink_to(elsewhere)
    (folder / "linked twice").symlink_to(elsewhere)
    (folder / "5.png").symlink_to(elsewhere / "4.png")
    (folder / "a/b/loop").symlink_to(folder)
    (folder / "a/self").symlink_to(folder / "a/self")
    (folder / "gone.png").symlink_to(folder / "nothing")
    (folder / ".hidden.png").write_bytes(b"")
    (folder / "._3.png").write_bytes(b"\0\5\x16\7")
    (folder / ".git").mkdir()
    (folder / ".git/6.png").write_bytes(saved(COLOURS, "PNG"))
    os.mkfifo(folder / "pipe.png")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(folder / "socket.jpg"))
    (folder / "notes.md").write_text("")
    (folder / "LICENSE").write_text("")
    (folder / "movie.mp4").write_text("")
    (folder / "figure.eps").write_bytes(SPIRIT)
    (folder / "folder.png").mkdir()


def test_a_folder_with_links_loops_and_special_files(tmp_path: Path) -> None:
    folder_of_oddities(tmp_path / "in")
    found = find_images(tmp_path / "in")
    names = [str(path.relative_to(tmp_path / "in")) for path in found.images]
    assert names == ["3.png", "5.png", "a/1.png", "a/b/2.PNG", "linked/4.png"]
    assert found.passed_over == {
        "hidden": 3, "not a regular file": 2, "broken link": 2, "linked folder that was read already": 2,
        "suffix .md": 1, "suffix .mp4": 1, "suffix .eps": 1, "without a suffix": 1,
    }  # fmt: skip
    said = str(found)
    assert said.startswith("5 images taken, 13 passed over (3 hidden, 2 broken link, 2 linked folder that was read")
    left_out, passed_over = LeftOut(skip=True), Counter[str]()
    for name in names[:4]:
        (tmp_path / "in" / name).with_suffix(".txt").write_text("a picture")
    pictures = find_pictures(str(tmp_path / "in"), left_out, passed_over)
    assert [picture.name for picture in pictures] == names[:4] and passed_over == found.passed_over
    assert left_out.counts == {"no caption": 1} and "linked/4.png has no caption" in str(left_out)


@pytest.mark.parametrize(
    "name",
    ["with space.png", "größe.png", "日本.png", "-n.png", "a#b.png", "a%20b.png", "a.b.c.png", "a\nb.png", "[1].png",
     "a::b.png", "a?b.png", "x" * 200 + ".png", os.fsdecode(b"caf\xe9.png")],
    ids=["space", "umlaut", "japanese", "dash", "hash", "percent", "dots", "line break", "brackets", "colons",
         "question mark", "long", "not utf-8"],
)  # fmt: skip
def test_names_of_files(tmp_path: Path, name: str) -> None:
    """Every name is read. An error about it is one line of text."""
    (tmp_path / "in").mkdir()
    try:
        (tmp_path / "in" / name).write_bytes(saved(COLOURS, "PNG"))
    except OSError:
        pytest.skip("this file system has no such names")
    (tmp_path / "in" / name).with_suffix(".txt").write_text("a picture")
    (picture,) = find_pictures(str(tmp_path / "in"))
    assert np.array_equal(np.asarray(read_picture(picture)), COLOURS)
    (tmp_path / "in" / name).write_bytes(b"")
    with pytest.raises(BadImage, match=r"is empty$") as raised:
        read_picture(picture)
    str(raised.value).encode()
    assert str(raised.value).isprintable()
    (tmp_path / "in" / name).with_suffix(".txt").unlink()
    with pytest.raises(UserError, match="has no caption") as raised:
        find_pictures(str(tmp_path / "in"))
    assert str(raised.value).isprintable()


def test_a_name_that_is_not_utf8_goes_through_the_statistics(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for name in (b"caf\xe9.png", b"a\nb.png"):
        (tmp_path / "in" / os.fsdecode(name)).write_bytes(saved(COLOURS, "PNG"))
    ev = Eval(dino=str(dino_folder(tmp_path / "dino")), metrics=["fd-dinov2"])
    assert list(statistics_of_folder(tmp_path / "in", tmp_path / "out", ev, None, 32, jpeg=False).values()) == [2]


def test_a_caption_file_that_is_odd(tmp_path: Path) -> None:
    write(tmp_path / "in", FORMATS["png"])
    caption = tmp_path / "in/a.txt"
    caption.write_bytes(b"\xef\xbb\xbfa \tpicture\r\n")
    assert find_pictures(str(tmp_path / "in"))[0].caption == "a picture"
    for data, said in ((b"x" * 1_000_001, "has more than 1,000,000 bytes"), (b"caf\xe9", r"a\.txt: not UTF-8")):
        caption.write_bytes(data)
        with pytest.raises(UserError, match=said):
            find_pictures(str(tmp_path / "in"))
    caption.unlink()
    os.mkfifo(caption)
    with pytest.raises(UserError, match="has no caption"):
        find_pictures(str(tmp_path / "in"))


def test_an_extreme_image_is_cropped_before_it_is_scaled() -> None:
    """The square in the middle of a strip is what scaling the whole strip would give, up to a grey level."""
    strip = np.random.default_rng(0).integers(0, 256, (4, 401, 3), dtype=np.uint8)
    strip = np.asarray(Image.fromarray(strip).resize((401, 4)))
    assert crop_extreme(Image.fromarray(strip)).size == (13, 4)
    ours = to_square(32)(Image.fromarray(strip))
    whole = v2.Compose([v2.Resize(32, antialias=True), v2.CenterCrop(32), v2.ToImage()])(Image.fromarray(strip))
    assert (ours * 127.5 + 127.5 - whole).abs().max() <= 2
    upright = to_square(32)(Image.fromarray(np.ascontiguousarray(strip.transpose(1, 0, 2))))
    assert torch.allclose(upright, ours.transpose(1, 2), atol=2 / 127)


@pytest.mark.parametrize("size", [(56, 40), (640, 40), (40, 639), (7, 7), (1, 16)])
def test_an_ordinary_image_is_scaled_as_before(size: tuple[int, int]) -> None:
    picture = Image.effect_noise(size, 90).convert("RGB")
    before = v2.Compose(
        [
            v2.Resize(32, antialias=True),
            v2.CenterCrop(32),
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize([0.5], [0.5]),
        ]
    )
    assert torch.equal(to_square(32)(picture), before(picture))


def test_every_listed_format_is_one_of_pillows() -> None:
    """The lists name formats that Pillow can open, and none that another program would decode."""
    Image.init()
    assert set(SUFFIXES.values()) | set(SIGNED) <= set(Image.OPEN)
    for suffix, name in SUFFIXES.items():
        if suffix in Image.EXTENSION and suffix != ".mpo":
            assert Image.EXTENSION[suffix] in (name, "GIF"), suffix
    assert not {"EPS", "WMF", "IPTC", "FITS", "FPX", "MIC", "MPEG"} & (set(SUFFIXES.values()) | set(SIGNED))


def test_postscript_starts_no_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program called gs that leaves a trace stands first on the path; no image starts it."""
    trace = tmp_path / "started"
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/gs").write_text(f"#!/bin/sh\ntouch {trace}\nexit 1\n")
    (tmp_path / "bin/gs").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)  # it remembers what it found
    write(tmp_path / "in", LYING["postscript called jpg"])
    with pytest.raises(BadImage, match="PostScript"):
        read_picture(find_pictures(str(tmp_path / "in"))[0])
    assert not trace.exists()
    with (
        pytest.raises(subprocess.CalledProcessError),
        Image.open(tmp_path / "in/a.jpg") as picture,
    ):  # Pillow by itself starts it
        picture.load()
    assert trace.exists()
