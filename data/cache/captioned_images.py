"""Reads real images with captions, for the experiments that train on them (Table 1, rows 3 and 6).

In: a folder of images with metadata.csv or metadata.jsonl (columns file_name and caption), a folder with a .txt file
for each image, or WebDataset tars of pairs (KEY.jpg, KEY.txt). Out: captions and images.
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
    """The location of an image, and its caption."""

    name: str  # for errors and metadata: the path relative to the folder, or TAR/KEY
    caption: str
    file: Path  # the image file, or the tar that contains it
    start: int = 0  # offset of the image in `file`, in bytes
    size: int = -1  # bytes; -1: to the end of the file


def find_pictures(source: str) -> list[Picture]:
    """Finds captioned images and returns them in a fixed order.

    `source`: a folder of images, or WebDataset tars (one tar, a folder of tars or a glob).
    Raises UserError if the source is missing, an image has no caption, or a file can't be read.
    """
    if is_url(source):
        raise UserError(f"cache.images: {source} is a URL; download the images first and give their folder")
    path = Path(source)
    if path.is_dir():
        tars = sorted(path.glob("*.tar"))
    else:
        tars = [path] if path.is_file() else sorted(Path(path.parent).glob(path.name))
    if not tars and not path.is_dir():
        raise MissingInput(f"cache.images: {source} does not exist{missing_input(source)}")
    pictures = [picture for tar in tars for picture in _in_tar(tar)] if tars else _in_folder(path)
    if not pictures:
        raise UserError(f"cache.images: {source} contains no image with a caption (known: {', '.join(KINDS)})")
    if empty := [picture.name for picture in pictures if not picture.caption]:
        raise UserError(f"cache.images: {source}: {len(empty)} images have an empty caption, the first is {empty[0]}")
    return pictures


def _in_folder(folder: Path) -> list[Picture]:
    for name in ("metadata.csv", "metadata.jsonl"):
        if (folder / name).is_file():
            return _in_metadata(folder, folder / name)
    pictures = []
    for image in sorted(folder.rglob("*")):
        if image.suffix.lower() in KINDS:
            caption_file = image.with_suffix(".txt")
            if not caption_file.is_file():
                raise UserError(
                    f"cache.images: {image} has no caption; add {caption_file.name} to its folder, or a metadata.csv"
                )
            try:
                caption = clean_text(caption_file.read_text(encoding="utf-8-sig"))
            except UnicodeDecodeError as error:
                raise UserError(f"cache.images: {caption_file}: not UTF-8 ({error.reason})") from None
            pictures.append(Picture(str(image.relative_to(folder)), caption, image))
    return pictures


def _in_metadata(folder: Path, metadata: Path) -> list[Picture]:
    with metadata.open(newline="", encoding="utf-8-sig") as file:
        try:
            rows = list(csv.DictReader(file)) if metadata.suffix == ".csv" else [json.loads(line) for line in file]
        except (ValueError, csv.Error) as error:
            raise UserError(f"cache.images: {metadata}: {error}") from None
    pictures = []
    for number, row in enumerate(rows, 1):
        fields = row if isinstance(row, dict) else {}
        caption = next((fields[column] for column in COLUMNS if isinstance(fields.get(column), str)), None)
        name = fields.get("file_name")
        if not (name and isinstance(name, str)) or caption is None:
            raise UserError(
                f"cache.images: {metadata}, row {number}: needs text in file_name and in {' or '.join(COLUMNS)}"
            )
        if not (folder / name).is_file():
            raise UserError(f"cache.images: {metadata}, row {number}: no such file: {name}")
        pictures.append(Picture(name, clean_text(caption), folder / name))
    return pictures


def _in_tar(tar: Path) -> Iterable[Picture]:
    images: dict[str, tuple[int, int]] = {}
    captions: dict[str, str] = {}
    try:
        with tarfile.open(tar, "r:") as archive:  # uncompressed only, because images are read by their offset
            for member in archive:
                folder, _, name = member.name.removeprefix("./").rpartition("/")
                key, _, kind = name.partition(".")
                key = f"{folder}/{key}" if folder else key
                if f".{kind.lower()}" in KINDS:
                    images[key] = (member.offset_data, member.size)
                elif kind == "txt" and (file := archive.extractfile(member)) is not None:
                    captions[key] = clean_text(file.read().decode())
    except (tarfile.TarError, UnicodeDecodeError, OSError) as error:
        raise UserError(f"cache.images: {tar}: {error}; it must be a complete, uncompressed tar file") from None
    for key, (start, size) in images.items():
        if key not in captions:
            raise UserError(f"cache.images: {tar}, key {key}: has no caption (.txt)")
        yield Picture(f"{tar.name}/{key}", captions[key], tar, start, size)


def read_picture(picture: Picture) -> Image.Image:
    """Reads an image as RGB. Raises UserError with the image's name if it is damaged."""
    with picture.file.open("rb") as file:
        file.seek(picture.start)
        data = file.read(picture.size)
    try:
        return Image.open(io.BytesIO(data)).convert("RGB")
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"image {picture.name}: {error}") from None


def to_square(resolution: int) -> Callable[[Image.Image], Tensor]:
    """Returns a function that scales the shorter side of an image to `resolution` pixels and crops the centre.

    The function returns a float32 tensor [3, resolution, resolution] in [-1, 1].
    """
    return v2.Compose(
        [
            v2.Resize(resolution, antialias=True),
            v2.CenterCrop(resolution),
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize([0.5], [0.5]),
        ]
    )
