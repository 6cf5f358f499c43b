"""The pictures of a report: a row per arm, a column per caption, the same captions and seeds in every row."""

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from randcond.data.files import written_whole
from randcond.eval.pictures import to_picture

Images = Mapping[int, Tensor]  # caption number -> uint8 [3, h, w]
SMALL, LARGE = 72, 192  # pixels of a tile
GAP, MARGIN, LINE, LINES = 4, 110, 12, 8  # LINES: of a caption at most


def draw_sheet(
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
                if number not in images:  # evaluated with fewer to be shown
                    continue
                picture = to_picture(images[number]).resize((tile, tile), Image.Resampling.BICUBIC)
                sheet.paste(picture, (left, top + head + row * (tile + GAP)))
    with written_whole(path) as aside:
        sheet.save(aside, format="PNG")
