"""What a protocol does to a drawn image before it is scored: JPEG, resize, JPEG again, as files on a disk would go.

FID is sensitive to this round trip, so it is done, in memory, to the very bytes that files would hold.
"""

import io
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from randcond.launch.config.protocols import Protocol
from randcond.launch.runtime.ranks import cpu_threads


def as_file(image: Image.Image) -> bytes:
    """A JPEG of Pillow's default quality."""
    out = io.BytesIO()
    image.save(out, format="JPEG")
    return out.getvalue()


def round_trip(image: Image.Image, protocol: Protocol) -> tuple[bytes, Image.Image]:
    """The file that a protocol scores, and the image that is read from it.

    As drawn -> JPEG -> resized by Pillow's default filter -> JPEG; without JPEG the file is a PNG.
    """
    if protocol.jpeg and protocol.size:
        image = Image.open(io.BytesIO(as_file(image))).convert("RGB")
    if protocol.size:
        image = image.resize((protocol.size, protocol.size))
    if protocol.jpeg:
        data = as_file(image)
        return data, Image.open(io.BytesIO(data)).convert("RGB")
    out = io.BytesIO()
    image.save(out, format="PNG")
    return out.getvalue(), image


def scored_images(images: Tensor, protocol: Protocol) -> tuple[Tensor, list[bytes]]:
    """Drawn images uint8 [n, 3, H, W] -> what scores read, uint8 [n, 3, h, w], and the files that would hold it."""

    def scored(image: Tensor) -> tuple[bytes, Tensor]:
        data, picture = round_trip(to_picture(image), protocol)
        return data, from_picture(picture)

    with ThreadPoolExecutor(cpu_threads()) as pool:  # Pillow lets other threads run
        files, pixels = zip(*pool.map(scored, images), strict=True)
    return torch.stack(pixels), list(files)


def to_picture(image: Tensor) -> Image.Image:
    """uint8 [3, H, W] -> a Pillow image."""
    return Image.fromarray(image.permute(1, 2, 0).contiguous().cpu().numpy())


def from_picture(picture: Image.Image) -> Tensor:
    """A Pillow image, RGB -> uint8 [3, H, W]."""
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1).contiguous()
