"""Reads the features of real images and writes the statistics of each split (`randcond eval stats`).

In: a folder of images, lists of file names. Out: OUT/SPLIT.npz and OUT/SPLIT.safetensors (see statistics.py).
The work is divided into chunks, which any number of processes share.
"""

import hashlib
import io
import json
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from randcond.data.images.decode import LARGE, READING, BadImage, one_large, read_image
from randcond.data.images.find import Found, find_images
from randcond.data.images.left_out import left_out
from randcond.data.rows.columns import FILE_NAME
from randcond.data.rows.tables import read_table
from randcond.eval.features.load import load_extractors
from randcond.eval.images.extractor import Extractor
from randcond.eval.images.prompts import ALL
from randcond.eval.images.protocol_images import from_picture, jpeg_bytes
from randcond.eval.scores.metrics import METRICS, find_metrics
from randcond.eval.scores.statistics import write_statistics
from randcond.launch.config.sections import Eval
from randcond.launch.errors import UserError
from randcond.launch.runtime.artefacts import check_matches
from randcond.launch.runtime.files import atomic_write, read_record, write_json
from randcond.launch.runtime.locks import claim_each
from randcond.launch.runtime.logs import log
from randcond.launch.runtime.progress import Progress
from randcond.launch.runtime.ranks import device

CHUNK = 512  # images per chunk
READ_AT_ONCE = 32  # images, if the settings give no batch
LARGEST_BATCH = 3 << 25  # values of images that are not resized, 100 MB: 32 of 1024 x 1024; a batch of more is divided
LARGEST_SIZE = 2048  # pixels a side that images are resized to
LARGEST_JPEG = 65_500  # pixels a side that JPEG files can have in libjpeg


@dataclass(frozen=True)
class _Chunk:
    """The features of up to CHUNK images, and the images that have none."""

    features: dict[str, Tensor]  # name -> [n, ...]; empty if no image can be used
    rows: Tensor  # which image of the chunk each row belongs to, [n]
    bad: list[list[str]]  # [reason, sentence] of each image that is left out


def statistics_of_folder(
    folder: Path, out: Path, ev: Eval, splits: Path | None, size: int | None, jpeg: bool, on_error: str = "stop"
) -> dict[Path, int]:
    """Writes the statistics of each split; returns the files and the number of images of each.

    `size`: images are resized to size x size pixels; None: not resized. `on_error`: "stop", or "skip" to leave out
    images that can't be used. What was passed over or left out is logged, and stands in the files.
    Raises UserError naming a folder without images, an image that can't be used, or a list that names a missing image;
    or if `size` is not between 1 and LARGEST_SIZE.
    """
    if size is not None and not 1 <= size <= LARGEST_SIZE:
        raise UserError(f"--size: is {size}, expected 1 to {LARGEST_SIZE}, or 0 to keep each image as it is")
    metrics = find_metrics(ev.metrics)
    extractor_names = {feature: metrics[name].needs[feature] for name in metrics if (feature := METRICS[name].compares)}
    if not extractor_names:
        raise UserError(
            f"metrics: none of {', '.join(ev.metrics) or '[]'} compares with real images; take fid or fd-dinov2"
        )
    found = find_images(folder)
    log.info(f"{folder}: {found}")
    if not found.images:
        raise UserError(f"{folder}: has no images; docs/data.md lists the suffixes that are read")
    split_ids = read_splits(splits, found.images)
    extractors = load_extractors(sorted(set(extractor_names.values())), ev, device())
    batch = ev.batch or READ_AT_ONCE
    identity = {
        "images": len(found.images),
        "images_sha256": _listing_sha256(folder, found)[:16],
        "size": size,
        "jpeg": jpeg,
        "batch": batch,
        "extractors": {name: extractor.identity for name, extractor in extractors.items()},
        "reading": READING,
    }
    work = out / "features"
    paths = [work / f"chunk-{number:05d}.safetensors" for number in range(-(-len(found.images) // CHUNK))]
    done = sum(map(Path.is_file, paths))
    plan = _agreed_plan(work, identity, finished=done == len(paths))
    with Progress(total=len(paths), initial=done, desc="reading images", unit="chunk") as bar:
        for number in claim_each(paths, Path.is_file):
            images = found.images[number * CHUNK : (number + 1) * CHUNK]
            chunk = _read_features(images, list(extractors.values()), batch, size, jpeg, on_error == "skip")
            _save_chunk(paths[number], chunk)
            bar.update(sum(map(Path.is_file, paths)) - bar.n)
    chunks = [_load_chunk(path) for path in paths]
    reasons = _check_bad(folder, [bad for chunk in chunks for bad in chunk.bad], on_error)
    facts: dict[str, Any] = {key: plan[key] for key in ("size", "jpeg", "images_sha256", "reading") if key in plan}
    if "reading" in plan:  # an older version wrote no more, and what it has written stays the same
        facts |= {"passed_over": dict(found.passed_over), "left_out": reasons}
    return _write_splits(out, chunks, split_ids, facts, extractor_names, extractors)


def _agreed_plan(work: Path, identity: dict[str, Any], finished: bool) -> dict[str, Any]:
    """Returns the plan of the work in a folder: the stored one, or `identity`, which it writes if there is none.

    `finished`: all features are there. Features of an older version, whose plan says nothing about how images were
    read, are used as they are then. Raises UserError if the plan has other settings, or if images that this version
    reads would be mixed with those of an older one.
    """
    if not (work / "plan.json").is_file():
        write_json(work / "plan.json", identity)
        return identity
    stored = read_record(work / "plan.json")
    remedy = "Restore these settings, or give another OUT."
    check_matches(stored, identity, f"the work at {work}", remedy, {"reading": READING})
    if "reading" not in stored and not finished:
        raise UserError(
            f"{work}: was begun by an older version, which did not turn images by their EXIF data and dropped their "
            f"transparency; finish it with that version, or give another OUT"
        )
    return stored


def _listing_sha256(folder: Path, found: Found) -> str:
    """Returns a hash of the names and sizes of the images."""
    listing = "\n".join(f"{path.relative_to(folder)} {path.stat().st_size}" for path in found.images)
    return hashlib.sha256(listing.encode("utf-8", "surrogateescape")).hexdigest()


def _check_bad(folder: Path, bad: list[list[str]], on_error: str) -> dict[str, int]:
    """Returns the number of images left out by reason, and logs it.

    Raises UserError if there are any although `on_error` is stop: an earlier command left them out.
    """
    reasons = Counter(reason for reason, _ in bad)
    if bad and on_error == "stop":
        raise UserError(
            f"{folder}: an earlier command left out {left_out(reasons, [said for _, said in bad])}; "
            f"give --on-error skip again, or repair them and give another OUT"
        )
    if bad:
        log.warning(f"{folder}: left out {left_out(reasons, [said for _, said in bad])}")
    return dict(reasons)


def _write_splits(
    out: Path,
    chunks: list[_Chunk],
    split_ids: dict[str, list[int]],
    facts: dict[str, Any],
    extractor_names: dict[str, str],
    extractors: dict[str, Extractor],
) -> dict[Path, int]:
    rows = torch.cat([number * CHUNK + chunk.rows for number, chunk in enumerate(chunks)])
    row_of = {image: row for row, image in enumerate(rows.tolist())}
    written = {}
    for feature, extractor_name in extractor_names.items():
        parts = [chunk.features[feature] for chunk in chunks if feature in chunk.features]
        features = torch.cat(parts) if parts else torch.empty(0, extractors[extractor_name].width)
        for split, ids in split_ids.items():
            kept = [row_of[image] for image in ids if image in row_of]
            known = {**facts, "extractor": extractors[extractor_name].identity}
            path = write_statistics(out, split, feature, features[kept], known)
            written[path] = len(kept)
    return written


def _save_chunk(path: Path, chunk: _Chunk) -> None:
    with atomic_write(path) as temporary:
        save_file({**chunk.features, "rows": chunk.rows}, temporary, metadata={"bad": json.dumps(chunk.bad)})


def _load_chunk(path: Path) -> _Chunk:
    try:
        with safe_open(path, "pt") as file:
            features = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  it is no dictionary
            bad = json.loads((file.metadata() or {}).get("bad", "[]"))
    except SafetensorError as error:
        raise UserError(
            f"{path}: is damaged ({error}); remove it and run the command again: only this file is read again"
        ) from None
    rows = features.pop("rows", None)
    if rows is None:  # of an older version, which left out no image
        rows = torch.arange(len(next(iter(features.values()))))
    return _Chunk(features, rows, bad)


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
        names = [row.values["file_name"] for row in read_table(path, {"file_name": FILE_NAME})]
        if missing := [name for name in names if name not in indices]:
            raise UserError(f"{path}: names {len(missing)} images that do not exist, the first is {missing[0]}")
        if ambiguous := [name for name in names if len(indices[name]) > 1]:
            raise UserError(
                f"{path}: {ambiguous[0]} is the name of {len(indices[ambiguous[0]])} images in different folders"
            )
        splits[path.stem] = sorted({indices[name][0] for name in names})
    return splits


def _read_features(
    paths: list[Path], extractors: list[Extractor], batch: int, size: int | None, jpeg: bool, skip: bool
) -> _Chunk:
    """Reads all features of some image files. Without `skip`, raises UserError for an image that can't be used."""
    parts: dict[str, list[Tensor]] = {}
    rows: list[int] = []
    bad: list[list[str]] = []

    def read(path: Path) -> Tensor | BadImage:
        try:
            return read_real(path, size, jpeg)
        except BadImage as error:
            if skip:
                return error
            raise UserError(f"{error}; repair or remove it, or leave it out with --on-error skip") from None

    def add_features(images: list[Tensor]) -> None:
        small = size or sum(image.numel() for image in images) <= 2 * LARGEST_BATCH
        together = small and len({image.shape for image in images}) == 1
        for group in [torch.stack(images)] if together else [image[None] for image in images]:
            for extractor in extractors:
                for name, values in extractor.read(group, [""] * len(group)).items():
                    parts.setdefault(name, []).append(values)

    at_once = batch if size else 2  # two images of the largest size need 2 GB
    with ThreadPoolExecutor(4) as pool:  # Pillow releases the GIL while it decodes
        for start in range(0, len(paths), batch):
            images: list[Tensor] = []
            end = min(start + batch, len(paths))
            for first in range(start, end, at_once):
                for row, image in enumerate(pool.map(read, paths[first : min(first + at_once, end)]), first):
                    if isinstance(image, BadImage):
                        bad.append([image.reason, str(image)])
                    else:
                        rows.append(row)
                        images.append(image)
                if not size and sum(image.numel() for image in images) > LARGEST_BATCH:
                    add_features(images)
                    images = []
            add_features(images)
    return _Chunk(
        {name: torch.cat(values) for name, values in parts.items()}, torch.tensor(rows, dtype=torch.long), bad
    )


def read_real(path: Path, size: int | None, jpeg: bool) -> Tensor:
    """Loads a real image as uint8 [3, h, w], values 0 to 255.

    Resizes it to size x size pixels without keeping the aspect ratio (None: not at all), then applies JPEG if `jpeg`.
    Raises BadImage if the image can't be used.
    """
    picture = read_image(path)
    if size:
        picture = picture.resize((size, size))
    if jpeg and max(picture.size) > LARGEST_JPEG:
        width, height = picture.size
        detail = f"is too large for JPEG: {width:,} x {height:,} pixels, at most {LARGEST_JPEG:,} a side"
        raise BadImage(str(path), "too large for JPEG", detail)
    with one_large if picture.width * picture.height > LARGE else nullcontext():
        if jpeg:
            picture = Image.open(io.BytesIO(jpeg_bytes(picture))).convert("RGB")
        return from_picture(picture)
