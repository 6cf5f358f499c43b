"""Writes the real images of the digits world, with captions, into one tar file.

The images show coloured handwriting of the training split. The tar holds WebDataset pairs KEY.png, KEY.txt.
`python -m randcond.data.digits.write_images data/digits/images.tar` reproduces the shipped file byte by byte. The
experiments that train on real images use it (Table 1, rows 3 and 6).
"""

import io
import sys
import tarfile
from pathlib import Path

import torch
from torchvision.transforms.functional import to_pil_image

from randcond.data.digits.world import all_captions, load_glyphs, sample_images
from randcond.launch.runtime.files import atomic_write

IMAGES, SEED = 1200, 0


def write_images(path: Path, count: int = IMAGES, seed: int = SEED) -> None:
    """Writes `count` images [3, 32, 32], each with a random caption that describes it."""
    images, labels = sample_images(*load_glyphs("train"), count, seed)
    by_label: dict[tuple[int, int, int], list[str]] = {}
    for caption in all_captions():
        by_label.setdefault((caption.digit, caption.colour, caption.background), []).append(caption.text)
    templates = torch.randint(5, (count,), generator=torch.Generator().manual_seed(seed)).tolist()
    with atomic_write(path) as temporary, tarfile.open(temporary, "w", format=tarfile.USTAR_FORMAT) as tar:
        for number, (image, label, template) in enumerate(zip(images, labels.tolist(), templates, strict=True)):
            png = io.BytesIO()
            to_pil_image(image / 2 + 0.5).save(png, format="PNG")
            _add(tar, f"{number:05d}.png", png.getvalue())
            _add(tar, f"{number:05d}.txt", by_label[tuple(label)][template].encode())


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)  # without time and owner, the bytes are always the same
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))


if __name__ == "__main__":
    write_images(Path(sys.argv[1]))
