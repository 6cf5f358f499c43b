"""Makes image files byte by byte: formats and modes that Pillow writes, and those that it only reads or refuses."""

import io
import struct
import zlib

import numpy as np
from PIL import Image

WIDTH, HEIGHT = 8, 6


def colours() -> np.ndarray:
    """Returns an image without any symmetry, uint8 [6, 8, 3], of 48 different colours."""
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    return np.stack([40 * rows + 5, 30 * columns + 9, 200 - 20 * rows - 9 * columns], axis=-1).astype(np.uint8)


def greys() -> np.ndarray:
    """Returns the red channel of `colours` plus the column, uint8 [6, 8]."""
    return (colours()[..., 0] + np.arange(WIDTH, dtype=np.uint8)[None]).astype(np.uint8)


def smooth() -> np.ndarray:
    """Returns an image that lossy formats keep almost, uint8 [48, 64, 3]: a gradient that is dark at the upper left."""
    rows, columns = np.mgrid[:48, :64]
    return np.stack([4 * rows + 20, 3 * columns + 20, 2 * rows + columns + 20], axis=-1).astype(np.uint8)


def saved(pixels: np.ndarray | Image.Image, kind: str, mode: str | None = None, **options: object) -> bytes:
    """Returns the file that Pillow writes for an image; `kind`: Pillow's name of the format."""
    picture = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    file = io.BytesIO()
    (picture.convert(mode) if mode else picture).save(file, kind, **options)
    return file.getvalue()


def turned(kind: str, orientation: int) -> bytes:
    """Returns a file of `smooth` whose EXIF data asks for an orientation."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    return saved(smooth(), kind, exif=exif.tobytes(), **({"lossless": True} if kind == "WEBP" else {}))


def png(width: int, height: int, depth: int, colour: int, data: bytes, *chunks: tuple[bytes, bytes]) -> bytes:
    """Returns a PNG. `data`: the rows, each with its filter byte, before compression. `chunks`: before the data."""
    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    parts = [(b"IHDR", head), *chunks, (b"IDAT", zlib.compress(data, 9)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(png_chunk(name, content) for name, content in parts)


def adam7(pixels: np.ndarray) -> bytes:
    """Returns the rows of an interlaced PNG: those of its seven smaller images, one after the other."""
    steps = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
    parts = [pixels[top::down, left::right] for left, top, right, down in steps]
    return b"".join(rows(part.reshape(len(part), -1)) for part in parts if part.size)


def interlaced(data: bytes, width: int, height: int) -> bytes:
    """Returns an interlaced PNG in RGB with 8 bits. `data`: its rows, see adam7()."""
    return png(width, height, 8, 2, data).replace(
        png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)),
        png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 1)),
    )


def png_chunk(name: bytes, content: bytes) -> bytes:
    """Returns a PNG chunk with its length and checksum."""
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def rows(values: np.ndarray) -> bytes:
    """Returns the rows of an array, big-endian, each after the PNG filter byte 0."""
    return b"".join(b"\0" + row.astype(values.dtype.newbyteorder(">")).tobytes() for row in values)


def ico(inside: bytes, width: int = 8, height: int = 6) -> bytes:
    """Returns an icon that holds one PNG, and claims a size for it."""
    return struct.pack("<HHHBBBBHHII", 0, 1, 1, width, height, 0, 0, 1, 32, len(inside), 22) + inside


def qoi(pixels: np.ndarray) -> bytes:
    """Returns a QOI file, of one record for each pixel."""
    height, width, _ = pixels.shape
    records = b"".join(b"\xfe" + bytes(pixel.tolist()) for pixel in pixels.reshape(-1, 3))
    return b"qoif" + struct.pack(">IIBB", width, height, 3, 0) + records + b"\0" * 7 + b"\1"


def xpm(pixels: np.ndarray) -> bytes:
    """Returns an XPM file with two letters for a colour."""
    height, width, _ = pixels.shape
    flat = [tuple(pixel.tolist()) for pixel in pixels.reshape(-1, 3)]
    names = {colour: f"{65 + number // 26:c}{65 + number % 26:c}" for number, colour in enumerate(dict.fromkeys(flat))}
    lines = [f'"{width} {height} {len(names)} 2",']
    lines += [f'"{name} c #{colour[0]:02x}{colour[1]:02x}{colour[2]:02x}",' for colour, name in names.items()]
    lines += [
        '"' + "".join(names[each] for each in flat[row * width : (row + 1) * width]) + '",' for row in range(height)
    ]
    return "\n".join(["/* XPM */", "static char * x[] = {", *lines, "};", ""]).encode()


def sun(pixels: np.ndarray) -> bytes:
    """Returns a Sun raster file of BGR rows, which have an even number of bytes here."""
    height, width, _ = pixels.shape
    data = pixels[..., ::-1].tobytes()
    return struct.pack(">8I", 0x59A66A95, width, height, 24, len(data), 1, 0, 0) + data


def psd(pixels: np.ndarray) -> bytes:
    """Returns a Photoshop file without layers: its composite, uncompressed."""
    height, width, _ = pixels.shape
    head = b"8BPS" + struct.pack(">H6xHIIHH", 1, 3, height, width, 8, 3) + struct.pack(">III", 0, 0, 0)
    return head + struct.pack(">H", 0) + pixels.transpose(2, 0, 1).tobytes()


def tiff(width: int, height: int, *tags: tuple[int, int, int, int], data: bytes = b"") -> bytes:
    """Returns a little-endian TIFF with these tags (tag, type, count, value); the data begin at byte 8."""
    entries = sorted([(256, 4, 1, width), (257, 4, 1, height), *tags])
    table = struct.pack("<H", len(entries)) + b"".join(struct.pack("<HHII", *entry) for entry in entries) + bytes(4)
    return b"II*\0" + struct.pack("<I", 8 + len(data)) + data + table
