"""The digits world: handwritten digits in a named colour on a named background, with captions.

In: scikit-learn's `load_digits` (1,797 real scans of 8x8 pixels). It ships with scikit-learn; nothing is downloaded.
Out: images [n, 3, 32, 32] in [-1, 1], labels [n, 3] (digit, colour, background), and captions such as
"a red three on a navy background". Twenty percent of the scans are held out: no network is trained on them. Only one
number was measured on them, the scaling factor of the autoencoder's latents.
"""

from dataclasses import dataclass
from itertools import product

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from randcond.launch.errors import UserError
from randcond.launch.install.extras import need

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
COLOURS = {  # RGB; bright, so that each stands out on every background
    "red": (235, 45, 45),
    "orange": (250, 150, 30),
    "yellow": (250, 235, 70),
    "green": (70, 215, 80),
    "cyan": (80, 225, 235),
    "blue": (85, 135, 255),
    "pink": (255, 135, 200),
    "white": (250, 250, 250),
}
BACKGROUNDS = {  # RGB; dark
    "black": (8, 8, 8),
    "navy": (20, 25, 95),
    "maroon": (95, 15, 35),
    "olive": (85, 85, 20),
    "teal": (10, 88, 88),
    "purple": (80, 20, 115),
    "brown": (98, 55, 22),
    "grey": (95, 95, 95),
}
TEMPLATES = (
    "{a} {colour} {digit} on a {background} background",
    "the digit {digit} in {colour} on {background}",
    "a handwritten {digit} in {colour} ink on {background} paper",
    "{background} paper with {a} {colour} {digit}",
    "{digit} , {colour} on {background}",
)
IMAGE_SIZE = 32


@dataclass(frozen=True)
class Caption:
    """One caption, and the label of the images that it describes."""

    text: str
    digit: int
    colour: int  # index in COLOURS
    background: int  # index in BACKGROUNDS


def all_captions() -> list[Caption]:
    """Returns all 3,200 captions in a fixed order: 10 digits x 8 colours x 8 backgrounds x 5 templates."""
    captions = []
    for digit, colour, background, template in product(range(10), range(8), range(8), TEMPLATES):
        colour_name, background_name = list(COLOURS)[colour], list(BACKGROUNDS)[background]
        article = "an" if colour_name[0] in "aeiou" else "a"
        text = template.format(a=article, colour=colour_name, digit=DIGITS[digit], background=background_name)
        captions.append(Caption(text, digit, colour, background))
    return captions


def read_label(text: str) -> Caption:
    """Reads the digit, colour and background that a caption names. All other words are ignored.

    Raises UserError unless the caption names exactly one of each. Captions that are not of the digits world therefore
    fail before any scoring.

    >>> label = read_label("teal paper with a cyan three")
    >>> DIGITS[label.digit]
    'three'
    """
    words = text.lower().replace(",", " ").split()

    def find(names: list[str], what: str) -> int:
        matches = [names.index(word) for word in words if word in names]
        if len(matches) != 1:
            raise UserError(f"caption {text!r} names {len(matches)} {what}s of the digits world, expected exactly one")
        return matches[0]

    return Caption(
        text, find(list(DIGITS), "digit"), find(list(COLOURS), "colour"), find(list(BACKGROUNDS), "background")
    )


def load_glyphs(split: str) -> tuple[Tensor, Tensor]:
    """Returns the handwriting of one split: glyphs [n, 1, 24, 24] in [0, 1] (1 is ink) and digits [n].

    split: "train" (80% of the scans) or "held_out" (20%).
    """
    need("eval", "the handwriting of the digits world")
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    scans, digits = load_digits(return_X_y=True)
    parts = train_test_split(np.arange(len(digits)), test_size=0.2, stratify=digits, random_state=0)
    index = dict(zip(("train", "held_out"), parts, strict=True))[split]
    ink = torch.from_numpy(scans[index]).float().view(-1, 1, 8, 8) / 16
    glyphs = F.interpolate(ink, size=(24, 24), mode="bicubic", align_corners=False)
    glyphs = ((glyphs - 0.35) * 3).clamp(0, 1)  # sharpens the blurred edges of an upsampled scan
    return glyphs, torch.from_numpy(digits[index]).long()


def draw(glyphs: Tensor, colours: Tensor, backgrounds: Tensor, generator: torch.Generator) -> Tensor:
    """Draws each glyph in its colour on its background, with random rotation, scale, shear and shift.

    glyphs: [n, 1, 24, 24] in [0, 1]. colours, backgrounds: indices [n]. Returns images [n, 3, 32, 32] in [-1, 1].
    """
    n = len(glyphs)

    def uniform(low: float, high: float) -> Tensor:
        return torch.rand(n, generator=generator) * (high - low) + low

    angle, scale, shear = uniform(-0.2, 0.2), uniform(1.25, 1.5), uniform(-0.15, 0.15)
    cos, sin = torch.cos(angle) * scale, torch.sin(angle) * scale
    affine = torch.stack(  # output grid -> glyph coordinates
        [
            torch.stack([cos, -sin + shear, uniform(-0.15, 0.15)], dim=1),
            torch.stack([sin, cos, uniform(-0.15, 0.15)], dim=1),
        ],
        dim=1,
    )
    grid = F.affine_grid(affine, [n, 1, IMAGE_SIZE, IMAGE_SIZE], align_corners=False)
    ink = F.grid_sample(glyphs, grid, mode="bilinear", padding_mode="zeros", align_corners=False)  # [n, 1, 32, 32]
    palette = torch.tensor(list(COLOURS.values())).float() / 127.5 - 1
    papers = torch.tensor(list(BACKGROUNDS.values())).float() / 127.5 - 1
    return papers[backgrounds, :, None, None] * (1 - ink) + palette[colours, :, None, None] * ink


def sample_images(glyphs: Tensor, digits: Tensor, n: int, seed: int) -> tuple[Tensor, Tensor]:
    """Returns n random images [n, 3, 32, 32] in [-1, 1] and their labels [n, 3] (digit, colour, background).

    glyphs: [m, 1, 24, 24] in [0, 1], digits: [m], as `load_glyphs` returns them.
    """
    generator = torch.Generator().manual_seed(seed)
    index = torch.randint(len(glyphs), (n,), generator=generator)
    colours = torch.randint(len(COLOURS), (n,), generator=generator)
    backgrounds = torch.randint(len(BACKGROUNDS), (n,), generator=generator)
    images = draw(glyphs[index], colours, backgrounds, generator)
    return images, torch.stack([digits[index], colours, backgrounds], dim=1)
