"""Odd images, second part: rotation, wrong suffixes, damage, and files that ask for too much."""

import struct
import zlib

import numpy as np

from tests.odd.image_formats import COLOURS, FORMATS, MODES, SMOOTH, Case, palette_image
from tests.support.odd_images import adam7, ico, interlaced, png, psd, qoi, rows, saved, tiff, turned

UPRIGHT = {  # what a viewer shows of `SMOOTH` by EXIF's orientation
    1: SMOOTH,
    2: SMOOTH[:, ::-1],
    3: SMOOTH[::-1, ::-1],
    4: SMOOTH[::-1],
    5: SMOOTH.transpose(1, 0, 2),
    6: np.rot90(SMOOTH, -1),
    7: SMOOTH[::-1, ::-1].transpose(1, 0, 2),
    8: np.rot90(SMOOTH),
}
ROTATION = {
    **{f"orientation {n} in png": Case("a.png", turned("PNG", n), pixels) for n, pixels in UPRIGHT.items()},
    "orientation 6 in jpeg": Case("a.jpg", turned("JPEG", 6), UPRIGHT[6], off=30),
    "orientation 6 in webp": Case("a.webp", turned("WEBP", 6), UPRIGHT[6]),
    "orientation 6 in tiff, turned once": Case("a.tif", turned("TIFF", 6), UPRIGHT[6]),
    "orientation 9": Case("a.png", turned("PNG", 9), SMOOTH),
    "exif that can't be read": Case("a.png", saved(SMOOTH, "PNG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff"), SMOOTH),
}
SPIRIT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n"
LYING = {
    "png called jpg": Case("a.jpg", saved(COLOURS, "PNG"), COLOURS),
    "jpeg called png": Case("a.png", saved(SMOOTH, "JPEG", quality=95), SMOOTH, off=12),
    "png called tga": Case("a.tga", saved(COLOURS, "PNG"), COLOURS),
    "postscript called jpg": Case("a.jpg", SPIRIT, error="a.jpg: is not an image: holds PostScript"),
    "binary eps called png": Case("a.png", b"\xc5\xd0\xd3\xc6" + bytes(26) + SPIRIT, error=r"holds PostScript \(EPS\)"),
    "html called jpg": Case("a.jpg", b"\n<!DOCTYPE html><title>404</title>", error="holds HTML: a page that a server"),
    "svg called png": Case("a.png", b"<svg xmlns='http://www.w3.org/2000/svg'/>", error="holds SVG"),
    "pdf called tif": Case("a.tif", b"%PDF-1.7\n", error="holds PDF"),
    "heic called jpg": Case("a.jpg", b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", error="holds HEIC or a video"),
    "git lfs pointer": Case("a.png", b"version https://git-lfs.github.com/spec/v1\n", error="Git LFS pointer"),
    "metafile called bmp": Case("a.bmp", b"\xd7\xcd\xc6\x9a" + bytes(60), error="Windows metafile"),
    "tga called jpg": Case("a.jpg", saved(COLOURS, "TGA"), error="signature of no format"),
    "noise called tga": Case("a.tga", bytes(range(7, 250)), error=r"a.tga: is (not an image|damaged)"),
    "text called png": Case("a.png", b"no image", error="a.png: is not an image: has the signature of no format"),
    "empty": Case("a.png", b"", error="a.png: is empty"),
    "zeros": Case("a.png", bytes(5000), error="holds only zeros"),
}
DAMAGED = {
    "png cut off": Case("a.png", saved(SMOOTH, "PNG")[:-60], error="a.png: is damaged"),
    "png cut off in its header": Case("a.png", saved(COLOURS, "PNG")[:20], error="a.png: is"),
    "png without its end mark": Case("a.png", saved(COLOURS, "PNG")[:-12], error=r"no end mark \(IEND\)"),
    "png with a cut one behind it": Case("a.png", saved(COLOURS, "PNG") + saved(COLOURS, "PNG")[:-12], COLOURS),
    "png with a part of its end mark": Case("a.png", saved(COLOURS, "PNG")[:-4], error=r"no end mark \(IEND\)"),
    "png cut off in the last chunk of its data": Case("a.png", saved(COLOURS, "PNG")[:-14], error="a.png: is damaged"),
    "png whose data end early": Case(
        "a.png",
        png(8, 6, 8, 2, rows(COLOURS.reshape(6, 24)[:3])),
        error=r"a.png: is damaged \(the PNG has 75 bytes of pixels, and 150 are needed\)",
    ),
    "png of one bit whose data end early": Case("a.png", png(9, 6, 1, 0, bytes(12)), error="has 12 bytes .* 18 are"),
    "interlaced png whose data end early": Case(
        "a.png", interlaced(adam7(COLOURS)[:-25], 8, 6), error="has 131 bytes of pixels, and 156 are needed"
    ),
    "interlaced png": Case("a.png", interlaced(adam7(COLOURS), 8, 6), COLOURS),
    "interlaced png of a pixel": Case("a.png", interlaced(adam7(COLOURS[:1, :1]), 1, 1), COLOURS[:1, :1]),
    "png with bytes after its end": Case("a.png", saved(COLOURS, "PNG") + b"more", COLOURS),
    "icon whose png ends early": Case("a.ico", ico(saved(COLOURS, "PNG")[:-12]), error=r"no end mark \(IEND\)"),
    "png with a wrong checksum": Case(
        "a.png", saved(COLOURS, "PNG").replace(b"IHDR\0\0\0\x08", b"IHDR\0\0\0\x09"), error="a.png: is"
    ),
    "png whose data are noise": Case(
        "a.png", saved(COLOURS, "PNG").replace(b"IDATx", b"IDATy"), error="a.png: is damaged"
    ),
    "png with a huge text": Case(
        "a.png",
        png(8, 6, 8, 2, rows(COLOURS.reshape(6, 24)), (b"zTXt", b"a\0\0" + zlib.compress(bytes(80_000_000)))),
        error="a.png: is damaged",
    ),
    "jpeg cut off": Case("a.jpg", saved(SMOOTH, "JPEG")[:-60], error="a.jpg: is damaged .*truncated"),
    "jpeg of a start only": Case("a.jpg", b"\xff\xd8\xff\xe0", error="a.jpg: is"),
    "gif cut off": Case("a.gif", saved(palette_image(), "GIF")[:-20], error="a.gif: is damaged"),
    "webp cut off": Case("a.webp", saved(SMOOTH, "WEBP")[:-100], error="a.webp: is"),
    "bmp cut off": Case("a.bmp", saved(COLOURS, "BMP")[:-30], error="a.bmp: is damaged"),
    "avif cut off": Case("a.avif", saved(SMOOTH, "AVIF")[:-100], error="a.avif: is"),
    "jpeg 2000 cut off": Case("a.jp2", saved(SMOOTH, "JPEG2000")[:-800], error="a.jp2: is"),
    "tiff without its table": Case("a.tif", b"II*\0\x08\0\0\0", error="a.tif: is"),
    "tiff with a broken table": Case("a.tif", b"II*\0\x08\0\0\0\xff\xff" + bytes(range(90)), error="a.tif: is"),
    "tiff without pixels": Case("a.tif", tiff(8, 6, (258, 3, 1, 8), (262, 3, 1, 1)), error="a.tif: is"),
    "psd with too few channels": Case(
        "a.psd", psd(COLOURS).replace(b"\0\3\0\0\0\6", b"\0\1\0\0\0\6"), error="a.psd: is"
    ),
    "ppm without numbers": Case("a.ppm", b"P6 eight six 255\n", error="a.ppm: is"),
    "xpm without colours": Case("a.xpm", b'/* XPM */\n"8 6 1 1",\n"a",\n', error="a.xpm: is"),
    "qoi cut off": Case("a.qoi", qoi(COLOURS)[:60], error="a.qoi: is damaged"),
}
HOSTILE = {
    "png of 2.5 billion pixels": Case("a.png", png(50_000, 50_000, 8, 2, b""), error="is too large"),
    "png of 68 million pixels": Case(
        "a.png", png(8193, 8192, 8, 0, b""), error="is too large: 8,193 x 8,192 pixels, at most 67,108,864 pixels"
    ),
    "png of one row of 67 million": Case("a.png", png(67_108_864, 1, 1, 0, b""), error="and 65,535 a side are read"),
    "png of no rows": Case("a.png", png(8, 0, 8, 2, b""), error="a.png: is"),
    "icon with a larger png in it": Case(
        "a.ico", ico(png(9000, 9000, 1, 0, (b"\0" + bytes(1125)) * 9000)), error="is too large: 9,000 x 9,000 pixels"
    ),
    "webp that claims 16383 a side": Case(
        "a.webp",
        b"RIFF"
        + struct.pack("<I", 30)
        + b"WEBPVP8X"
        + struct.pack("<I", 10)
        + b"\0" * 4
        + b"\xfe\x3f\0\xfe\x3f\0"
        + b"VP8 \0\0\0\0",
        error="a.webp: is",
    ),
    "jpeg of 65,500 a side": Case(
        "a.jpg",
        saved(SMOOTH, "JPEG").replace(struct.pack(">HH", 48, 64), struct.pack(">HH", 65_500, 65_500), 1),
        error="is too large",
    ),
    "gif of 65,535 a side": Case(
        "a.gif", b"GIF89a" + b"\xff" * 4 + b"\0\0\0,\0\0\0\0" + b"\xff" * 4 + b"\0\2\0;", error="is too large"
    ),
    "bmp of a negative size": Case(
        "a.bmp", saved(COLOURS, "BMP").replace(struct.pack("<ii", 8, 6), struct.pack("<ii", -8, 6)), error="a.bmp: is"
    ),
    "tiff of 4 billion a side": Case(
        "a.tif", tiff(0xFFFFFFFF, 0xFFFFFFFF, (258, 3, 1, 8), (262, 3, 1, 1)), error="a.tif: is"
    ),
    "icns that holds itself": Case("a.icns", b"icns\0\0\0\x10ic07\0\0\0\x08", error="a.icns: is"),
}
CASES = {**FORMATS, **MODES, **ROTATION, **LYING, **DAMAGED, **HOSTILE}
