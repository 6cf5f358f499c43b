"""`randcond cache` verify, preview and subset, and experiments that use a part of a cache."""

import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from randcond.data.cache.cache_command import preview, subset, verify
from randcond.data.cache.latent_cache import LatentCache
from randcond.data.cache.manifest import describe
from randcond.data.cache.shards import Shard, index_path, write_shard
from randcond.data.captions.caption_file import write_captions
from randcond.launch.config.experiments import load_config
from randcond.launch.config.paths import resolve_path
from randcond.launch.errors import UserError
from randcond.model_zoo.teacher import Teacher
from tests.support.demo import TINY, randcond

TEACHER = "package:data/digits/models/teacher"


@pytest.fixture
def cache(world: Path, tmp_path: Path) -> Path:
    return shutil.copytree(world / "runs/demo/cache", tmp_path / "cache")


def test_a_sound_cache_is_sound_and_a_faulty_one_is_named(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    verify(str(cache))
    assert "96 latents, no faults found" in capsys.readouterr().out
    flipped = bytearray((cache / "latents-00000.tar").read_bytes())
    flipped[1000] ^= 1
    (cache / "latents-00000.tar").write_bytes(flipped)
    index_path(cache / "latents-00001.tar").unlink()
    shard = Shard(cache / "latents-00002.tar")
    samples = [
        {"caption_id": caption_id, "caption": "another", "latent": shard.latent(row), "meta": {}}
        for row, caption_id in enumerate(shard.caption_ids.tolist())
    ]
    samples[0]["latent"] = np.full_like(samples[0]["latent"], np.nan)
    samples[1]["latent"] = samples[1]["latent"][:, :4]
    write_shard(shard.path, samples)
    with pytest.raises(UserError) as caught:
        verify(str(cache))
    for named in (
        "latents-00000.tar: does not match its checksum",
        "latents-00001.tar: the shard or its index is missing",
        "latents-00002.tar: the shard or its index does not match the manifest",
        "key 000000064: not a finite fp16 latent",
        "key 000000065: the latent has shape",
        "key 000000066: its caption differs from caption 66",
        "... and",
    ):
        assert named in str(caught.value)


def test_an_index_that_lacks_something_is_named(cache: Path) -> None:
    shard = cache / "latents-00001.tar"
    found = json.loads(index_path(shard).read_text())
    index_path(shard).write_text(json.dumps({key: value for key, value in found.items() if key != "bytes"}))
    for reads in (Shard, describe):
        with pytest.raises(
            UserError, match=r"latents-00001\.tar: its index is damaged \(bytes: Field required\); `randcond run cache"
        ):
            reads(shard)


def test_a_size_that_is_wrong_in_an_index_is_a_fault_among_others(cache: Path) -> None:
    index = index_path(cache / "latents-00001.tar")
    found = json.loads(index.read_text())
    found["members"][3][-1] -= 1
    index.write_text(json.dumps(found))
    with pytest.raises(UserError, match=r"not a finite fp16 latent") as caught:
        verify(str(cache))
    assert "2 faults" in str(caught.value)


def test_a_preview_shows_latents_as_the_teacher_decodes_them(cache: Path) -> None:
    preview(str(cache), teacher=TEACHER, n=6)
    with Image.open(cache / "preview.png") as sheet:
        assert sheet.width > sheet.height > 300
        assert len(set(sheet.convert("RGB").resize((64, 64)).getdata())) > 50


def test_a_part_of_a_cache_is_what_a_smaller_one_would_be(world: Path, tmp_path: Path) -> None:
    """An experiment of this size opens the part, which ends inside a shard, and draws nothing more."""
    out = world / "runs/part"
    subset(str(world / "runs/demo/cache"), str(out), n=40)
    subset(str(world / "runs/demo/cache"), str(out), n=40)  # the same again: nothing to do
    assert not list(out.glob("*.tar"))
    (out / "manifest.json").unlink()  # as after a kill, with captions of another cache
    write_captions(out / "captions.arrow", [f"another, {number}" for number in range(40)])
    subset(str(world / "runs/demo/cache"), str(out), n=40)
    verify(str(out))
    words = [*TINY, "cache.size=40", f"paths.cache={out}"]
    fingerprint = Teacher.load(resolve_path(TEACHER)).fingerprint
    whole = LatentCache.open(load_config("demo-with", [*TINY, f"paths.cache={world / 'runs/demo/cache'}"]), fingerprint)
    part = LatentCache.open(load_config("demo-with", words), fingerprint)
    assert len(part) == 40
    assert all(np.array_equal(part.pair(index)[0], whole.pair(index)[0]) for index in range(40))
    randcond(world, "run", "cache", "demo-with", *words, "--gpus", "1")
    assert not list(out.glob("*.tar"))
    with pytest.raises(UserError, match="--n: is 97, expected 1 to 96"):
        subset(str(world / "runs/demo/cache"), str(tmp_path), n=97)


def test_an_experiment_trains_on_the_first_of_a_cache(world: Path, tmp_path: Path) -> None:
    """`cache.used` gives the same latents and captions as a smaller cache."""
    whole = world / "runs/demo/cache"
    subset(str(whole), str(tmp_path / "part"), n=40)
    fingerprint = json.loads((whole / "manifest.json").read_text())["teacher"]
    used = LatentCache.open(load_config("demo-with", [*TINY, f"paths.cache={whole}", "cache.used=40"]), fingerprint)
    part = LatentCache.open(
        load_config("demo-with", [*TINY, f"paths.cache={tmp_path / 'part'}", "cache.size=40"]), fingerprint
    )
    assert len(used) == len(part) == 40 and list(used.captions) == list(part.captions)
    assert len(pickle.loads(pickle.dumps(used.captions))) == 40
    with pytest.raises(IndexError):
        used.captions[40]
    for index in range(40):
        (ours, caption), (theirs, same) = used.pair(index), part.pair(index)
        assert caption == same and np.array_equal(ours, theirs)
    with pytest.raises(UserError, match=r"cache.used: 97 is more than cache.size, 96"):
        load_config("demo-with", [*TINY, "cache.used=97"])


def test_of_a_part_whose_last_shard_is_damaged_the_others_are_used(cache: Path) -> None:
    index_path(cache / "latents-00001.tar").unlink()
    fingerprint = json.loads((cache / "manifest.json").read_text())["teacher"]
    words = [*TINY, f"paths.cache={cache}", "cache.used=40"]
    with pytest.raises(UserError, match=r"latents-00001.tar: the shard or its index is missing"):
        LatentCache.open(load_config("demo-with", words), fingerprint)
    used = LatentCache.open(load_config("demo-with", [*words, "on_error=skip"]), fingerprint)
    assert len(used) == 32 and "latents-00001.tar" in used.left_out[0]


def test_verify_knows_parts_of_caches_and_every_kind_of_damage(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "cache"
    shutil.copytree(world / "runs/demo/cache", folder)
    subset(str(folder), str(tmp_path / "part"), n=40)
    verify(str(tmp_path / "part"))
    assert "2 shards, 40 latents, no faults found" in capsys.readouterr().out
    shard = folder / "latents-00001.tar"
    whole, index = shard.read_bytes(), index_path(shard).read_text()
    shard.write_bytes(bytes([whole[0] ^ 1]) + whole[1:])
    with pytest.raises(UserError, match=r"latents-00001\.tar: does not match its checksum"):
        verify(str(folder))
    shard.write_bytes(whole)
    fewer = json.loads(index)
    fewer["members"] = fewer["members"][:10]
    index_path(shard).write_text(json.dumps(fewer))
    with pytest.raises(UserError, match="the shard or its index does not match the manifest"):
        verify(str(folder))
