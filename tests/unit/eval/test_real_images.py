"""Real images in a cache: read from folders and WebDataset tars, encoded by the VAE, and trained on."""

import csv
import io
import json
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from webdataset import WebDataset

from randcond.data.cache import caching as cache
from randcond.data.cache.captioned_images import find_pictures, read_picture, to_square
from randcond.data.cache.latent_cache import LatentCache
from randcond.data.cache.latent_source import latent_source
from randcond.data.digits.world import load_glyphs, sample_images
from randcond.launch.config.experiments import load_config
from randcond.launch.config.paths import resolve_path
from randcond.launch.errors import UserError
from randcond.model_zoo.sampler import decode, encode
from randcond.model_zoo.teacher import Teacher
from randcond.train.setup import set_up
from randcond.train.state.model_card import model_card
from tests.support.demo import TINY, randcond

TEACHER = "package:data/digits/models/teacher"
COUNT = 24


def picture(number: int) -> Image.Image:
    """Returns a grey landscape image with a light bar. `number` decides the bar's position and the brightness."""
    pixels = np.full((40, 56, 3), 40 + 5 * number, np.uint8)
    pixels[:, 8 + number : 20 + number] = 255 - 5 * number
    return Image.fromarray(pixels)


def write_folder(folder: Path, listing: str = "") -> None:
    folder.mkdir()
    rows = [("file_name", "text")]
    for number in range(COUNT):
        picture(number).save(folder / f"{number:03d}.png")
        rows.append((f"{number:03d}.png", f"a bar,  number {number}"))
        if not listing:
            (folder / f"{number:03d}.txt").write_text(rows[-1][1])
    if listing == "metadata.csv":
        with (folder / listing).open("w", newline="") as file:
            csv.writer(file).writerows(rows)
    if listing == "metadata.jsonl":
        (folder / listing).write_text("".join(json.dumps({"file_name": n, "caption": c}) + "\n" for n, c in rows[1:]))


def write_tars(folder: Path) -> None:
    folder.mkdir()
    for part in range(2):
        with tarfile.open(folder / f"{part:05d}.tar", "w") as tar:
            for number in range(part, COUNT, 2):
                file = io.BytesIO()
                picture(number).save(file, "png")
                for kind, data in (("png", file.getvalue()), ("txt", f"a bar, number {number}".encode())):
                    member = tarfile.TarInfo(f"{number:06d}.{kind}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))


@pytest.mark.parametrize("kind", ["", "metadata.csv", "metadata.jsonl", "tars"])
def test_images_are_found_with_their_captions(tmp_path: Path, kind: str) -> None:
    write_tars(tmp_path / "in") if kind == "tars" else write_folder(tmp_path / "in", kind)
    found = find_pictures(str(tmp_path / "in"))
    assert sorted(each.caption for each in found) == sorted(f"a bar, number {number}" for number in range(COUNT))
    for each in found:
        number = int(each.caption.split()[-1])
        assert np.array_equal(np.asarray(read_picture(each)), np.asarray(picture(number)))
    if kind == "tars":
        assert find_pictures(str(tmp_path / "in/*.tar")) == found
        assert len(find_pictures(str(tmp_path / "in/00001.tar"))) == COUNT // 2


def test_images_without_what_they_need(tmp_path: Path) -> None:
    write_folder(tmp_path / "in")
    (tmp_path / "in/005.txt").unlink()
    with pytest.raises(UserError, match=r"005\.png has no caption; add 005\.txt to its folder, or a metadata\.csv"):
        find_pictures(str(tmp_path / "in"))
    (tmp_path / "in/metadata.csv").write_text("file_name,words\n000.png,x\n")
    with pytest.raises(UserError, match=r"metadata\.csv: no column caption, text or prompt; it has file_name, words"):
        find_pictures(str(tmp_path / "in"))
    (tmp_path / "in/metadata.csv").write_text("file_name,text\nnone.png,x\n")
    with pytest.raises(UserError, match=r"line 2: no such file: none\.png"):
        find_pictures(str(tmp_path / "in"))
    (tmp_path / "in/metadata.csv").write_text("file_name,text\n000.png, \n001.png,x\n")
    with pytest.raises(UserError, match=r"1 images have an empty caption, the first is 000\.png"):
        find_pictures(str(tmp_path / "in"))
    (tmp_path / "in/metadata.csv").unlink()
    (tmp_path / "in/005.txt").write_bytes(b"caf\xe9")
    with pytest.raises(UserError, match=r"005\.txt: not UTF-8"):
        find_pictures(str(tmp_path / "in"))
    (tmp_path / "in/metadata.csv").write_text("file_name,text\nnone.png,x\n")
    with pytest.raises(UserError, match=r"line 2: no such file: none\.png"):
        find_pictures(str(tmp_path / "in"))
    with pytest.raises(UserError, match="nowhere does not exist"):
        find_pictures(str(tmp_path / "nowhere"))
    write_tars(tmp_path / "tars")
    whole = (tmp_path / "tars/00000.tar").read_bytes()
    (tmp_path / "tars/00000.tar").write_bytes(whole[:5000])
    with pytest.raises(UserError, match=r"00000\.tar"):
        find_pictures(str(tmp_path / "tars"))


def test_an_image_is_its_vae_posterior(tmp_path: Path) -> None:
    """A latent is a sample of the VAE's posterior, scaled as the U-Net sees it.

    It depends on its own seed and not on the rest of the batch. Decoded, it gives the image again.
    """
    teacher = Teacher.load(resolve_path(TEACHER))
    bars = torch.stack([to_square(32)(picture(number)) for number in range(3)])
    assert bars.shape == (3, 3, 32, 32) and -1 <= bars.min() < -0.5 and 0.5 < bars.max() <= 1
    squares, _ = sample_images(*load_glyphs("held_out"), 3, seed=0)  # images like those that this VAE was trained on
    latents = encode(teacher.pipe, squares, [5, 6, 7], batch=4)
    again = encode(teacher.pipe, squares[1:2], [6], batch=4)
    assert torch.allclose(latents[1:2], again, atol=1e-5)
    posterior = teacher.pipe.vae.encode(squares).latent_dist
    scale = teacher.pipe.vae.config.scaling_factor
    bound = 6 * posterior.std * scale + 1e-4
    assert (latents - posterior.mean * scale).abs().le(bound).all()
    assert not torch.equal(encode(teacher.pipe, squares, [8, 9, 10], batch=4), latents)
    assert (decode(teacher.pipe, latents) - squares).abs().mean() < 0.1


def words(tmp_path: Path, *more: str) -> list[str]:
    return [
        *TINY, "cache.captions=[]", f"cache.images={tmp_path / 'in'}", "cache.resolution=32", "cache.exclude=[]",
        f"cache.size={COUNT}", "cache.batch=8", "cache.shard_size=8", f"paths.cache={tmp_path / 'cache'}", *more,
    ]  # fmt: skip


def test_real_images_are_cached_and_resumed(tmp_path: Path) -> None:
    write_folder(tmp_path / "in", "metadata.csv")
    config = load_config("demo-with", words(tmp_path))
    cache.run(config)
    shards = sorted((tmp_path / "cache").glob("*.tar"))
    before = [shard.read_bytes() for shard in shards]
    samples = list(WebDataset([str(shard) for shard in shards], shardshuffle=False))
    assert len(samples) == COUNT
    meta = json.loads(samples[0]["json"])
    assert meta["source"] == "image" and meta["image"].endswith(".png") and meta["seed"] > 0
    manifest = json.loads((tmp_path / "cache/manifest.json").read_text())
    assert manifest["source"] == "images" and "guidance" not in manifest and len(manifest["images_sha256"]) == 64
    shards[1].unlink()
    (tmp_path / "cache/manifest.json").unlink()
    cache.run(config)
    assert [shard.read_bytes() for shard in shards] == before
    drawn = load_config("demo-with", [*TINY, f"paths.cache={tmp_path / 'cache'}"])
    with pytest.raises(UserError, match="source is 'images' there, 'teacher' here"):
        LatentCache.open(drawn, manifest["teacher"])
    (tmp_path / "in/003.png").write_bytes((tmp_path / "in/004.png").read_bytes()[:-9])
    with pytest.raises(UserError, match="images_sha256 is"):  # other images need another cache
        cache.run(config)


def test_a_cache_that_an_older_version_began_is_continued_with_a_warning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its plan says nothing about how images are read. A complete one is used without a word."""
    write_folder(tmp_path / "in", "metadata.csv")
    config = load_config("demo-with", words(tmp_path, "cache.size=8"))
    cache.run(config)
    plan = json.loads((tmp_path / "cache/plan.json").read_text())
    assert plan.pop("reading") == 2
    for path in (tmp_path / "cache").iterdir():
        path.unlink()
    (tmp_path / "cache/plan.json").write_text(json.dumps(plan))
    assert "older version" not in capsys.readouterr().out
    cache.run(config)
    assert "was begun by an older version, which did not turn images" in capsys.readouterr().out
    assert "reading" not in json.loads((tmp_path / "cache/manifest.json").read_text())
    cache.run(config)
    assert "older version" not in capsys.readouterr().out


@pytest.mark.heavy
def test_damaged_images_and_shards_stop_or_are_counted(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without on_error=skip they are errors. With it, the log and train.json name what is left out.

    The training uses the task loss, as in row 3 of Table 1.
    """
    write_folder(tmp_path / "in")
    (tmp_path / "in/003.png").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"image 003\.png: is not an image.* on_error=skip"):
        cache.run(load_config("demo-with", words(tmp_path)))
    cache.run(load_config("demo-with", words(tmp_path, "on_error=skip")))
    said = capsys.readouterr().out
    assert "cache.images: 24 images taken" in said and "23 latents in 3 shards" in said
    assert "damaged images skipped: 1 (1 not an image), the first: image 003.png" in said
    shard = tmp_path / "cache/latents-00001.tar"
    shard.write_bytes(bytes(len(shard.read_bytes())))
    teacher = json.loads((tmp_path / "cache/manifest.json").read_text())["teacher"]
    with pytest.raises(UserError, match=r"latents-00001\.tar: does not match its checksum"):
        LatentCache.open(load_config("demo-with", words(tmp_path)), teacher)
    more = ["on_error=skip", "paths.run=runs/left", "train.global_batch=8", "train.losses.task=1.0", "train.steps=4"]
    done = randcond(world, "run", "train", "demo-with", *words(tmp_path, *more))
    assert "training: left out: shard" in done.stdout and "1 damaged images of 24" in done.stdout
    facts = json.loads((world / "runs/left/train.json").read_text())
    assert len(facts["left_out"]) == 2 and facts["identity"]["cached"] in (15, 16)
    assert "loss/task" in (world / "runs/left/metrics.jsonl").read_text()
    shutil.rmtree(world / "runs/left")


def test_a_damaged_tar_of_images_stops_or_stands_in_the_plan(tmp_path: Path) -> None:
    write_tars(tmp_path / "in")
    tar = tmp_path / "in/00000.tar"
    tar.write_bytes(tar.read_bytes()[:5000])
    with pytest.raises(UserError, match=r"00000\.tar: at byte .*; it must be a complete, uncompressed tar file"):
        latent_source(load_config("demo-with", words(tmp_path)))
    with pytest.raises(
        UserError, match=r"cache\.size: is 24, but .* contains only \d+ images .*; left out .*00000\.tar"
    ):
        latent_source(load_config("demo-with", words(tmp_path, "on_error=skip")))
    kept = latent_source(load_config("demo-with", words(tmp_path, "on_error=skip", "cache.size=12")))
    assert "cache.images: left out 2 (1 damaged tar, 1 no caption before the damage), the first: " in kept.damaged[0]


def test_damaged_caption_files_of_a_cache_stop_or_stand_in_its_plan(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("".join(f"a red two, number {n}\n" for n in range(100)).encode() + b"\xff\n")
    words = [*TINY, f"cache.captions=[{tmp_path / 'a.txt'}]", "cache.exclude=[]"]
    with pytest.raises(UserError, match=r"a\.txt, line 101: not UTF-8"):
        latent_source(load_config("demo-with", words))
    drawn = latent_source(load_config("demo-with", [*words, "on_error=skip"]))
    assert len(drawn.captions) == 96 and "not UTF-8" in drawn.damaged[0]


def test_fewer_samples_than_a_batch_and_wrong_shapes_are_refused(world: Path, tmp_path: Path) -> None:
    here = [
        "paths.run=runs/large",
        f"paths.cache={world / 'runs/demo/cache'}",
        f"paths.pool={world / 'runs/demo/pool'}",
    ]
    with pytest.raises(UserError, match=r"train\.global_batch: 128 is larger than the cache at .* holds 96"):
        set_up(load_config("demo-with", [*TINY, *here, "train.global_batch=128"]))
    shutil.copytree(world / "runs/demo/cache", tmp_path / "cache")
    manifest = json.loads((tmp_path / "cache/manifest.json").read_text())
    (tmp_path / "cache/manifest.json").write_text(json.dumps({**manifest, "latent_shape": [4, 9, 9]}))
    config = load_config("demo-with", [*TINY, f"paths.cache={tmp_path / 'cache'}"])
    latents = LatentCache.open(config, manifest["teacher"])
    with pytest.raises(
        UserError, match=r"latents-00000\.tar, key 000000000: the latent has shape \(4, 8, 8\), expected"
    ):
        latents.pair(0)


def test_a_shard_of_another_cache_is_refused(world: Path, tmp_path: Path) -> None:
    """A shard drawn with another teacher, sampler or seed is intact, but does not belong to this cache."""
    folder = tmp_path / "cache"
    shutil.copytree(world / "runs/demo/cache", folder)
    for name in ("manifest.json", "plan.json"):
        (folder / name).unlink()
    with pytest.raises(UserError, match=r"latents-00000\.tar: belongs to a cache with other settings"):
        cache.run(load_config("demo-with", [*TINY, "cache.guidance=4.0", f"paths.cache={folder}"]))


def test_tars_as_people_make_them(tmp_path: Path) -> None:
    """Member names may start with ./ or have dots in a folder's name.

    A compressed tar is refused, because images are read by their offsets.
    """
    write_tars(tmp_path / "in")
    with tarfile.open(tmp_path / "in/00000.tar") as source, tarfile.open(tmp_path / "other.tar", "w") as target:
        for number, member in enumerate(source):
            file = source.extractfile(member)
            member.name = f"{'./' if number < 4 else 'v1.0/'}{member.name}"
            target.addfile(member, file)
    found = find_pictures(str(tmp_path / "other.tar"))
    assert len(found) == COUNT // 2 and found[0].name == "other.tar/000000"
    assert np.array_equal(np.asarray(read_picture(found[-1])), np.asarray(picture(COUNT - 2)))
    with tarfile.open(tmp_path / "packed.tar.gz", "w:gz") as target:
        target.add(tmp_path / "in")
    with pytest.raises(UserError, match="complete, uncompressed tar"):
        find_pictures(str(tmp_path / "packed.tar.gz"))


def test_a_card_says_that_the_images_were_real() -> None:
    teacher = resolve_path("package:data/digits/models/teacher")
    drawn, real = (model_card(load_config(name), "ema", 10, teacher) for name in ("b-base", "b-base-real"))
    assert "| cached captions | 212000, DDIM with 25 steps, guidance 7.5, seed 0 |" in drawn
    assert "| cached captions | 212000, real images of " in real
    assert "guidance 7.5" not in real.split("```yaml")[0]
