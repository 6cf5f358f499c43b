"""Caches with swapped, copied, missing, damaged and foreign files: the cache stage repairs only what is wrong."""

from collections.abc import Callable
from pathlib import Path

import pytest

from randcond.data.cache import caching
from randcond.data.cache.cache_command import verify
from randcond.data.cache.shards import index_path, note_damage, read_index
from randcond.data.captions.caption_file import write_captions
from randcond.launch.errors import UserError
from randcond.launch.runtime.files import sha256
from tests.support.odd_caches import (
    SHARDS,
    both,
    config_of,
    contents,
    copy,
    edit,
    flip,
    folder,
    from_other,
    made,
    noted,
    rewrite_manifest,
    shard,
    source,
    swap,
    teacher,
    without_manifest,
)

__all__ = ["folder", "made", "teacher"]  # fixtures

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
    "two shards swapped without their indexes": (
        noted(lambda c: swap(c, 0, 3, False)),
        {0, 3},
        "00003.tar is made again",
    ),
    "a shard is missing": (lambda c: shard(c, 1).unlink(), {1}, "3 of 4 shards done, 1 to create"),
    "an index is missing": (lambda c: index_path(shard(c, 1)).unlink(), set(), "its index is missing"),
    "an index is missing before the manifest": (
        without_manifest(lambda c: index_path(shard(c, 1)).unlink()),
        {1},
        "00001.tar is made again: its index is missing",
    ),
    "an index is missing, and its shard is damaged": (
        lambda c: (index_path(shard(c, 1)).unlink(), flip(shard(c, 1), 1000)),
        {1},
        "00001.tar is made again: its index is missing",
    ),
    "an index is missing, and the manifest lists no shard there": (
        lambda c: (
            index_path(shard(c, 1)).unlink(),
            shard(c, 1).write_bytes(b"no tar at all"),
            edit(
                c / "manifest.json", lambda manifest: manifest["shards"][1].update(sha256=sha256(shard(c, 1)), bytes=13)
            ),
        ),
        {1},
        "00001.tar is made again: its index is missing",
    ),
    "all indexes are missing": (
        lambda c: [index_path(shard(c, number)).unlink() for number in range(SHARDS)],
        set(),
        "the index of shard ",
    ),
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
        noted(lambda c: shard(c, 0).write_bytes(bytes(shard(c, 0).stat().st_size))),
        {0},
        "it does not match its checksum",
    ),
    "a byte of a shard is flipped": (noted(lambda c: flip(shard(c, 3), 1000)), {3}, "it does not match its checksum"),
    "an index has a wrong offset": (
        lambda c: edit(index_path(shard(c, 1)), lambda index: index["members"][1].__setitem__(2, 600)),
        set(),
        "1 of its latents or captions are damaged",
    ),
    "an index has a wrong offset, the manifest too": (
        noted(
            lambda c: (
                edit(index_path(shard(c, 1)), lambda index: index["members"][1].__setitem__(2, 600)),
                rewrite_manifest(c),
            )
        ),
        {1},
        "1 of its latents or captions are damaged",
    ),
    "a sound shard is noted as damaged": (lambda c: note_damage(shard(c, 1), "seen on a bad day"), set(), ""),
    "every fault that verify finds": (
        noted(lambda c: (flip(shard(c, 0), 1000), shard(c, 1).unlink(), index_path(shard(c, 2)).write_text("[]"))),
        {0, 1},
        "1 of 4 shards done",
    ),
    "an index is a list": (lambda c: index_path(shard(c, 1)).write_text("[]"), set(), "its index is damaged"),
    "an index is cut off": (lambda c: index_path(shard(c, 1)).write_text('{"shard": '), set(), "its index is damaged"),
    "an index is nested too deeply": (
        lambda c: index_path(shard(c, 1)).write_text("[" * 100_000),
        set(),
        "its index is damaged",
    ),
    "an index is not UTF-8": (lambda c: index_path(shard(c, 1)).write_bytes(b'{"\xff": 1}'), set(), "index is damaged"),
    "an index lacks a latent": (
        lambda c: edit(index_path(shard(c, 1)), lambda index: index["members"].__delitem__(-1)),
        set(),
        "it lacks 1 of captions 2 to 3, the first is 3",
    ),
    "an index has a latent twice": (
        lambda c: edit(index_path(shard(c, 1)), lambda index: index["members"].append(index["members"][0])),
        set(),
        "it holds caption 2 twice",
    ),
    "an index has its latents in another order": (
        lambda c: edit(index_path(shard(c, 1)), lambda index: index["members"].reverse()),
        set(),
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
    "the manifest lists another index": (
        lambda c: edit(c / "manifest.json", lambda manifest: manifest["shards"][1].update(index_sha256="0" * 64)),
        set(),
        "manifest.json is written again",
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
    monkeypatch.setattr(caching, "_make_shard", lambda *given: (drawn.append(given[2].numbers[given[3]]), make(*given)))
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
        r"guidance is 3\.0 there, 4\.0 here\. .*another paths\.cache",
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
