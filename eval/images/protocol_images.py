"""The image processing of a protocol before scoring: JPEG, resize, JPEG, as if files were written and read.

FID is sensitive to these steps. They run in memory and give the same bytes as files on disk.
"""

import io
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from randcond.launch.config.protocols import Protocol
from randcond.launch.runtime.ranks import cpu_threads


def jpeg_bytes(image: Image.Image) -> bytes:
    """Encodes an image as JPEG at Pillow's default quality."""
    out = io.BytesIO()
    image.save(out, format="JPEG")
    return out.getvalue()


def round_trip(image: Image.Image, protocol: Protocol) -> tuple[bytes, Image.Image]:
    """Processes one drawn image; returns the file that the protocol scores, and the image read back from it.

    Steps: JPEG, resize with Pillow's default filter, JPEG. Without JPEG the file is a PNG.
    """
    if protocol.jpeg and protocol.size:
        image = Image.open(io.BytesIO(jpeg_bytes(image))).convert("RGB")
    if protocol.size:
        image = image.resize((protocol.size, protocol.size))
    if protocol.jpeg:
        data = jpeg_bytes(image)
        return data, Image.open(io.BytesIO(data)).convert("RGB")
    out = io.BytesIO()
    image.save(out, format="PNG")
    return out.getvalue(), image


def scored_images(images: Tensor, protocol: Protocol) -> tuple[Tensor, list[bytes]]:
    """Processes drawn images uint8 [n, 3, H, W], values 0 to 255, as the protocol says.

    Returns the images to score, uint8 [n, 3, h, w], and the n files that hold them.
    """

    def process(image: Tensor) -> tuple[bytes, Tensor]:
        data, picture = round_trip(to_picture(image), protocol)
        return data, from_picture(picture)

    with ThreadPoolExecutor(cpu_threads()) as pool:  # Pillow releases the GIL
        files, pixels = zip(*pool.map(process, images), strict=True)
    return torch.stack(pixels), list(files)


def to_picture(image: Tensor) -> Image.Image:
    """Converts an image uint8 [3, H, W], values 0 to 255, to a Pillow image."""
    return Image.fromarray(image.permute(1, 2, 0).contiguous().cpu().numpy())


def from_picture(picture: Image.Image) -> Tensor:
    """Converts an RGB Pillow image to uint8 [3, H, W], values 0 to 255."""
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1).contiguous()
