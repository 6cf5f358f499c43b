"""Decodes an image file of any kind to RGB. Memory is bounded before decoding, and every error names the image."""

import io
import threading
import warnings
from contextlib import nullcontext
from pathlib import Path

from PIL import ExifTags, Image, ImageFile, UnidentifiedImageError

from randcond.data.images.formats import SIGNED, SUFFIXES, describe_content
from randcond.data.images.to_rgb import NoRule, to_rgb
from randcond.data.images.whole_png import what_is_missing
from randcond.data.inputs.names import shown
from randcond.launch.errors import UserError

READING = 2  # the number of these rules; artefacts without a number were made by older ones (no rotation, no alpha)
MAX_PIXELS = 8192 * 8192  # about 67 million
MAX_SIDE = 65_535  # pixels, as in JPEG; resizing a longer side would need gigabytes for its coefficients
MAX_BYTES = 8 * MAX_PIXELS  # of a file: as much as MAX_PIXELS pixels of four 16-bit channels
LARGE = 4096 * 4096  # pixels; larger images are decoded one at a time, whatever the number of threads

one_large = threading.Lock()  # held while a large image is decoded or converted
_HOLD_PNG = ("PNG", "ICO", "CUR", "ICNS")
_TURNS = {  # EXIF's orientation -> what makes the image upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)  # our limit is lower


class BadImage(UserError):
    """An image that can't be used. `reason` is the kind of damage in a few words, for counting."""

    def __init__(self, name: str, reason: str, detail: str) -> None:
        super().__init__(f"image {shown(name)}: {detail}")
        self.reason = reason


def read_image(path: Path, name: str = "", start: int = 0, size: int = -1, suffix: str = "") -> Image.Image:
    """Reads an image file, or `size` bytes from `start` of a file that contains it, as RGB. See `decode`.

    `name`: for errors, the path if not given. `suffix`: the path's if not given.
    Raises BadImage also if the file can't be read or has more than MAX_BYTES.
    """
    name = name or str(path)
    try:
        with path.open("rb") as file:
            length = size if size >= 0 else file.seek(0, io.SEEK_END)
            if length > MAX_BYTES:
                raise BadImage(name, "too large", f"is too large: {length:,} bytes, at most {MAX_BYTES:,} are read")
            file.seek(start)
            data = file.read(length)
    except OSError as error:
        raise BadImage(name, "can't be read", f"can't be read ({error.strerror})") from None
    return decode(data, name, suffix or path.suffix)


def decode(data: bytes, name: str, suffix: str = "") -> Image.Image:
    """Decodes an image file to an upright RGB image by the rules of docs/data.md.

    `suffix` (.tga) decides only for formats without a signature. Of an animation: the first frame.
    Raises BadImage if it is no image, is cut off or damaged, has more than MAX_PIXELS pixels, or has values that no
    rule covers.
    """
    if not data:
        raise BadImage(name, "empty", "is empty")
    own = SUFFIXES.get(suffix.lower())
    formats = [*SIGNED, own] if own and own not in SIGNED else list(SIGNED)
    try:
        with Image.open(io.BytesIO(data), formats=formats) as picture:
            _check_size(picture, name)
            with one_large if picture.width * picture.height > LARGE else nullcontext():
                ImageFile.LOAD_TRUNCATED_IMAGES = False  # some libraries set it, and half of an image would be grey
                picture.load()
                if picture.format in _HOLD_PNG and (missing := what_is_missing(data)):
                    raise BadImage(name, "damaged", f"is damaged (the PNG {missing})")
                _check_size(picture, name)  # an icon has its size inside
                return _upright(to_rgb(picture), picture)
    except BadImage:
        raise
    except UnidentifiedImageError:
        raise BadImage(name, "not an image", f"is not an image: {describe_content(data)}") from None
    except Image.DecompressionBombError as error:
        raise BadImage(name, "too large", f"is too large ({error})") from None
    except NoRule as error:
        raise BadImage(name, "values without a rule", str(error)) from None
    except Exception as error:  # Pillow's readers raise many kinds, such as struct.error, IndexError and MemoryError
        raise BadImage(name, "damaged", f"is damaged ({_text(error)})") from None


def _check_size(picture: Image.Image, name: str) -> None:
    width, height = picture.size
    if width < 1 or height < 1:
        raise BadImage(name, "damaged", f"is damaged (its size is {width} x {height} pixels)")
    if width * height > MAX_PIXELS or max(width, height) > MAX_SIDE:
        limit = f"at most {MAX_PIXELS:,} pixels and {MAX_SIDE:,} a side are read"
        raise BadImage(name, "too large", f"is too large: {width:,} x {height:,} pixels, {limit}")


def _upright(rgb: Image.Image, source: Image.Image) -> Image.Image:
    """Turns an image as the EXIF data of its file says. EXIF data that can't be read says nothing."""
    try:
        turn = _TURNS.get(source.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # as in `decode`; the pixels are intact
        return rgb
    return rgb if turn is None else rgb.transpose(turn)


def _text(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if text and isinstance(error, (OSError, SyntaxError)) else f"{type(error).__name__} {text}".strip()
