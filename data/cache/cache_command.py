"""Tools for latent caches: verify a cache, preview its latents, make a smaller cache without copying shards."""

import os
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from randcond.data.cache.cache_faults import cache_faults, read_manifest
from randcond.data.cache.latent_cache import checked_captions
from randcond.data.cache.manifest import (
    DAMAGED,
    HASH,
    captions_of_shard,
    check_captions,
    first_entries,
    read_cache_record,
    rewrite,
    shard_entries,
)
from randcond.data.cache.shards import Shard
from randcond.data.captions.caption_file import Captions, write_captions
from randcond.launch.errors import UserError
from randcond.launch.runtime.artefacts import check_matches
from randcond.launch.runtime.files import atomic_write, sha256, write_json
from randcond.launch.runtime.progress import Progress

SHOWN = 20  # maximum number of faults in an error message


def verify(folder: str) -> None:
    """Verifies a latent cache: its captions, the list of its shards, the checksum of every shard, every latent in it.

    Each caption must have its latent once, in order, unless it was left out. Fails with a list of the faults. To repair
    a cache, run `randcond run cache EXPERIMENT` then: it makes the faulty shards again, and no others. It finds them by
    notes (NAME.damaged) that this command writes beside them, because it does not read every shard itself.
    """
    manifest = read_manifest(Path(folder))
    if faults := list(cache_faults(Path(folder), manifest)):
        more = [f"... and {len(faults) - SHOWN} more"] if len(faults) > SHOWN else []
        raise UserError("\n".join([f"{folder}: {len(faults)} faults", *faults[:SHOWN], *more]))
    entries = shard_entries(manifest, Path(folder) / "manifest.json")
    latents = sum(entry.samples for entry in entries)
    print(f"{folder}: {len(entries)} shards, {latents:,} latents, no faults found")


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

    Raises UserError if the cache is incomplete, or holds other captions than its manifest says.
    """
    manifest = read_manifest(folder)
    captions = checked_captions(folder, manifest)
    rows: list[tuple[Shard, int]] = []
    left_out = 0
    for number, entry in enumerate(shard_entries(manifest, folder / "manifest.json")):
        shard = Shard(folder / entry.shard)
        check_captions(shard, entry, captions_of_shard(number, manifest["shard_size"], manifest["captions"]))
        rows += [(shard, row) for row in range(entry.samples)]
        left_out += entry.left_out
    if len(rows) + left_out != len(captions):
        raise UserError(
            f"{folder}: its manifest lists {len(rows)} latents of {len(captions)} captions; {rewrite(folder)}"
        )
    return captions, rows


def subset(folder: str, out: str, *, n: int) -> None:
    """Makes a smaller cache at OUT from the first N captions of another cache, without copying any shard.

    OUT refers to the shards of the original cache, so keep both. Captions in a cache are in random order: the first N
    are the ones that cache.size=N would have drawn. The paper's 10K and 100K caches are subsets of its 212K cache
    (Figure 7). To train on OUT, set paths.cache=OUT cache.size=N. To train on a part of a cache without making a new
    one, set cache.used=N.

    example    randcond cache subset runs/cache-212k runs/cache-10k --n 10000
    """
    source, target = Path(folder), Path(out)
    manifest = read_manifest(source)
    if not 1 <= n <= manifest["captions"]:
        raise UserError(f"--n: is {n}, expected 1 to {manifest['captions']}, the size of the cache at {source}")
    captions = Captions(source / "captions.arrow", n)
    all_entries = shard_entries(manifest, source / "manifest.json")
    paths = [(source / entry.shard).resolve() for entry in all_entries]
    first = first_entries(all_entries, manifest["shard_size"], n, lambda number: Shard(paths[number]))
    entries = [
        replace(entry, shard=os.path.relpath(path, target.resolve())) for entry, path in zip(first, paths, strict=False)
    ]
    stored = _stored_manifest(target)
    written = target / "captions.arrow"
    if stored is None or (
        "subset_of" in stored and not (written.is_file() and sha256(written) == stored["captions_sha256"])
    ):
        write_captions(written, captions)  # overwrites captions that are damaged, or that a killed command left behind
    expected = {
        **manifest,
        "captions": n,
        "captions_sha256": sha256(target / "captions.arrow"),
        "subset_of": os.path.relpath(source.resolve(), target.resolve()),
        "shards": [asdict(entry) for entry in entries],
    }
    if stored is not None:
        facts = {key: value for key, value in expected.items() if key not in (HASH, DAMAGED)}
        check_matches(stored, facts, f"the cache at {out}", "Choose another OUT.")
    else:
        write_json(target / "manifest.json", expected)
    print(f"{out}: {n:,} latents in {len(entries)} shards of {folder}")


def _stored_manifest(folder: Path) -> dict[str, Any] | None:
    """Returns the manifest of a subset, None if there is none, or if it is damaged: it is then made again.

    Raises UserError if the folder is an unfinished cache with shards of its own.
    """
    path = folder / "manifest.json"
    try:
        stored = read_cache_record(path, "captions_sha256") if path.is_file() else None
    except UserError:
        stored = None
    if stored is None and ((folder / "plan.json").exists() or any(folder.glob("*.tar"))):
        raise UserError(f"{folder}: holds another cache; choose another OUT")
    return stored


COMMANDS = (verify, preview, subset)
