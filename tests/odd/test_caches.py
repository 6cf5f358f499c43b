"""Caches with swapped, copied, missing, damaged and foreign files: the cache stage repairs only what is wrong."""

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from randcond.data.cache import caching
from randcond.data.cache.cache_command import open_cache, subset, verify
from randcond.data.cache.latent_cache import LatentCache
from randcond.data.cache.manifest import describe
from randcond.data.cache.shards import Shard, index_path, read_index, write_shard
from randcond.data.captions.caption_file import write_captions
from randcond.launch.config.experiments import load_config
from randcond.launch.config.paths import resolve_path
from randcond.launch.config.sections import Config
from randcond.launch.errors import UserError
from randcond.model_zoo.teacher import Teacher

SHARDS = 4
WORDS = ["cache.size=8", "cache.batch=2", "cache.shard_size=2", "cache.steps=2", "cache.exclude=[]"]


@pytest.fixture(scope="module", autouse=True)
def teacher() -> Any:
    """Loads the digits teacher once: the cache stage gets it in place of loading it for each case."""
    loaded = Teacher.load(resolve_path("package:data/digits/models/teacher"), "fp32")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(caching.Teacher, "load", lambda *_: loaded)
        yield loaded


def source(folder: Path) -> Path:
    """Returns the caption file of the caches in a folder."""
    path = folder / "captions.txt"
    if not path.exists():
        digits = ("zero", "one", "two", "three", "four", "five", "six", "seven")
        path.write_text("".join(f"a red {digit} on white\n" for digit in digits))
    return path


def config_of(folder: Path, *more: str) -> Config:
    words = [*WORDS, f"cache.captions=[{source(folder)}]", f"paths.cache={folder / 'cache'}", *more]
    return load_config("demo-with", words)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a sound cache of 8 latents in 4 shards, and another one of other settings in other/."""
    folder = tmp_path_factory.mktemp("made")
    caching.run(config_of(folder))
    (folder / "other").mkdir()
    caching.run(config_of(folder / "other", "cache.guidance=4.0"))
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    for name in ("plan.json", "manifest.json"):  # the caption file has the same name and content in its new place
        assert (tmp_path / "cache" / name).is_file()
    return tmp_path


def shard(cache: Path, number: int) -> Path:
    return cache / f"latents-{number:05d}.tar"


def both(cache: Path, number: int) -> list[Path]:
    return [shard(cache, number), index_path(shard(cache, number))]


def copy(cache: Path, one: int, other: int) -> None:
    """Copies a shard and its index over another one."""
    for ours, theirs in zip(both(cache, one), both(cache, other), strict=True):
        shutil.copy(ours, theirs)


def swap(cache: Path, one: int, other: int, indexes: bool = True) -> None:
    for ours, theirs in list(zip(both(cache, one), both(cache, other), strict=True))[: 1 + indexes]:
        saved = ours.read_bytes()
        ours.write_bytes(theirs.read_bytes())
        theirs.write_bytes(saved)


def edit(path: Path, change: Callable[[Any], Any]) -> None:
    """Changes what a JSON file holds. `change` returns the new content, or None if it has changed it in place."""
    data = json.loads(path.read_text())
    result = change(data)
    path.write_text(json.dumps(data if result is None else result, indent=2) + "\n")


def flip(path: Path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


def rewrite_manifest(cache: Path) -> None:
    """Writes a manifest around the shards as they are, as older versions of the cache stage did."""
    entries = [asdict(describe(shard(cache, number))) for number in range(SHARDS)]
    edit(cache / "manifest.json", lambda manifest: {**manifest, "shards": entries})


def without_manifest(change: Callable[[Path], None]) -> Callable[[Path], None]:
    def changed(cache: Path) -> None:
        (cache / "manifest.json").unlink()
        change(cache)

    return changed


def from_other(cache: Path, number: int) -> None:
    for path in both(cache, number):
        shutil.copy(cache.parent / "other/cache" / path.name, path)


# id -> what happens to a sound cache, the shards that are made again, a part of what the log says
REPAIRED: dict[str, tuple[Callable[[Path], object], set[int], str]] = {
    "nothing": (lambda c: None, set(), ""),
    "one shard copied over another": (lambda c: copy(c, 1, 2), {2}, "it holds caption 2, expected captions 4 to 5"),
    "one shard copied over another before the manifest": (
        without_manifest(lambda c: copy(c, 1, 2)),
        {2},
        "latents-00002.tar is made again: it holds caption 2",
    ),
    "one shard copied, a manifest around it": (
        lambda c: (copy(c, 0, 3), rewrite_manifest(c)),
        {3},
        "it holds caption 0, expected captions 6 to 7",
    ),
    "two shards swapped": (lambda c: swap(c, 0, 3), {0, 3}, "it holds caption 6, expected captions 0 to 1"),
    "two shards swapped without their indexes": (lambda c: swap(c, 0, 3, False), {0, 3}, "00003.tar is made again"),
    "a shard is missing": (lambda c: shard(c, 1).unlink(), {1}, "3 of 4 shards done, 1 to create"),
    "an index is missing": (lambda c: index_path(shard(c, 1)).unlink(), {1}, "its index is missing"),
    "a shard and its index are missing": (lambda c: [p.unlink() for p in both(c, 2)], {2}, "1 to create"),
    "all shards are missing": (
        lambda c: [p.unlink() for number in range(SHARDS) for p in both(c, number)],
        {0, 1, 2, 3},
        "0 of 4 shards done",
    ),
    "a shard is cut off": (
        lambda c: shard(c, 0).write_bytes(shard(c, 0).read_bytes()[:3000]),
        {0},
        "it has 3000 bytes",
    ),
    "a shard is empty": (lambda c: shard(c, 0).write_bytes(b""), {0}, "it has 0 bytes"),
    "a shard is zeros": (
        lambda c: shard(c, 0).write_bytes(bytes(shard(c, 0).stat().st_size)),
        {0},
        "it does not match its checksum",
    ),
    "a byte of a shard is flipped": (lambda c: flip(shard(c, 3), 1000), {3}, "it does not match its checksum"),
    "an index is a list": (lambda c: index_path(shard(c, 1)).write_text("[]"), {1}, "its index is damaged"),
    "an index is cut off": (lambda c: index_path(shard(c, 1)).write_text('{"shard": '), {1}, "its index is damaged"),
    "an index is nested too deeply": (
        lambda c: index_path(shard(c, 1)).write_text("[" * 100_000),
        {1},
        "its index is damaged",
    ),
    "an index is not UTF-8": (lambda c: index_path(shard(c, 1)).write_bytes(b'{"\xff": 1}'), {1}, "index is damaged"),
    "an index lacks a latent": (
        lambda c: edit(index_path(shard(c, 1)), lambda index: index["members"].__delitem__(-1)),
        {1},
        "it lacks 1 of captions 2 to 3, the first is 3",
    ),
    "an index has a latent twice": (
        lambda c: edit(index_path(shard(c, 1)), lambda index: index["members"].append(index["members"][0])),
        {1},
        "it holds caption 2 twice",
    ),
    "an index has its latents in another order": (
        lambda c: edit(index_path(shard(c, 1)), lambda index: index["members"].reverse()),
        {1},
        "its captions are not in order",
    ),
    "a shard of another cache": (lambda c: from_other(c, 2), {2}, "belongs to a cache with other settings"),
    "a shard of another cache before the manifest": (
        without_manifest(lambda c: from_other(c, 2)),
        {2},
        "it is kept as foreign-latents-00002.tar",
    ),
    "the manifest is missing": (lambda c: (c / "manifest.json").unlink(), set(), "complete, 8 latents in 4 shards"),
    "the manifest is cut off": (lambda c: (c / "manifest.json").write_text('{"for'), set(), "manifest.json is damaged"),
    "the manifest is a list": (lambda c: (c / "manifest.json").write_text("[]"), set(), "manifest.json is damaged"),
    "the manifest has no shards": (
        lambda c: edit(c / "manifest.json", lambda manifest: {**manifest, "shards": []}),
        set(),
        "complete, 8 latents in 4 shards",
    ),
    "the manifest has its shards in another order": (
        lambda c: edit(c / "manifest.json", lambda manifest: manifest["shards"].reverse()),
        set(),
        "manifest.json is written again",
    ),
    "the plan is missing": (lambda c: (c / "plan.json").unlink(), set(), ""),
    "the plan is damaged": (lambda c: (c / "plan.json").write_text("{"), set(), "plan.json is damaged"),
    "the captions are missing": (lambda c: (c / "captions.arrow").unlink(), set(), "captions.arrow was missing"),
    "the captions are damaged": (lambda c: flip(c / "captions.arrow", 300), set(), "captions.arrow was damaged"),
    "the captions are cut off": (
        lambda c: (c / "captions.arrow").write_bytes((c / "captions.arrow").read_bytes()[:100]),
        set(),
        "written again from the sources",
    ),
    "the captions of another cache": (
        lambda c: write_captions(c / "captions.arrow", ["another"] * 8),
        set(),
        "written again from the sources",
    ),
}


def contents(cache: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in cache.iterdir() if not path.name.startswith(("foreign-", "."))}


@pytest.mark.parametrize("case", REPAIRED)
def test_the_cache_stage_repairs_only_what_is_wrong(
    case: str, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    damage, made_again, logged = REPAIRED[case]
    cache = folder / "cache"
    sound = contents(cache)
    damage(cache)
    drawn: list[int] = []
    make = caching._make_shard
    monkeypatch.setattr(caching, "_make_shard", lambda *given: (drawn.append(given[3].start // 2), make(*given)))
    caching.run(config_of(folder))
    assert set(drawn) == made_again and len(drawn) == len(made_again)
    said = capsys.readouterr().out
    assert logged in said
    assert not [line for line in said.splitlines() if "made again" in line] or made_again
    assert contents(cache) == sound
    verify(str(cache))
    capsys.readouterr()
    caching.run(config_of(folder))  # once more: there is nothing to say
    assert not capsys.readouterr().out and contents(cache) == sound


def test_a_shard_of_another_cache_is_kept_beside(folder: Path) -> None:
    from_other(folder / "cache", 2)
    foreign = shard(folder / "cache", 2).read_bytes()
    caching.run(config_of(folder))
    assert (folder / "cache/foreign-latents-00002.tar").read_bytes() == foreign
    assert (
        read_index(folder / "cache/foreign-latents-00002.tar").made_of != read_index(shard(folder / "cache", 2)).made_of
    )


# id -> what happens to the folder of a sound cache, overrides, what the error says
REFUSED: dict[str, tuple[Callable[[Path], object], list[str], str]] = {
    "captions and sources changed": (
        lambda f: (flip(f / "cache/captions.arrow", 300), edit_text(source(f))),
        [],
        r"captions\.arrow: is missing or damaged, and the sources give other captions .*the shards stay as they are",
    ),
    "the sources changed": (lambda f: edit_text(source(f)), [], "its captions differ from the captions in its sources"),
    "other settings": (
        lambda f: None,
        ["cache.guidance=4.0"],
        r"guidance is 3\.0, expected 4\.0\. .*another paths\.cache",
    ),
    "other settings, and no plan": (
        lambda f: [(f / "cache" / name).unlink() for name in ("plan.json", "manifest.json")],
        ["cache.guidance=4.0"],
        r"latents-00000\.tar: belongs to a cache with other settings .* no plan\.json",
    ),
    "plan and manifest damaged": (
        lambda f: [(f / "cache" / name).write_text("{") for name in ("plan.json", "manifest.json")],
        [],
        r"plan\.json: damaged JSON .*; restore it from a copy",
    ),
}


def edit_text(path: Path) -> None:
    path.write_text(path.read_text().replace("red", "green"))


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_repaired_is_refused_and_stays(case: str, folder: Path) -> None:
    damage, more, message = REFUSED[case]
    damage(folder)
    before = contents(folder / "cache")
    with pytest.raises(UserError, match=message) as error:
        caching.run(config_of(folder, *more))
    assert "remove" not in str(error.value).replace("or remove it and run the same command", "")
    assert contents(folder / "cache") == before


# id -> what happens to a sound cache, what `cache verify` says
FAULTS: dict[str, tuple[Callable[[Path], object], list[str]]] = {
    "a manifest of no shards": (
        lambda c: edit(c / "manifest.json", lambda m: {**m, "shards": []}),
        ["lists 0 shards, expected 4", "lists 0 latents and 0 captions without one, expected 8"],
    ),
    "a manifest that lacks a shard": (
        lambda c: edit(c / "manifest.json", lambda m: m["shards"].__delitem__(-1)),
        ["lists 3 shards, expected 4", "lists 6 latents"],
    ),
    "a shard twice": (
        lambda c: edit(c / "manifest.json", lambda m: m["shards"].append(m["shards"][3])),
        ["lists 5 shards, expected 4", "lists 10 latents"],
    ),
    "shards in another order": (
        lambda c: edit(c / "manifest.json", lambda m: m["shards"].reverse()),
        ["latents-00003.tar: it holds caption 6, expected captions 0 to 1", "00000.tar: it holds caption 0, expected"],
    ),
    "a copy with a manifest around it": (
        lambda c: (copy(c, 1, 2), rewrite_manifest(c)),
        ["latents-00002.tar: it holds caption 2, expected captions 4 to 5"],
    ),
    "fewer latents with a manifest around them": (
        lambda c: (edit(index_path(shard(c, 1)), lambda index: index["members"].__delitem__(-1)), rewrite_manifest(c)),
        ["lists 7 latents and 0 captions without one, expected 8", "it lacks 1 of captions 2 to 3, the first is 3"],
    ),
    "a latent twice with a manifest around it": (
        lambda c: (
            edit(index_path(shard(c, 1)), lambda index: index["members"].append(index["members"][0])),
            rewrite_manifest(c),
        ),
        ["it holds caption 2 twice"],
    ),
    "captions missing": (
        lambda c: (c / "captions.arrow").unlink(),
        ["captions.arrow: is missing; `randcond run cache EXPERIMENT` writes it again from the sources"],
    ),
    "captions damaged, and a shard too": (
        lambda c: (flip(c / "captions.arrow", 300), shard(c, 0).unlink()),
        ["captions.arrow: does not match its checksum", "latents-00000.tar: the shard or its index is missing"],
    ),
    "more captions than latents": (
        lambda c: edit(c / "manifest.json", lambda m: {**m, "captions": 9}),
        ["holds 8 captions, expected 9", "lists 4 shards, expected 5"],
    ),
    "a caption of another text": (
        lambda c: (
            write_shard(shard(c, 0), [{**sample, "caption": "another"} for sample in samples(c, 0)]),
            rewrite_manifest(c),
        ),
        ["key 000000000: its caption differs from caption 0 in captions.arrow"],
    ),
    "a manifest without a shard size": (
        lambda c: edit(c / "manifest.json", lambda m: {key: m[key] for key in m if key != "shard_size"}),
        ["not the manifest of a cache: shard_size is None"],
    ),
    "a shard size of zero": (
        lambda c: edit(c / "manifest.json", lambda m: {**m, "shard_size": 0}),
        ["not the manifest of a cache: shard_size is 0"],
    ),
    "a number beyond all files": (
        lambda c: edit(c / "manifest.json", lambda m: m["shards"][0].update(samples=10**30)),
        ["not the manifest of a cache: shards.0.samples"],
    ),
    "a surrogate in a name": (
        lambda c: edit(c / "manifest.json", lambda m: m["shards"][0].update(shard="\ud800.tar")),
        [".tar: the shard or its index is missing"],
    ),
    "a manifest that is a list": (lambda c: (c / "manifest.json").write_text("[]"), ["expected an object, found list"]),
}


def samples(cache: Path, number: int) -> list[dict[str, Any]]:
    opened = Shard(shard(cache, number))
    return [
        {"caption_id": caption_id, "caption": "", "latent": np.array(opened.latent(row)), "meta": {}}
        for row, caption_id in enumerate(opened.caption_ids.tolist())
    ]


@pytest.mark.parametrize("case", FAULTS)
def test_verify_names_every_fault(case: str, folder: Path) -> None:
    damage, lines = FAULTS[case]
    damage(folder / "cache")
    with pytest.raises(UserError) as error:
        verify(str(folder / "cache"))
    for line in lines:
        assert line in str(error.value)
    assert "emove" not in str(error.value)


TRAINED_ON = [
    "a manifest of no shards",
    "a manifest that lacks a shard",
    "shards in another order",
    "a copy with a manifest around it",
    "fewer latents with a manifest around them",
    "captions missing",
    "a number beyond all files",
    "a manifest that is a list",
]


@pytest.mark.parametrize("case", TRAINED_ON)
def test_a_training_does_not_begin_on_such_a_cache(case: str, folder: Path, teacher: Teacher) -> None:
    FAULTS[case][0](folder / "cache")
    with pytest.raises(UserError, match=r"randcond run cache EXPERIMENT"):
        LatentCache.open(config_of(folder), teacher.fingerprint)
    with pytest.raises(UserError, match="randcond run cache EXPERIMENT"):
        open_cache(folder / "cache")


def test_with_skip_a_copied_shard_is_left_out_and_named(folder: Path, teacher: Teacher) -> None:
    copy(folder / "cache", 1, 2)
    rewrite_manifest(folder / "cache")
    opened = LatentCache.open(config_of(folder, "on_error=skip"), teacher.fingerprint)
    assert [opened.pair(index)[1] for index in range(len(opened))] == [0, 1, 2, 3, 6, 7]
    assert "latents-00002.tar: it holds caption 2, expected captions 4 to 5" in opened.left_out[0]


def test_a_part_of_a_cache_is_repaired_as_far_as_it_has_files_of_its_own(folder: Path, teacher: Teacher) -> None:
    part = folder / "part"
    words = ["cache.size=5", f"paths.cache={part}"]
    subset(str(folder / "cache"), str(part), n=5)
    sound = contents(part)
    verify(str(part))
    for damage in (
        lambda: (part / "captions.arrow").unlink(),
        lambda: flip(part / "captions.arrow", 300),
        lambda: (part / "manifest.json").write_text("[]"),
    ):
        damage()
        subset(str(folder / "cache"), str(part), n=5)
        assert contents(part) == sound
    (part / "captions.arrow").unlink()
    caching.run(config_of(folder, *words))
    assert contents(part) == sound
    shard(folder / "cache", 1).unlink()
    with pytest.raises(
        UserError, match=r"00001\.tar.* is missing.*a part of the cache at .*/cache: run the experiment"
    ):
        caching.run(config_of(folder, *words))
    (folder / "unfinished").mkdir()
    shutil.copy(folder / "cache/plan.json", folder / "unfinished")
    caching.run(config_of(folder))
    with pytest.raises(UserError, match="holds another cache; choose another OUT"):
        subset(str(folder / "cache"), str(folder / "unfinished"), n=5)
