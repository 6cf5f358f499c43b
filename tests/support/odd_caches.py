"""Small latent caches for tests of odd inputs, and ways to damage them."""

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from randcond.data.cache import caching
from randcond.data.cache.cache_command import verify
from randcond.data.cache.manifest import describe
from randcond.data.cache.shards import index_path
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


def words_of(folder: Path) -> list[str]:
    """Returns the overrides of the experiment demo-with for the cache in a folder."""
    return [*WORDS, f"cache.captions=[{source(folder)}]", f"paths.cache={folder / 'cache'}"]


def config_of(folder: Path, *more: str) -> Config:
    return load_config("demo-with", [*words_of(folder), *more])


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


def noted(change: Callable[[Path], object]) -> Callable[[Path], None]:
    """Damage that only `cache verify` finds: it notes the shards for the cache stage."""

    def changed(cache: Path) -> None:
        change(cache)
        with pytest.raises(UserError, match="faults"):
            verify(str(cache))

    return changed


def from_other(cache: Path, number: int) -> None:
    for path in both(cache, number):
        shutil.copy(cache.parent / "other/cache" / path.name, path)


def contents(cache: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in cache.iterdir() if not path.name.startswith(("foreign-", "."))}
