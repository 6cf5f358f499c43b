"""Odd images, first part: formats and kinds of pixels. Each case is a file, and the pixels or the error it gives."""

import struct
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageCms

from tests.support.odd_images import (
    colours,
    greys,
    ico,
    png,
    psd,
    qoi,
    rows,
    saved,
    smooth,
    sun,
    xpm,
)

COLOURS, GREYS, SMOOTH = colours(), greys(), smooth()
ALPHA = np.concatenate([COLOURS, GREYS[..., None]], axis=-1)  # the greys as alpha channel


def rgb(grey: np.ndarray) -> np.ndarray:
    return np.repeat(grey[..., None], 3, axis=-1)


def on_white(pixels: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    share = alpha[..., None] / 255
    return np.rint(pixels * share + 255 * (1 - share)).astype(np.uint8)


def palette_image(pixels: np.ndarray = COLOURS) -> Image.Image:
    """Returns an image with a palette of its own 48 colours, in the order of its pixels."""
    picture = Image.fromarray(np.arange(48, dtype=np.uint8).reshape(6, 8), "P")
    picture.putpalette(pixels.reshape(-1, 3).tobytes())
    return picture


def animated(kind: str, **options: object) -> bytes:
    other = Image.fromarray(255 - COLOURS)
    return saved(palette_image() if kind == "GIF" else COLOURS, kind, save_all=True, append_images=[other], **options)


def lab() -> tuple[bytes, np.ndarray]:
    """Returns a TIFF in CIE Lab, and the sRGB colours that littleCMS gives for it."""
    to_lab = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    picture = ImageCms.profileToProfile(Image.fromarray(SMOOTH), *to_lab, outputMode="LAB")
    return saved(picture, "TIFF"), SMOOTH


WIDE = np.arange(48, dtype=np.uint16).reshape(6, 8) * 1365 + 70  # 16-bit values from 70 to 64,225
WIDE_GREY = rgb(np.rint(WIDE / 257).astype(np.uint8))
FLOATS = (np.arange(48, dtype=np.float32).reshape(6, 8) / 47).astype(np.float32)
DEEP = (COLOURS.astype(np.uint16) << 8) + 77


class Case(NamedTuple):
    name: str  # of the file
    data: bytes
    pixels: np.ndarray | None = None  # RGB that must come out
    off: int = 0  # by how many grey levels a pixel may differ, for lossy formats and conversions
    error: str = ""  # or what the error says


FORMATS = {
    "png": Case("a.png", saved(COLOURS, "PNG"), COLOURS),
    "upper case suffix": Case("A.PNG", saved(COLOURS, "PNG"), COLOURS),
    "mixed case suffix": Case("a.Tiff", saved(COLOURS, "TIFF"), COLOURS),
    "png without a library": Case("a.png", png(8, 6, 8, 2, rows(COLOURS.reshape(6, 24))), COLOURS),
    "animated png": Case("a.apng", animated("PNG"), COLOURS),
    "bmp": Case("a.bmp", saved(COLOURS, "BMP"), COLOURS),
    "dib": Case("a.dib", saved(COLOURS, "DIB"), COLOURS),
    "tiff": Case("a.tif", saved(COLOURS, "TIFF"), COLOURS),
    "tiff lzw": Case("a.tiff", saved(COLOURS, "TIFF", compression="tiff_lzw"), COLOURS),
    "tiff of two pages": Case("a.tiff", animated("TIFF"), COLOURS),
    "gif": Case("a.gif", saved(palette_image(), "GIF"), COLOURS),
    "animated gif": Case("a.gif", animated("GIF"), COLOURS),
    "webp lossless": Case("a.webp", saved(COLOURS, "WEBP", lossless=True), COLOURS),
    "animated webp": Case("a.webp", animated("WEBP", lossless=True), COLOURS),
    "jpeg 2000": Case("a.jp2", saved(COLOURS, "JPEG2000"), COLOURS),
    "ppm": Case("a.ppm", saved(COLOURS, "PPM"), COLOURS),
    "pgm": Case("a.pgm", saved(GREYS, "PPM"), rgb(GREYS)),
    "plain pgm": Case("a.pgm", b"P2\n2 1\n255\n0 200\n", rgb(np.array([[0, 200]], np.uint8))),
    "pbm": Case("a.pbm", b"P4\n8 1\n\xf0", rgb(np.array([[0] * 4 + [255] * 4], np.uint8))),
    "tga": Case("a.tga", saved(COLOURS, "TGA"), COLOURS),
    "pcx": Case("a.pcx", saved(COLOURS, "PCX"), COLOURS),
    "sgi": Case("a.rgb", saved(COLOURS, "SGI"), COLOURS),
    "im": Case("a.im", saved(COLOURS, "IM"), COLOURS),
    "dds": Case("a.dds", saved(COLOURS, "DDS"), COLOURS),
    "ico": Case("a.ico", ico(saved(COLOURS, "PNG")), COLOURS),
    "qoi": Case("a.qoi", qoi(COLOURS), COLOURS),
    "xpm": Case("a.xpm", xpm(COLOURS), COLOURS),
    "sun raster": Case("a.ras", sun(COLOURS), COLOURS),
    "photoshop": Case("a.psd", psd(COLOURS), COLOURS),
    "xbm": Case(
        "a.xbm",
        b"#define a_width 8\n#define a_height 1\nstatic char a_bits[] = {\n0x0f};\n",
        rgb(np.array([[255] * 4 + [0] * 4], np.uint8)),
    ),
    "jpg": Case("a.jpg", saved(SMOOTH, "JPEG", quality=95), SMOOTH, off=12),
    "progressive jpeg": Case("a.jpeg", saved(SMOOTH, "JPEG", quality=95, progressive=True), SMOOTH, off=12),
    "grey jpeg": Case("a.jpe", saved(SMOOTH[..., 0], "JPEG", quality=95), rgb(SMOOTH[..., 0]), off=6),
    "mpo": Case(
        "a.mpo",
        saved(SMOOTH, "MPO", quality=95, save_all=True, append_images=[Image.fromarray(255 - SMOOTH)]),
        SMOOTH,
        off=12,
    ),
    "avif": Case("a.avif", saved(SMOOTH, "AVIF", quality=95), SMOOTH, off=12),
}
MODES = {
    "two colours": Case("a.png", saved(GREYS > 100, "PNG"), rgb(np.where(GREYS > 100, 255, 0).astype(np.uint8))),
    "greyscale": Case("a.png", saved(GREYS, "PNG"), rgb(GREYS)),
    "palette": Case("a.png", saved(palette_image(), "PNG"), COLOURS),
    "palette with alpha": Case(
        "a.png",
        saved(palette_image(), "PNG", transparency=bytes(range(0, 240, 5))),
        on_white(COLOURS, np.arange(0, 240, 5, dtype=np.uint8).reshape(6, 8)),
        off=1,
    ),
    "palette with a transparent colour": Case(
        "a.gif",
        saved(palette_image(), "GIF", transparency=9),
        on_white(COLOURS, np.where(np.arange(48).reshape(6, 8) == 9, 0, 255).astype(np.uint8)),
    ),
    "alpha": Case("a.png", saved(ALPHA, "PNG"), on_white(COLOURS, GREYS), off=1),
    "alpha in webp": Case("a.webp", saved(ALPHA, "WEBP", lossless=True, exact=True), on_white(COLOURS, GREYS), off=1),
    "alpha in tga": Case("a.tga", saved(ALPHA, "TGA"), on_white(COLOURS, GREYS), off=1),
    "opaque alpha": Case("a.png", saved(COLOURS, "PNG", mode="RGBA"), COLOURS),
    "invisible": Case("a.png", saved(np.zeros((6, 8, 4), np.uint8), "PNG"), np.full((6, 8, 3), 255, np.uint8)),
    "grey with alpha": Case(
        "a.png", saved(np.stack([GREYS, 255 - GREYS], axis=-1), "PNG"), on_white(rgb(GREYS), 255 - GREYS), off=1
    ),
    "a transparent grey": Case(
        "a.png",
        png(8, 6, 8, 0, rows(GREYS), (b"tRNS", struct.pack(">H", int(GREYS[2, 3])))),
        rgb(np.where(GREYS[2, 3] == GREYS, 255, GREYS)),
    ),
    "a transparent colour": Case(
        "a.png",
        png(8, 6, 8, 2, rows(COLOURS.reshape(6, 24)), (b"tRNS", struct.pack(">HHH", *COLOURS[1, 1].tolist()))),
        on_white(COLOURS, np.where((COLOURS[1, 1] == COLOURS).all(-1), 0, 255).astype(np.uint8)),
    ),
    "16-bit greyscale": Case("a.png", saved(WIDE, "PNG"), WIDE_GREY),
    "16-bit greyscale, all values": Case(
        "a.png",
        png(
            256, 257, 16, 0, rows(np.arange(65_792, dtype=np.int64).clip(0, 65_535).astype(np.uint16).reshape(257, 256))
        ),
        rgb(np.rint(np.arange(65_792).clip(0, 65_535).reshape(257, 256) / 257).astype(np.uint8)),
    ),
    "16-bit greyscale with a transparent value": Case(
        "a.png",
        png(8, 6, 16, 0, rows(WIDE), (b"tRNS", struct.pack(">H", int(WIDE[3, 3])))),
        np.where(rgb(WIDE[3, 3] == WIDE), 255, WIDE_GREY).astype(np.uint8),
    ),
    "16-bit greyscale, big-endian tiff": Case(
        "a.tif",
        b"MM\0*"
        + struct.pack(">I", 104)
        + WIDE.astype(">u2").tobytes()
        + struct.pack(">H", 6)
        + b"".join(
            struct.pack(">HHII", tag, 4, 1, value)
            for tag, value in ((256, 8), (257, 6), (258, 16), (262, 1), (273, 8), (279, 96))
        )
        + bytes(4),
        WIDE_GREY,
    ),
    "16-bit colour": Case("a.png", png(8, 6, 16, 2, rows(DEEP.reshape(6, 24))), COLOURS),
    "16-bit colour with a transparent colour": Case(
        "a.png",
        png(8, 6, 16, 2, rows(DEEP.reshape(6, 24)), (b"tRNS", struct.pack(">HHH", *DEEP[1, 1].tolist()))),
        on_white(COLOURS, np.where((DEEP[1, 1] == DEEP).all(-1), 0, 255).astype(np.uint8)),
    ),
    "pgm of 16 bits": Case("a.pgm", b"P5 8 6 65535\n" + WIDE.astype(">u2").tobytes(), WIDE_GREY),
    "pgm of 10 bits": Case(
        "a.pgm", b"P5 2 1 1023\n" + struct.pack(">HH", 0, 1023), rgb(np.array([[0, 255]], np.uint8))
    ),
    "32-bit integers up to 65535": Case("a.tif", saved(Image.fromarray(WIDE.astype(np.int32)), "TIFF"), WIDE_GREY),
    "32-bit integers beyond": Case(
        "a.tif", saved(Image.fromarray(WIDE.astype(np.int32) * 9), "TIFF"), error=r"32-bit values from 630 to 578\d+"
    ),
    "negative integers": Case(
        "a.tif", saved(Image.fromarray(WIDE.astype(np.int32) - 99), "TIFF"), error="32-bit values from -29 to 64"
    ),
    "floats from 0 to 1": Case("a.tif", saved(FLOATS, "TIFF"), rgb(np.rint(FLOATS * 255).astype(np.uint8))),
    "floats from 0 to 255": Case("a.tif", saved(FLOATS * 255, "TIFF"), error="floating-point values from 0 to 255"),
    "floats with NaN": Case(
        "a.tif", saved(np.where(FLOATS == 0, np.float32("nan"), FLOATS), "TIFF"), error="floating-point values from nan"
    ),
    "pfm": Case("a.pfm", b"Pf\n2 1\n-1.0\n" + struct.pack("<ff", 0, 0.5), rgb(np.array([[0, 128]], np.uint8))),
    "cmyk tiff": Case("a.tif", saved(COLOURS, "TIFF", mode="CMYK"), COLOURS, off=1),
    "cmyk jpeg": Case("a.jpg", saved(SMOOTH, "JPEG", mode="CMYK", quality=95), SMOOTH, off=12),
    "lab": Case("a.tif", *lab(), off=16),
    "ycbcr tiff": Case("a.tif", saved(SMOOTH, "TIFF", mode="YCbCr"), SMOOTH, off=4),
}
