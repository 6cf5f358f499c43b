"""Contact sheets: a grid of images with captions, or a comparison with one row per model."""

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torchvision.transforms.functional import to_pil_image

from randcond.launch.runtime.files import atomic_write

Images = Mapping[int, Tensor]  # caption number -> uint8 [3, h, w]

CAPTIONED_TILE, CAPTIONED_GAP, CAPTIONED_LINES = 160, 8, 4  # tile and gap in pixels; maximum lines per caption
SMALL, LARGE = 72, 192  # tile size in pixels for images of up to SMALL pixels, and for larger images
GAP, MARGIN, LINE, LINES = 4, 110, 12, 8  # gap, left margin and line height in pixels; maximum lines per caption


def draw_captioned(images: Sequence[tuple[Tensor, str]], columns: int = 4) -> Image.Image:
    """Returns a sheet of images [3, H, W], float in [0, 1], row by row, each above its caption."""
    tile, gap = CAPTIONED_TILE, CAPTIONED_GAP
    font = ImageFont.load_default(12)
    row_height = tile + 16 * CAPTIONED_LINES + gap
    rows = -(-len(images) // columns)
    sheet = Image.new("RGB", (columns * (tile + gap) + gap, rows * row_height + gap), "white")
    pen = ImageDraw.Draw(sheet)
    for number, (image, caption) in enumerate(images):
        row, column = divmod(number, columns)
        left, top = gap + column * (tile + gap), gap + row * row_height
        sheet.paste(_resized(image, tile), (left, top))
        for line, text in enumerate(textwrap.wrap(caption, tile // 7)[:CAPTIONED_LINES]):
            pen.text((left, top + tile + 4 + 15 * line), text, "#444", font)
    return sheet


def draw_comparison(
    path: Path, captions: Sequence[str], bands: Mapping[str, Sequence[int]], rows: Mapping[str, Images]
) -> None:
    """Writes a PNG that compares models: one row of images per model, one column per caption, one band per split.

    `bands`: split -> numbers of the captions to show. `rows`: model -> images, uint8 [3, h, w], by caption number.
    """
    font, caption_font = ImageFont.load_default(16), ImageFont.load_default(11)
    side = max(image.shape[-1] for images in rows.values() for image in images.values())
    tile = SMALL if side <= SMALL else LARGE
    wrapped = {number: textwrap.wrap(captions[number], tile // 6)[:LINES] for ids in bands.values() for number in ids}
    header_height = 8 + max(3, *map(len, wrapped.values())) * LINE + 4
    band_height = header_height + len(rows) * (tile + GAP)
    columns = max(len(ids) for ids in bands.values())
    sheet = Image.new("RGB", (MARGIN + columns * (tile + GAP) + GAP, len(bands) * band_height + GAP), "white")
    pen = ImageDraw.Draw(sheet)
    for band, (split, ids) in enumerate(bands.items()):
        top = band * band_height
        pen.multiline_text((8, top + 8), "\n".join(textwrap.wrap(f"{split} captions", 12)), "black", font)
        for row, model in enumerate(rows):
            position = (8, top + header_height + row * (tile + GAP) + tile // 2 - 10)
            pen.multiline_text(position, "\n".join(textwrap.wrap(model, 12)), "black", font)
        for column, number in enumerate(ids):
            left = MARGIN + column * (tile + GAP)
            for line, text in enumerate(wrapped[number]):
                pen.text((left, top + 8 + LINE * line), text, "#666", caption_font)
            for row, images in enumerate(rows.values()):
                if number in images:  # missing if this model was evaluated with a smaller eval.shown
                    sheet.paste(_resized(images[number], tile), (left, top + header_height + row * (tile + GAP)))
    with atomic_write(path) as temporary:
        sheet.save(temporary, format="PNG")


def _resized(image: Tensor, tile: int) -> Image.Image:
    """Resizes an image [3, H, W], uint8 or float in [0, 1], to a square of `tile` pixels."""
    return to_pil_image(image).resize((tile, tile), Image.Resampling.BICUBIC)
