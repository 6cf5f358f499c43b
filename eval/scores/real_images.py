"""Reads the features of real images and writes the statistics of each split (`randcond eval stats`).

In: a folder of images, lists of file names. Out: OUT/SPLIT.npz and OUT/SPLIT.safetensors (see statistics.py).
The work is divided into chunks, which any number of processes share.
"""

import csv
import hashlib
import io
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from randcond.data.cache.captioned_images import KINDS
from randcond.data.captions.readers import readable_csv
from randcond.eval.images.extractor import Extractor
from randcond.eval.images.prompts import ALL
from randcond.eval.images.protocol_images import from_picture, jpeg_bytes
from randcond.eval.scores.extractors import load_extractors
from randcond.eval.scores.metrics import METRICS, find_metrics
from randcond.eval.scores.statistics import write_statistics
from randcond.launch.config.sections import Eval
from randcond.launch.errors import UserError
from randcond.launch.runtime.artefacts import check_matches
from randcond.launch.runtime.files import atomic_write, read_json, write_json
from randcond.launch.runtime.locks import claim_each
from randcond.launch.runtime.progress import Progress
from randcond.launch.runtime.ranks import device

CHUNK = 512  # images per chunk


def statistics_of_folder(
    folder: Path, out: Path, ev: Eval, splits: Path | None, size: int | None, jpeg: bool
) -> dict[Path, int]:
    """Writes the statistics of each split; returns the files and the number of images of each.

    `size`: images are resized to size x size pixels; None: not resized. Raises UserError naming a folder without
    images, an image that can't be read, or a list that names a missing image.
    """
    metrics = find_metrics(ev.metrics)
    extractor_names = {feature: metrics[name].needs[feature] for name in metrics if (feature := METRICS[name].compares)}
    if not extractor_names:
        raise UserError(f"metrics: none of {', '.join(ev.metrics)} compares with real images; take fid or fd-dinov2")
    images = sorted(path for path in folder.rglob("*") if path.suffix.lower() in KINDS)
    if not images:
        raise UserError(f"{folder}: has no images ({', '.join(KINDS)})")
    split_ids = read_splits(splits, images)
    extractors = load_extractors(sorted(set(extractor_names.values())), ev, device())
    listing = "\n".join(f"{path.relative_to(folder)} {path.stat().st_size}" for path in images)
    identity = {
        "images": len(images),
        "images_sha256": hashlib.sha256(listing.encode()).hexdigest()[:16],  # of names and sizes
        "size": size,
        "jpeg": jpeg,
        "batch": ev.batch,
        "extractors": {name: extractor.identity for name, extractor in extractors.items()},
    }
    work = out / "features"
    if (work / "plan.json").is_file():
        remedy = "Remove it, or give another OUT."
        check_matches(read_json(work / "plan.json"), identity, f"the unfinished work at {work}", remedy)
    else:
        write_json(work / "plan.json", identity)
    chunks = [work / f"chunk-{number:05d}.safetensors" for number in range(-(-len(images) // CHUNK))]
    done = sum(map(Path.is_file, chunks))
    with Progress(total=len(chunks), initial=done, desc="reading images", unit="chunk") as bar:
        for number in claim_each(chunks, Path.is_file):
            chunk_images = images[number * CHUNK : (number + 1) * CHUNK]
            with atomic_write(chunks[number]) as temporary:
                save_file(_read_features(chunk_images, list(extractors.values()), ev.batch, size, jpeg), temporary)
            bar.update(sum(map(Path.is_file, chunks)) - bar.n)
    written = {}
    for feature, extractor_name in extractor_names.items():
        features = torch.cat([_load_chunk(chunk)[feature] for chunk in chunks])
        facts = {key: identity[key] for key in ("size", "jpeg", "images_sha256")}
        facts["extractor"] = extractors[extractor_name].identity
        for split, ids in split_ids.items():
            path = write_statistics(out, split, feature, features[ids], facts)
            written[path] = len(ids)
    return written


def _load_chunk(chunk: Path) -> dict[str, Tensor]:
    try:
        return load_file(chunk)
    except SafetensorError as error:
        raise UserError(
            f"{chunk}: is damaged ({error}); remove it and run the command again: only this file is read again"
        ) from None


def read_splits(folder: Path | None, images: list[Path]) -> dict[str, list[int]]:
    """Reads the lists SPLIT.csv (column file_name); returns split -> indices of its images.

    The split "all" holds every image if there is no all.csv. Raises UserError naming the list that is wrong.
    """
    indices: dict[str, list[int]] = {}  # file name -> indices of the images that have it
    for index, image in enumerate(images):
        indices.setdefault(image.name, []).append(index)
    splits = {ALL: list(range(len(images)))}
    if folder is None:
        return splits
    lists = sorted(folder.glob("*.csv"))
    if not lists:
        raise UserError(f"--splits: {folder} has no SPLIT.csv; `randcond concepts coco` writes such lists")
    for path in lists:
        with path.open(newline="", encoding="utf-8-sig") as file, readable_csv(path):
            reader = csv.DictReader(file)
            if "file_name" not in (reader.fieldnames or []):
                raise UserError(f"{path}: has no column file_name")
            names = [row["file_name"] for row in reader]
        if missing := [name for name in names if name not in indices]:
            raise UserError(f"{path}: names {len(missing)} images that do not exist, the first is {missing[0]}")
        if ambiguous := [name for name in names if len(indices[name]) > 1]:
            raise UserError(
                f"{path}: {ambiguous[0]} is the name of {len(indices[ambiguous[0]])} images in different folders"
            )
        splits[path.stem] = sorted({indices[name][0] for name in names})
    return splits


def _read_features(
    paths: list[Path], extractors: list[Extractor], batch: int, size: int | None, jpeg: bool
) -> dict[str, Tensor]:
    """Reads all features of some image files: name -> [n, ...]."""
    parts: dict[str, list[Tensor]] = {}
    with ThreadPoolExecutor(4) as pool:  # Pillow releases the GIL while it decodes
        for start in range(0, len(paths), batch):
            images = list(pool.map(lambda path: read_real(path, size, jpeg), paths[start : start + batch]))
            same_size = len({image.shape for image in images}) == 1
            groups = [torch.stack(images)] if same_size else [image[None] for image in images]
            for group in groups:
                for extractor in extractors:
                    for name, values in extractor.read(group, [""] * len(group)).items():
                        parts.setdefault(name, []).append(values)
    return {name: torch.cat(values) for name, values in parts.items()}


def read_real(path: Path, size: int | None, jpeg: bool) -> Tensor:
    """Loads a real image as uint8 [3, h, w], values 0 to 255.

    Resizes it to size x size pixels without keeping the aspect ratio (None: not at all), then applies JPEG if `jpeg`.
    Raises UserError if the file can't be read.
    """
    try:
        picture = Image.open(path).convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"{path}: can't be read as an image ({error}); repair or remove it") from None
    if size:
        picture = picture.resize((size, size))
    if jpeg:
        picture = Image.open(io.BytesIO(jpeg_bytes(picture))).convert("RGB")
    return from_picture(picture)
