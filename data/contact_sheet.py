"""Contact sheets: images above their captions, or a row per model and a column per caption."""

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torchvision.transforms.functional import to_pil_image

from randcond.launch.runtime.files import atomic_write

Images = Mapping[int, Tensor]  # caption number -> uint8 [3, h, w]

CAPTIONED_TILE, CAPTIONED_GAP, CAPTIONED_LINES = 160, 8, 4  # pixels, pixels, lines of a caption at most
SMALL, LARGE = 72, 192  # pixels of a tile, by the size of the images
GAP, MARGIN, LINE, LINES = 4, 110, 12, 8  # pixels, pixels, pixels, lines of a caption at most


def draw_captioned(images: Sequence[tuple[Tensor, str]], columns: int = 4) -> Image.Image:
    """Images [3, H, W] in [0, 1] above their captions, row by row."""
    tile, gap = CAPTIONED_TILE, CAPTIONED_GAP
    font = ImageFont.load_default(12)
    high = tile + 16 * CAPTIONED_LINES + gap
    rows = -(-len(images) // columns)
    sheet = Image.new("RGB", (columns * (tile + gap) + gap, rows * high + gap), "white")
    pen = ImageDraw.Draw(sheet)
    for number, (image, caption) in enumerate(images):
        row, column = divmod(number, columns)
        left, top = gap + column * (tile + gap), gap + row * high
        sheet.paste(_resized(image, tile), (left, top))
        for line, words in enumerate(textwrap.wrap(caption, tile // 7)[:CAPTIONED_LINES]):
            pen.text((left, top + tile + 4 + 15 * line), words, "#444", font)
    return sheet


def draw_comparison(
    path: Path, captions: Sequence[str], bands: Mapping[str, Sequence[int]], arms: Mapping[str, Images]
) -> None:
    """Writes a PNG with a band per split and a row per arm; `bands` maps a split to the captions shown of it."""
    font, small = ImageFont.load_default(16), ImageFont.load_default(11)
    side = max(image.shape[-1] for images in arms.values() for image in images.values())
    tile = SMALL if side <= SMALL else LARGE
    wrapped = {number: textwrap.wrap(captions[number], tile // 6)[:LINES] for ids in bands.values() for number in ids}
    head = 8 + max(3, *map(len, wrapped.values())) * LINE + 4
    band_height = head + len(arms) * (tile + GAP)
    columns = max(len(ids) for ids in bands.values())
    sheet = Image.new("RGB", (MARGIN + columns * (tile + GAP) + GAP, len(bands) * band_height + GAP), "white")
    pen = ImageDraw.Draw(sheet)
    for band, (split, ids) in enumerate(bands.items()):
        top = band * band_height
        pen.multiline_text((8, top + 8), "\n".join(textwrap.wrap(f"{split} captions", 12)), "black", font)
        for row, arm in enumerate(arms):
            place = (8, top + head + row * (tile + GAP) + tile // 2 - 10)
            pen.multiline_text(place, "\n".join(textwrap.wrap(arm, 12)), "black", font)
        for column, number in enumerate(ids):
            left = MARGIN + column * (tile + GAP)
            for line, words in enumerate(wrapped[number]):
                pen.text((left, top + 8 + LINE * line), words, "#666", small)
            for row, images in enumerate(arms.values()):
                if number in images:  # else it was evaluated with fewer to be shown
                    sheet.paste(_resized(images[number], tile), (left, top + head + row * (tile + GAP)))
    with atomic_write(path) as aside:
        sheet.save(aside, format="PNG")


def _resized(image: Tensor, tile: int) -> Image.Image:
    """An image [3, H, W], uint8 or in [0, 1], as a square of `tile` pixels."""
    return to_pil_image(image).resize((tile, tile), Image.Resampling.BICUBIC)
