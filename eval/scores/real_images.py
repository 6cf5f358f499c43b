"""Features of real images, in chunks that any number of processes share, and the statistics of each split.

In: a folder of images, lists of file names. Out: OUT/SPLIT.npz and OUT/SPLIT.safetensors (`eval/statistics.py`).
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
from randcond.eval.images.extractor import Extractor
from randcond.eval.images.prompts import ALL
from randcond.eval.images.protocol_images import as_file, from_picture
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

CHUNK = 512  # images of one piece of work


def statistics_of_folder(
    folder: Path, out: Path, ev: Eval, splits: Path | None, size: int | None, jpeg: bool
) -> dict[Path, int]:
    """Writes the statistics of each split; the files and how many images they are of.

    Raises UserError naming a folder without images, an image that can't be read, a list that names one not there.
    """
    metrics = find_metrics(ev.metrics)
    rows = {row: metrics[name].needs[row] for name in metrics if (row := METRICS[name].compares)}
    if not rows:
        raise UserError(f"metrics: none of {', '.join(ev.metrics)} compares with real images; take fid or fd-dinov2")
    images = sorted(path for path in folder.rglob("*") if path.suffix.lower() in KINDS)
    if not images:
        raise UserError(f"{folder}: holds no image ({', '.join(KINDS)})")
    parts = read_splits(splits, images)
    extractors = load_extractors(sorted(set(rows.values())), ev, device())
    listing = "\n".join(f"{path.relative_to(folder)} {path.stat().st_size}" for path in images)
    made_of = {
        "images": len(images),
        "images_sha256": hashlib.sha256(listing.encode()).hexdigest()[:16],  # of names and sizes
        "size": size,
        "jpeg": jpeg,
        "batch": ev.batch,
        "extractors": {name: extractor.identity for name, extractor in extractors.items()},
    }
    work = out / "features"
    if (work / "plan.json").is_file():
        check_matches(
            read_json(work / "plan.json"), made_of, f"the work begun at {work}", "Remove it, or give another OUT."
        )
    else:
        write_json(work / "plan.json", made_of)
    chunks = [work / f"chunk-{number:05d}.safetensors" for number in range(-(-len(images) // CHUNK))]
    done = sum(map(Path.is_file, chunks))
    with Progress(total=len(chunks), initial=done, desc="reading images", unit="chunk") as bar:
        for number in claim_each(chunks, Path.is_file):
            mine = images[number * CHUNK : (number + 1) * CHUNK]
            with atomic_write(chunks[number]) as aside:
                save_file(_features(mine, list(extractors.values()), ev.batch, size, jpeg), aside)
            bar.update(sum(map(Path.is_file, chunks)) - bar.n)
    written = {}
    for row, extractor in rows.items():
        features = torch.cat([_load(chunk)[row] for chunk in chunks])
        facts = {key: made_of[key] for key in ("size", "jpeg", "images_sha256")}
        facts["extractor"] = extractors[extractor].identity
        for split, ids in parts.items():
            path = write_statistics(out, split, row, features[ids], facts)
            written[path] = len(ids)
    return written


def _load(chunk: Path) -> dict[str, Tensor]:
    try:
        return load_file(chunk)
    except SafetensorError as error:
        raise UserError(f"{chunk}: damaged ({error}); remove it and go on: it alone is read anew") from None


def read_splits(folder: Path | None, images: list[Path]) -> dict[str, list[int]]:
    """Split -> numbers of its images, by SPLIT.csv with a column file_name; "all" is every image without a list."""
    places: dict[str, list[int]] = {}
    for number, image in enumerate(images):
        places.setdefault(image.name, []).append(number)
    parts = {ALL: list(range(len(images)))}
    if folder is None:
        return parts
    lists = sorted(folder.glob("*.csv"))
    if not lists:
        raise UserError(f"--splits: {folder} holds no SPLIT.csv; `randcond concepts coco` writes them")
    for path in lists:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            if "file_name" not in (reader.fieldnames or []):
                raise UserError(f"{path}: has no column file_name")
            names = [row["file_name"] for row in reader]
        if missing := [name for name in names if name not in places]:
            raise UserError(f"{path}: names {len(missing)} images that are not there, the first {missing[0]}")
        if twice := [name for name in names if len(places[name]) > 1]:
            raise UserError(f"{path}: {twice[0]} is the name of {len(places[twice[0]])} images in different folders")
        parts[path.stem] = sorted({places[name][0] for name in names})
    return parts


def _features(
    images: list[Path], extractors: list[Extractor], batch: int, size: int | None, jpeg: bool
) -> dict[str, Tensor]:
    found: dict[str, list[Tensor]] = {}
    with ThreadPoolExecutor(4) as pool:  # Pillow lets other threads run while it decodes
        for start in range(0, len(images), batch):
            held = list(pool.map(lambda path: read_real(path, size, jpeg), images[start : start + batch]))
            groups = [torch.stack(held)] if len({each.shape for each in held}) == 1 else [each[None] for each in held]
            for group in groups:  # images of different sizes go one by one
                for extractor in extractors:
                    for row, values in extractor.read(group, [""] * len(group)).items():
                        found.setdefault(row, []).append(values)
    return {row: torch.cat(values) for row, values in found.items()}


def read_real(path: Path, size: int | None, jpeg: bool) -> Tensor:
    """A real image as the statistics read it, uint8 [3, h, w]: resized without keeping its aspect, then JPEG."""
    try:
        picture = Image.open(path).convert("RGB")
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(f"{path}: can't be read as an image ({error}); mend or remove it") from None
    if size:
        picture = picture.resize((size, size))
    if jpeg:
        picture = Image.open(io.BytesIO(as_file(picture))).convert("RGB")
    return from_picture(picture)
