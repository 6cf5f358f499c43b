"""Randomly damaged caption files and caches give an error that names them, or the original content."""

import gzip
import json
import random
import shutil
from collections import Counter
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from randcond.data.cache.latent_cache import LatentCache
from randcond.data.cache.latent_source import cache_identity
from randcond.data.cache.manifest import describe
from randcond.data.cache.shards import FORMAT, write_shard
from randcond.data.captions.caption_file import write_captions
from randcond.data.captions.readers import read_batches
from randcond.launch.config.experiments import load_config
from randcond.launch.errors import UserError
from randcond.launch.runtime.files import sha256, write_json

CASES = 100  # per file
TEXTS = [f"a caption number {number} of é" for number in range(2000)]


def damaged(good: bytes, seed: int) -> bytes:
    """Returns damaged bytes: cut off, some bytes changed, or a range of bytes removed or set to zero."""
    dice, data = random.Random(seed), bytearray(good)
    place, run = dice.randrange(len(data)), dice.randrange(1, 4000)
    match dice.randrange(4):
        case 0:
            del data[place:]
        case 1:
            for _ in range(dice.randrange(1, 20)):
                data[dice.randrange(len(data))] ^= dice.randrange(1, 256)
        case 2:
            del data[place : place + run]
        case _:
            data[place : place + run] = bytes(len(data[place : place + run]))
    return bytes(data)


def sources(folder: Path) -> list[Path]:
    (folder / "a.txt").write_text("\n".join(TEXTS))
    (folder / "a.csv").write_text("id,TEXT\n" + "".join(f'{n},"{text}"\n' for n, text in enumerate(TEXTS)))
    (folder / "a.jsonl").write_text("".join(json.dumps({"caption": text}) + "\n" for text in TEXTS))
    (folder / "a.jsonl.gz").write_bytes(gzip.compress((folder / "a.jsonl").read_bytes()))
    pq.write_table(pa.table({"TEXT": TEXTS}), folder / "a.parquet")
    return sorted(folder.glob("a.*"))


@pytest.mark.heavy
def test_damaged_caption_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A damaged text file may still be readable. Compressed files and files with checksums are refused or unchanged."""
    ends: Counter[str] = Counter()
    for source in sources(tmp_path):
        good = source.read_bytes()
        for seed in range(CASES):
            bad = tmp_path / f"bad-{source.name}"
            bad.write_bytes(damaged(good, seed))
            try:
                read = [text for batch, _ in read_batches(str(bad)) for text in batch.to_pylist()]
            except UserError as error:
                assert f"caption source {bad}" in str(error)
                ends[f"{source.name} refused"] += 1
                continue
            ends[f"{source.name} read"] += 1
            if source.suffix in (".parquet", ".gz"):
                assert read == TEXTS
    assert sum(ends.values()) == 5 * CASES
    with capsys.disabled():
        print(f"\n{dict(ends)}", end=" ")


def test_damaged_caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """If any file of a cache is damaged, the error names its path. If there is no error, every pair is unchanged."""
    folder = tmp_path / "cache"
    words = ["cache.size=64", "cache.batch=32", "cache.shard_size=32", f"paths.cache={folder}"]
    config = load_config("demo-with", words)
    captions = [f"picture {number}" for number in range(64)]
    latents = np.random.default_rng(0).standard_normal((64, 4, 8, 8)).astype(np.float16)
    write_captions(folder / "captions.arrow", captions)
    for first in (0, 32):
        samples = [
            {"caption_id": n, "caption": captions[n], "latent": latents[n], "meta": {}}
            for n in range(first, first + 32)
        ]
        write_shard(folder / f"latents-{first // 32:05d}.tar", samples)
    manifest = {
        "format": FORMAT,
        "teacher": "t",
        "captions": 64,
        "captions_sha256": sha256(folder / "captions.arrow"),
        **cache_identity(config),
    }
    shards = sorted(folder.glob("*.tar"))
    entries = [asdict(describe(shard)) for shard in shards]
    write_json(folder / "manifest.json", {**manifest, "latent_shape": [4, 8, 8], "shards": entries})
    ends: Counter[str] = Counter()
    for name in sorted(path.name for path in folder.iterdir()):
        good = (folder / name).read_bytes()
        for seed in range(CASES):
            bad = damaged(good, seed)
            if bad == good:  # they were zeros before
                continue
            (folder / name).write_bytes(bad)
            try:
                cache = LatentCache.open(config, "t")
                for number in range(64):
                    latent, own = cache.pair(number)
                    assert own == number and np.array_equal(latent, latents[number]), (name, seed)
                ends[f"{name} harmless"] += 1
            except UserError as error:
                assert str(folder) in str(error), (name, seed, error)
                ends[f"{name} refused"] += 1
        (folder / name).write_bytes(good)
    assert sum(ends.values()) > 5 * CASES
    assert not [end for end in ends if end.endswith("harmless") and not end.startswith("manifest.json")]
    shutil.rmtree(folder)
    with capsys.disabled():
        print(f"\n{dict(ends)}", end=" ")
