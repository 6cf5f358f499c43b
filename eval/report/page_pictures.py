"""The pictures of the page that a reader moves: the same captions by two networks, and through the steps of training.

In: the rows of a report. Out: captions, and images as base64, for the script of page.html.j2.
"""

import base64
import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from randcond.data.contact_sheet import Images
from randcond.eval.images.prompts import Prompts
from randcond.eval.images.protocol_images import to_picture
from randcond.eval.tables.collect import Row

LARGEST = 320  # pixels of an image's side on the page; larger ones are scaled down
MOST_STEPS = 8  # sample grids of a training, evenly spaced
MOST_CAPTIONS = 24  # of the comparison
QUALITY = 88  # of JPEG, which images of more than SMALL pixels become
SMALL = 96


@dataclass(frozen=True)
class Comparison:
    """Images of several networks for the same captions and seeds."""

    captions: list[str]
    splits: list[str]  # of each caption
    images: dict[str, list[str]]  # row -> a data URL per caption; "" if it has none

    def data(self) -> dict[str, Any]:
        """Returns plain data for the page's script."""
        return dict(vars(self))


def comparison(prompts: Prompts, bands: Mapping[str, list[int]], arms: Mapping[str, Images]) -> Comparison | None:
    """Returns the images of all rows for the captions of `bands` (split -> numbers); None with fewer than two rows."""
    if len(arms) < 2:
        return None
    share = max(1, MOST_CAPTIONS // max(1, len(bands)))
    chosen = [(split, number) for split, numbers in bands.items() for number in numbers[:share]]
    images = {
        name: [data_url(to_picture(held[number])) if number in held else "" for _, number in chosen]
        for name, held in arms.items()
    }
    return Comparison([prompts.captions[number] for _, number in chosen], [split for split, _ in chosen], images)


def filmstrips(rows: list[Row]) -> dict[str, list[dict[str, Any]]]:
    """Returns row -> its sample grids through the steps of training, as {step, image}; without rows that have none."""
    found = {}
    for row in rows:
        paths = sorted((row.run / "grids").glob("step-*.png")) if row.run else []
        if len(paths) > 1:
            last = len(paths) - 1
            shown = sorted({round(place * last / (MOST_STEPS - 1)) for place in range(MOST_STEPS)})
            found[row.name] = [_frame(paths[place]) for place in shown]
    return found


def _frame(path: Path) -> dict[str, Any]:
    with Image.open(path) as file:
        picture = file.convert("RGB")
    return {"step": int(path.stem.removeprefix("step-")), "image": data_url(picture, largest=1200)}


def data_url(picture: Image.Image, largest: int = LARGEST) -> str:
    """Returns an image as a data URL, scaled to at most `largest` pixels a side: small as PNG, large as JPEG."""
    if max(picture.size) > largest:
        scale = largest / max(picture.size)
        size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
        picture = picture.resize(size, Image.Resampling.LANCZOS)
    kind, options = ("png", {}) if max(picture.size) <= SMALL else ("jpeg", {"quality": QUALITY})
    out = io.BytesIO()
    picture.save(out, format=kind, **options)
    return f"data:image/{kind};base64,{base64.b64encode(out.getvalue()).decode()}"
