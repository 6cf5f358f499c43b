"""Images with their captions on one sheet."""

import textwrap
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torchvision.transforms.functional import to_pil_image

TILE, GAP, LINES = 160, 8, 4


def tile_sheet(images: Sequence[tuple[Tensor, str]], columns: int = 4) -> Image.Image:
    """Images [3, H, W] in [0, 1] above their captions, row by row."""
    font = ImageFont.load_default(12)
    high = TILE + 16 * LINES + GAP
    rows = -(-len(images) // columns)
    sheet = Image.new("RGB", (columns * (TILE + GAP) + GAP, rows * high + GAP), "white")
    pen = ImageDraw.Draw(sheet)
    for number, (image, caption) in enumerate(images):
        row, column = divmod(number, columns)
        left, top = GAP + column * (TILE + GAP), GAP + row * high
        sheet.paste(to_pil_image(image).resize((TILE, TILE), Image.Resampling.BICUBIC), (left, top))
        for line, words in enumerate(textwrap.wrap(caption, TILE // 7)[:LINES]):
            pen.text((left, top + TILE + 4 + 15 * line), words, "#444", font)
    return sheet
