"""Tools for latent caches: check one against its manifest, look at it, take a part of it without copying."""

import os
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from randcond.data.cache.latent_cache import check_shard, checked_captions, first_entries
from randcond.data.cache.shards import FORMAT, Shard
from randcond.data.captions.caption_file import Captions, write_captions
from randcond.launch.errors import UserError
from randcond.launch.runtime.artefacts import check_matches
from randcond.launch.runtime.files import atomic_write, read_json, sha256, write_json
from randcond.launch.runtime.progress import Progress

SHOWN = 20  # faults


def verify(folder: str) -> None:
    """Checks every shard of a cache: bytes against the manifest, every latent and caption against what must be there.

    Ends with an error that names every faulty shard (and key). What is damaged is drawn again by
    `randcond run cache EXPERIMENT` once it is removed.
    """
    manifest = _manifest(Path(folder))
    captions = checked_captions(Path(folder), manifest)
    faults: list[str] = []
    for entry in Progress(manifest["shards"], desc="verifying", unit="shard"):
        try:
            for fault in shard_faults(Path(folder) / entry["shard"], entry, captions, tuple(manifest["latent_shape"])):
                faults.append(fault)  # one by one: what comes before a shard that breaks off counts
        except (UserError, tarfile.TarError, OSError) as error:
            faults.append(str(error) if entry["shard"] in str(error) else f"shard {entry['shard']}: {error}")
    if faults:
        more = [f"... and {len(faults) - SHOWN} more"] if len(faults) > SHOWN else []
        raise UserError("\n".join([f"{folder}: {len(faults)} faults", *faults[:SHOWN], *more]))
    latents = sum(entry["samples"] for entry in manifest["shards"])
    print(f"{folder}: {len(manifest['shards'])} shards, {latents:,} latents, all sound")


def shard_faults(path: Path, entry: dict[str, Any], captions: Captions, shape: tuple[int, ...]) -> Iterator[str]:
    """What is wrong with one shard, a line each; raises UserError when it can't be opened at all."""
    shard = Shard(path)
    try:
        check_shard(shard, entry, whole=True)
    except UserError as error:
        yield str(error)
    with tarfile.open(path) as archive:
        texts = {name.removesuffix(".txt"): name for name in archive.getnames() if name.endswith(".txt")}
        for row, caption_id in enumerate(shard.caption_ids[: entry["samples"]].tolist()):
            key = shard.key(row)
            try:
                latent = shard.latent(row)
            except UserError as error:
                yield str(error)
                continue
            if latent.shape != shape:
                yield f"shard {path}, key {key}: latent of shape {latent.shape}, the cache's are {shape}"
            file = archive.extractfile(texts[key]) if key in texts else None
            if file is None:
                yield f"shard {path}, key {key}: has no caption (.txt)"
            elif file.read().decode(errors="replace") != captions[caption_id]:
                yield f"shard {path}, key {key}: its caption is not caption {caption_id} of the cache"


def preview(folder: str, *, teacher: str, out: str = "", n: int = 16, seed: int = 0) -> None:
    """Decodes N random latents of a cache into a contact sheet with their captions.

    --teacher PATH  the diffusers folder, hub id or package:... whose VAE decodes them
    --out FILE      (default: FOLDER/preview.png)
    --n N           how many (default 16), --seed N: which

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
    with atomic_write(path) as aside:
        draw_captioned(images).save(aside, format="PNG")
    print(path)


def open_cache(folder: Path) -> tuple[Captions, list[tuple[Shard, int]]]:
    """The captions of a cache, and where each latent is (shard, row); raises UserError when it is not complete."""
    manifest = _manifest(folder)
    shards = [(Shard(folder / entry["shard"]), entry["samples"]) for entry in manifest["shards"]]
    return Captions(folder / "captions.arrow"), [(shard, row) for shard, taken in shards for row in range(taken)]


def subset(folder: str, out: str, *, n: int) -> None:
    """Makes a cache of the first N captions of another one at OUT, which goes on using its shards: nothing is copied.

    The captions of a cache are in random order, so the first N are what `cache.size=N` alone would have drawn; the
    paper's 10K and 100K out of its 212K (Figure 7) are such parts. Use it with paths.cache=OUT cache.size=N; an
    experiment that has the whole cache trains on a part of it with cache.used=N.

    example    randcond cache subset runs/cache-212k runs/cache-10k --n 10000
    """
    source, target = Path(folder), Path(out)
    manifest = _manifest(source)
    if not 1 <= n <= manifest["captions"]:
        raise UserError(f"--n: the cache at {source} holds {manifest['captions']} latents, {n} asked for")
    captions = Captions(source / "captions.arrow", n)
    places = [(source / entry["shard"]).resolve() for entry in manifest["shards"]]
    entries = [
        {**entry, "shard": os.path.relpath(place, target.resolve())}
        for entry, place in zip(first_entries(manifest, n, lambda number: Shard(places[number])), places, strict=False)
    ]
    if not (target / "manifest.json").is_file():  # else captions may be there of a source that a kill came before
        write_captions(target / "captions.arrow", captions)
    wanted = {
        **manifest,
        "captions": n,
        "captions_sha256": sha256(target / "captions.arrow"),
        "subset_of": os.path.relpath(source.resolve(), target.resolve()),
        "shards": entries,
    }
    if (target / "manifest.json").is_file():
        check_matches(
            read_json(target / "manifest.json"), wanted, f"the cache at {out}", "Remove it, or give another OUT."
        )
    else:
        write_json(target / "manifest.json", wanted)
    print(f"{n:,} latents in {len(entries)} shards of {folder} at {out}")


def _manifest(folder: Path) -> dict[str, Any]:
    path = folder / "manifest.json"
    if not path.is_file():
        raise UserError(f"no complete cache at {folder}: draw it with `randcond run cache EXPERIMENT`")
    manifest = read_json(path)
    if manifest.get("format") != FORMAT:
        raise UserError(f"the cache at {folder} has format {manifest.get('format')}, this version reads {FORMAT}")
    return manifest


COMMANDS = (verify, preview, subset)
