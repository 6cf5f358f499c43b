"""Real images with captions, for the rows that train on them (Table 1, rows 3 and 6): a folder, or WebDataset tars.

In: a folder of images with metadata.csv or metadata.jsonl (file_name, caption) or a .txt beside each; or tars of pairs
(KEY.jpg, KEY.txt). Out: captions, and images by number.
"""

import csv
import io
import json
import tarfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torchvision.transforms import v2

from randcond.data.captions.row_filter import clean_text
from randcond.data.captions.sources import COLUMNS
from randcond.data.inputs.catalogue import MissingInput, missing_input
from randcond.launch.config.paths import is_url
from randcond.launch.errors import UserError

KINDS = (".jpg", ".jpeg", ".png", ".webp")


class Picture(NamedTuple):
    """Where an image is, and what its caption says."""

    name: str  # for errors and metadata: a path below the folder, or TAR/KEY
    caption: str
    file: Path  # the image, or the tar that holds it
    start: int = 0  # in the tar
    size: int = -1  # bytes; -1: the whole file


def find_pictures(source: str) -> list[Picture]:
    """The captioned images of a folder or of tars (a file, a folder or a glob of them), in a fixed order.

    Raises UserError naming what is not there, has no caption or can't be read.
    """
    if is_url(source):
        raise UserError(f"cache.images: {source}: images are read from a disk; `randcond fetch`, or copy them first")
    path = Path(source)
    if path.is_dir():
        tars = sorted(path.glob("*.tar"))
    else:
        tars = [path] if path.is_file() else sorted(Path(path.parent).glob(path.name))
    if not tars and not path.is_dir():
        raise MissingInput(f"cache.images: nothing at {source}{missing_input(source)}")
    found = [picture for tar in tars for picture in _in_tar(tar)] if tars else _in_folder(path)
    if not found:
        raise UserError(f"cache.images: {source} holds no image with a caption ({', '.join(KINDS)})")
    if empty := [picture.name for picture in found if not picture.caption]:
        raise UserError(f"cache.images: {source}: {empty[0]} has an empty caption; so have {len(empty) - 1} others")
    return found


def _in_folder(folder: Path) -> list[Picture]:
    for name in ("metadata.csv", "metadata.jsonl"):
        if (folder / name).is_file():
            return _listed(folder, folder / name)
    found = []
    for image in sorted(folder.rglob("*")):
        if image.suffix.lower() in KINDS:
            beside = image.with_suffix(".txt")
            if not beside.is_file():
                raise UserError(f"cache.images: {image} has no caption: {beside.name} beside it, or a metadata.csv")
            try:
                caption = clean_text(beside.read_text(encoding="utf-8-sig"))
            except UnicodeDecodeError as error:
                raise UserError(f"cache.images: {beside}: not UTF-8 ({error.reason})") from None
            found.append(Picture(str(image.relative_to(folder)), caption, image))
    return found


def _listed(folder: Path, listing: Path) -> list[Picture]:
    with listing.open(newline="", encoding="utf-8-sig") as file:
        try:
            rows = list(csv.DictReader(file)) if listing.suffix == ".csv" else [json.loads(line) for line in file]
        except (ValueError, csv.Error) as error:
            raise UserError(f"cache.images: {listing}: {error}") from None
    found = []
    for number, row in enumerate(rows, 1):
        fields = row if isinstance(row, dict) else {}
        caption = next((fields[column] for column in COLUMNS if isinstance(fields.get(column), str)), None)
        name = fields.get("file_name")
        if not (name and isinstance(name, str)) or caption is None:
            raise UserError(
                f"cache.images: {listing}, row {number}: needs file_name and {' or '.join(COLUMNS)}, as text"
            )
        if not (folder / name).is_file():
            raise UserError(f"cache.images: {listing}, row {number}: no file {name}")
        found.append(Picture(name, clean_text(caption), folder / name))
    return found


def _in_tar(tar: Path) -> Iterable[Picture]:
    images: dict[str, tuple[int, int]] = {}
    captions: dict[str, str] = {}
    try:
        with tarfile.open(tar, "r:") as archive:  # plain: images are read where they lie in it
            for member in archive:
                place, _, name = member.name.removeprefix("./").rpartition("/")
                key, _, kind = name.partition(".")
                key = f"{place}/{key}" if place else key
                if f".{kind.lower()}" in KINDS:
                    images[key] = (member.offset_data, member.size)
                elif kind == "txt" and (file := archive.extractfile(member)) is not None:
                    captions[key] = clean_text(file.read().decode())
    except (tarfile.TarError, UnicodeDecodeError, OSError) as error:
        raise UserError(f"cache.images: {tar}: {error}; it must be a plain, whole tar") from None
    for key, (start, size) in images.items():
        if key not in captions:
            raise UserError(f"cache.images: {tar}, key {key}: has no caption (.txt)")
        yield Picture(f"{tar.name}/{key}", captions[key], tar, start, size)


def read_picture(picture: Picture) -> Image.Image:
    """The image, RGB; raises UserError naming it when it is damaged."""
    with picture.file.open("rb") as file:
        file.seek(picture.start)
        data = file.read(picture.size)
    try:
        return Image.open(io.BytesIO(data)).convert("RGB")
    except (UnidentifiedImageError, OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(f"image {picture.name}: {error}") from None


def to_square(resolution: int) -> Callable[[Image.Image], Tensor]:
    """A function from an image to its middle [3, resolution, resolution] in [-1, 1], the shorter side scaled to it."""
    return v2.Compose(
        [
            v2.Resize(resolution, antialias=True),
            v2.CenterCrop(resolution),
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize([0.5], [0.5]),
        ]
    )
