"""Reads real images with captions, for the experiments that train on them (Table 1, rows 3 and 6).

In: a folder of images with metadata.csv or metadata.jsonl (columns file_name and caption), a folder with a .txt file
for each image, or WebDataset tars of pairs (KEY.jpg, KEY.txt). Out: captions and images.
"""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2

from randcond.data.captions.row_filter import clean_text
from randcond.data.images.decode import read_image
from randcond.data.images.find import find_images, taken
from randcond.data.images.formats import COMMON
from randcond.data.images.left_out import LeftOut
from randcond.data.images.pairs import in_other_format, needs_caption, read_caption, read_pairs
from randcond.data.inputs.catalogue import MissingInput, missing_input
from randcond.data.inputs.names import shown
from randcond.data.rows.columns import CAPTION, FILE_NAME
from randcond.data.rows.tables import read_table
from randcond.launch.config.paths import is_url
from randcond.launch.errors import UserError

EXTREME = 16  # sides in this ratio or above are cropped before the image is scaled


class Picture(NamedTuple):
    """The location of an image, and its caption."""

    name: str  # for errors and metadata: the path relative to the folder, or TAR/KEY
    caption: str
    file: Path  # the image file, or the tar that contains it
    start: int = 0  # offset of the image in `file`, in bytes
    size: int = -1  # bytes; -1: to the end of the file
    suffix: str = ""  # of the image in a tar, such as .jpg


def find_pictures(
    source: str, left_out: LeftOut | None = None, passed_over: Counter[str] | None = None
) -> list[Picture]:
    """Finds captioned images and returns them in a fixed order.

    `source`: a folder of images, or WebDataset tars (one tar, a folder of tars or a glob). `left_out` decides whether
    what can't be used is an error (also if it is not given) or counted. Files that are no images are counted by reason
    in `passed_over`.
    Raises UserError if the source is missing, an image has no caption, or a file can't be read.
    """
    left_out = left_out if left_out is not None else LeftOut(skip=False)
    passed_over = passed_over if passed_over is not None else Counter()
    if is_url(source):
        raise UserError(f"cache.images: {source} is a URL; download the images first and give their folder")
    path = Path(source)
    if path.is_dir():
        tars = [each for each in sorted(path.iterdir()) if each.suffix.lower() == ".tar" and each.is_file()]
    else:
        tars = [path] if path.is_file() else sorted(Path(path.parent).glob(path.name))
    if not tars and not path.is_dir():
        raise MissingInput(f"cache.images: {source} does not exist{missing_input(source)}")
    pictures = _in_tars(path, tars, left_out, passed_over) if tars else _in_folder(path, left_out, passed_over)
    if empty := [picture.name for picture in pictures if not picture.caption]:
        first = f"{len(empty)} images have an empty caption, the first is {shown(empty[0])}"
        left_out.add("empty caption", f"cache.images: {source}: {first}", len(empty))
    pictures = [picture for picture in pictures if picture.caption]
    if not pictures:
        why = f"; left out {left_out}" if left_out.counts else ""
        raise UserError(f"cache.images: {source} contains no image with a caption: {taken(0, passed_over)}{why}")
    return pictures


def _in_tars(source: Path, tars: list[Path], left_out: LeftOut, passed_over: Counter[str]) -> list[Picture]:
    pictures = []
    for tar in tars:
        if tar != source and tar.name.startswith("."):
            passed_over["hidden"] += 1
            continue
        pairs = read_pairs(tar, left_out, passed_over)
        pictures += [
            Picture(f"{tar.name}/{key}", clean_text(caption), tar, start, size, suffix)
            for key, caption, start, size, suffix in pairs
        ]
    if source.is_dir() and (beside := len(find_images(source).images)):  # a folder with tars is read as tars only
        passed_over["image beside the tars"] += beside
    return pictures


def _in_folder(folder: Path, left_out: LeftOut, passed_over: Counter[str]) -> list[Picture]:
    for name in ("metadata.csv", "metadata.jsonl"):
        if (folder / name).is_file():
            pictures = _in_metadata(folder, folder / name, left_out)
            if unlisted := len(set(find_images(folder).images) - {picture.file for picture in pictures}):
                passed_over[f"image that {name} does not list"] += unlisted
            return pictures
    found = find_images(folder, beside=(".txt",))
    passed_over.update(found.passed_over)
    by_caption: dict[Path, list[Path]] = {}
    for image in found.images:
        by_caption.setdefault(image.with_suffix(".txt"), []).append(image)
    chosen = {file: in_other_format(images, _suffix, passed_over) for file, images in by_caption.items()}
    for file, images in chosen.items():
        if file.is_file() and _suffix(images[0]) not in COMMON:  # older versions took both of photo.jpg and photo.png
            for second in images[1:]:
                said = f"cache.images: {shown(second)}: is the second image of {shown(file.name)}"
                left_out.add("second image of a caption", f"{said}; remove one of them")
            del images[1:]
    captioned = {_suffix(images[0]) for file, images in chosen.items() if file.is_file()}
    caption_of = {image: file for file, images in chosen.items() for image in images}
    pictures = []
    for image in (image for image in found.images if image in caption_of):
        caption_file = caption_of[image]
        if not caption_file.is_file():
            if not needs_caption(_suffix(image), captioned):
                passed_over[f"suffix {_suffix(image)} without a caption"] += 1
                continue
            left_out.add(
                "no caption",
                f"cache.images: {shown(image)} has no caption; add {shown(caption_file.name)} to its folder, or a "
                f"metadata.csv, or set on_error=skip to leave it out",
            )
            continue
        try:
            caption = clean_text(read_caption(caption_file))
        except UserError as error:
            left_out.add("caption that can't be read", f"cache.images: {error}")
            continue
        pictures.append(Picture(str(image.relative_to(folder)), caption, image))
    return pictures


def _suffix(image: Path) -> str:
    return image.suffix.lower()


def _in_metadata(folder: Path, metadata: Path, left_out: LeftOut) -> list[Picture]:
    pictures = []
    rows = read_table(metadata, {"file_name": FILE_NAME, "caption": CAPTION}, f"cache.images: {metadata}")
    for row in rows:
        name = row.values["file_name"]
        if not name:
            left_out.add("no file name", f"cache.images: {metadata}, {row.place}: has no file name")
            continue
        if not _is_file(folder / name):
            left_out.add("no such file", f"cache.images: {metadata}, {row.place}: no such file: {shown(name)}")
            continue
        pictures.append(Picture(name, clean_text(row.values["caption"]), folder / name))
    return pictures


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name that is too long
        return False


def read_picture(picture: Picture) -> Image.Image:
    """Reads an image as RGB. Raises BadImage, a UserError with the image's name, if it can't be used."""
    return read_image(picture.file, picture.name, picture.start, picture.size, picture.suffix)


def to_square(resolution: int) -> Callable[[Image.Image], Tensor]:
    """Returns a function that scales the shorter side of an image to `resolution` pixels and crops the centre.

    The function returns a float32 tensor [3, resolution, resolution] in [-1, 1].
    """
    return v2.Compose(
        [
            crop_extreme,
            v2.Resize(resolution, antialias=True),
            v2.CenterCrop(resolution),
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize([0.5], [0.5]),
        ]
    )


def crop_extreme(picture: Image.Image) -> Image.Image:
    """Returns an image unchanged, or its centre if its sides are in an extreme ratio (above EXTREME).

    Scaled whole, an image of 4 x 20,000 pixels would have a billion. The centre is three times as long as the shorter
    side, so that the square in its middle has all its neighbours, and has the parity of the longer side, so that it
    stays in the middle.
    """
    short, long = sorted(picture.size)
    if long <= EXTREME * short:
        return picture
    keep = 3 * short + (long - 3 * short) % 2
    start = (long - keep) // 2
    wide = picture.width > picture.height
    return picture.crop((start, 0, start + keep, short) if wide else (0, start, short, start + keep))
