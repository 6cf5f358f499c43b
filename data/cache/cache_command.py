"""Tools for latent caches: verify a cache, preview its latents, make a smaller cache without copying shards."""

import os
import tarfile
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from randcond.data.cache.latent_cache import checked_captions
from randcond.data.cache.manifest import ShardEntry, check_shard, first_entries, shard_entries
from randcond.data.cache.shards import FORMAT, Shard
from randcond.data.captions.caption_file import Captions, write_captions
from randcond.launch.errors import UserError
from randcond.launch.runtime.artefacts import check_matches
from randcond.launch.runtime.files import atomic_write, read_json, sha256, write_json
from randcond.launch.runtime.progress import Progress

SHOWN = 20  # maximum number of faults in an error message


def verify(folder: str) -> None:
    """Verifies a latent cache: the checksum of every shard, and every latent and caption in it.

    Fails with a list of the faulty shards and keys. To repair a cache, remove the faulty shards together with their
    indexes and run `randcond run cache EXPERIMENT`.
    """
    manifest = _manifest(Path(folder))
    captions = checked_captions(Path(folder), manifest)
    faults: list[str] = []
    entries = shard_entries(manifest, Path(folder) / "manifest.json")
    for entry in Progress(entries, desc="verifying", unit="shard"):
        try:
            for fault in shard_faults(Path(folder) / entry.shard, entry, captions, tuple(manifest["latent_shape"])):
                faults.append(fault)  # one by one, so that faults found before an exception are kept
        except (UserError, tarfile.TarError, OSError) as error:
            faults.append(str(error) if entry.shard in str(error) else f"shard {entry.shard}: {error}")
    if faults:
        more = [f"... and {len(faults) - SHOWN} more"] if len(faults) > SHOWN else []
        raise UserError("\n".join([f"{folder}: {len(faults)} faults", *faults[:SHOWN], *more]))
    latents = sum(entry.samples for entry in entries)
    print(f"{folder}: {len(entries)} shards, {latents:,} latents, no faults found")


def shard_faults(path: Path, entry: ShardEntry, captions: Captions, shape: tuple[int, ...]) -> Iterator[str]:
    """Yields one line per fault of a shard. `shape`: the expected latent shape (C, h, w).

    Raises UserError if the shard can't be opened.
    """
    shard = Shard(path)
    try:
        check_shard(shard, entry, read_all=True)
    except UserError as error:
        yield str(error)
    with tarfile.open(path) as archive:
        caption_files = {name.removesuffix(".txt"): name for name in archive.getnames() if name.endswith(".txt")}
        for row, caption_id in enumerate(shard.caption_ids[: entry.samples].tolist()):
            key = shard.key(row)
            try:
                latent = shard.latent(row)
            except UserError as error:
                yield str(error)
                continue
            if latent.shape != shape:
                yield f"shard {path}, key {key}: the latent has shape {latent.shape}, expected {shape}"
            file = archive.extractfile(caption_files[key]) if key in caption_files else None
            if file is None:
                yield f"shard {path}, key {key}: has no caption (.txt)"
            elif file.read().decode(errors="replace") != captions[caption_id]:
                yield f"shard {path}, key {key}: its caption differs from caption {caption_id} in captions.arrow"


def preview(folder: str, *, teacher: str, out: str = "", n: int = 16, seed: int = 0) -> None:
    """Decodes N random latents of a cache and writes a contact sheet of the images with their captions.

    --teacher PATH  teacher whose VAE decodes the latents: a diffusers folder, a hub id or package:...
    --out FILE      image to write (default: FOLDER/preview.png)
    --n N           number of latents (default: 16)
    --seed N        random seed that selects the latents (default: 0)

    example    randcond cache preview runs/demo/cache --teacher package:data/digits/models/teacher
    """
    import torch

    from randcond.data.contact_sheet import draw_captioned
    from randcond.launch.config.paths import resolve_path
    from randcond.launch.runtime.ranks import device
    from randcond.model_zoo.sampler import decode
    from randcond.model_zoo.teacher import Teacher

    captions, rows = open_cache(Path(folder))
    chosen = sorted(np.random.default_rng(seed).permutation(len(rows))[:n].tolist())
    loaded = Teacher.load(resolve_path(teacher), "fp32", device())
    images = []
    for shard, row in Progress([rows[index] for index in chosen], desc="decoding", unit="latent"):
        latent = torch.from_numpy(shard.latent(row)).float()[None].to(loaded.device)
        images.append((decode(loaded.pipe, latent)[0].cpu() / 2 + 0.5, captions[int(shard.caption_ids[row])]))
    path = Path(out) if out else Path(folder) / "preview.png"
    with atomic_write(path) as temporary:
        draw_captioned(images).save(temporary, format="PNG")
    print(path)


def open_cache(folder: Path) -> tuple[Captions, list[tuple[Shard, int]]]:
    """Returns the captions of a cache, and the location (shard, row) of each latent.

    Raises UserError if the cache is incomplete.
    """
    manifest = _manifest(folder)
    entries = shard_entries(manifest, folder / "manifest.json")
    shards = [(Shard(folder / entry.shard), entry.samples) for entry in entries]
    return Captions(folder / "captions.arrow"), [(shard, row) for shard, samples in shards for row in range(samples)]


def subset(folder: str, out: str, *, n: int) -> None:
    """Makes a smaller cache at OUT from the first N captions of another cache, without copying any shard.

    OUT refers to the shards of the original cache, so keep both. Captions in a cache are in random order: the first N
    are the ones that cache.size=N would have drawn. The paper's 10K and 100K caches are subsets of its 212K cache
    (Figure 7). To train on OUT, set paths.cache=OUT cache.size=N. To train on a part of a cache without making a new
    one, set cache.used=N.

    example    randcond cache subset runs/cache-212k runs/cache-10k --n 10000
    """
    source, target = Path(folder), Path(out)
    manifest = _manifest(source)
    if not 1 <= n <= manifest["captions"]:
        raise UserError(f"--n: is {n}, expected 1 to {manifest['captions']}, the size of the cache at {source}")
    captions = Captions(source / "captions.arrow", n)
    all_entries = shard_entries(manifest, source / "manifest.json")
    paths = [(source / entry.shard).resolve() for entry in all_entries]
    first = first_entries(all_entries, manifest["shard_size"], n, lambda number: Shard(paths[number]))
    entries = [
        replace(entry, shard=os.path.relpath(path, target.resolve())) for entry, path in zip(first, paths, strict=False)
    ]
    if not (target / "manifest.json").is_file():  # overwrites captions that a killed command left behind
        write_captions(target / "captions.arrow", captions)
    expected = {
        **manifest,
        "captions": n,
        "captions_sha256": sha256(target / "captions.arrow"),
        "subset_of": os.path.relpath(source.resolve(), target.resolve()),
        "shards": [asdict(entry) for entry in entries],
    }
    if (target / "manifest.json").is_file():
        check_matches(
            read_json(target / "manifest.json"), expected, f"the cache at {out}", "Remove it, or choose another OUT."
        )
    else:
        write_json(target / "manifest.json", expected)
    print(f"{out}: {n:,} latents in {len(entries)} shards of {folder}")


def _manifest(folder: Path) -> dict[str, Any]:
    path = folder / "manifest.json"
    if not path.is_file():
        raise UserError(f"no complete cache at {folder}: create or finish it with `randcond run cache EXPERIMENT`")
    manifest = read_json(path)
    if manifest.get("format") != FORMAT:
        raise UserError(
            f"the cache at {folder} has format {manifest.get('format')}, expected {FORMAT}; remove it and create it "
            f"again with `randcond run cache EXPERIMENT`"
        )
    return manifest


COMMANDS = (verify, preview, subset)
