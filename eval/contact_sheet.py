"""The picture of a report: a row per arm, a column per caption, the same captions and seeds in every row."""

import textwrap
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from randcond.data.files import written_whole
from randcond.eval.generate import Prompts, load_chunks

COLUMNS = 12  # per split
TILE, GAP, MARGIN = 72, 4, 110


def draw_sheet(path: Path, prompts: Prompts, folders: dict[str, Path], batch: int) -> None:
    """Writes a PNG with a band per split (unseen first) and a row per arm; `folders` maps an arm to its images."""
    font, small = ImageFont.load_default(16), ImageFont.load_default(11)
    bands = sorted(prompts.splits.items(), reverse=True)
    band_height = 60 + len(folders) * (TILE + GAP)
    width = MARGIN + COLUMNS * (TILE + GAP) + GAP
    sheet = Image.new("RGB", (width, len(bands) * band_height + GAP), "white")
    pen = ImageDraw.Draw(sheet)
    images = {arm: load_chunks(folder, len(prompts.captions), batch)["images"] for arm, folder in folders.items()}
    for band, (split, ids) in enumerate(bands):
        top = band * band_height
        pen.multiline_text((8, top + 8), f"{split}\ncaptions", "black", font)
        chosen = list(ids)[:COLUMNS]
        for column, caption_id in enumerate(chosen):
            left = MARGIN + column * (TILE + GAP)
            for line, words in enumerate(_wrap(prompts.captions[caption_id])):
                pen.text((left, top + 8 + 12 * line), words, "#666", small)
            for row, arm in enumerate(folders):
                tile = Image.fromarray(images[arm][caption_id].permute(1, 2, 0).numpy())
                place = (left, top + 56 + row * (TILE + GAP))
                sheet.paste(tile.resize((TILE, TILE), Image.Resampling.BICUBIC), place)
        for row, arm in enumerate(folders):
            pen.text((8, top + 56 + row * (TILE + GAP) + TILE // 2 - 10), arm, "black", font)
    with written_whole(path) as aside:
        sheet.save(aside, format="PNG")


def _wrap(caption: str, width: int = 13, lines: int = 4) -> list[str]:
    return textwrap.wrap(caption, width)[:lines]
