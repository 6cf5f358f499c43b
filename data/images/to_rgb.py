"""Converts a decoded image of any kind to RGB with 8 bits: one rule for each kind, described in docs/data.md."""

import numpy as np
from PIL import Image, ImageCms

BACKGROUND = "white"  # what transparent images are composed on


class NoRule(ValueError):
    """The pixels have values that no rule maps to 0..255."""


def to_rgb(picture: Image.Image) -> Image.Image:
    """Returns a decoded image as RGB. Raises NoRule for 32-bit values outside 0..65535 and floats outside 0..1.

    16-bit greyscale is divided by 257 (65535 / 255), floats are multiplied by 255, both rounded to the nearest. What is
    transparent is composed on white.
    """
    mode = picture.mode
    if mode.startswith("I;16"):
        return _grey(_of_16_bits(np.asarray(picture), picture.info.get("transparency")))
    if mode == "I":
        return _grey(_of_32_bits(np.asarray(picture)))
    if mode == "F":
        return _grey(_of_floats(np.asarray(picture)))
    if mode == "LAB":
        profiles = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        converted = ImageCms.profileToProfile(picture, *profiles, outputMode="RGB")
        assert converted is not None  # it is None only if it converts in place
        return converted
    if picture.has_transparency_data:
        return _on_background(picture)
    return picture.convert("RGB")


def _grey(values: np.ndarray) -> Image.Image:
    return Image.fromarray(values).convert("RGB")


def _of_16_bits(values: np.ndarray, transparent: object = None) -> np.ndarray:
    """Scales [h, w] of 0..65535 to uint8. `transparent`: the value that stands for "transparent", if any."""
    grey = ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)
    if isinstance(transparent, int):
        grey[values == transparent] = 255  # white
    return grey


def _of_32_bits(values: np.ndarray) -> np.ndarray:
    low, high = int(values.min()), int(values.max())
    if low < 0 or high > 65_535:
        raise NoRule(f"has 32-bit values from {low} to {high}; only 0 to 65535 can be scaled to 8 bits; convert it")
    return _of_16_bits(values)


def _of_floats(values: np.ndarray) -> np.ndarray:
    low, high = float(values.min()), float(values.max())
    if not (low >= 0 and high <= 1):  # NaN too
        raise NoRule(f"has floating-point values from {low:g} to {high:g}; only 0 to 1 can be scaled; convert it")
    return np.rint(values * np.float32(255)).astype(np.uint8)


def _on_background(picture: Image.Image) -> Image.Image:
    """Composes an image with an alpha channel, a transparent colour or a palette with alpha on the background."""
    colour = picture.info.get("transparency")
    if picture.mode == "RGB" and isinstance(colour, tuple) and max(colour) > 255:  # of a PNG with 16 bits a channel,
        picture.info["transparency"] = tuple(value >> 8 for value in colour)  # of which Pillow keeps the upper 8
    if picture.mode == "La":
        picture = picture.convert("LA")
    rgba = picture if picture.mode == "RGBA" else picture.convert("RGBA")
    alpha = rgba.getchannel("A")
    if alpha.getextrema() == (255, 255):
        return rgba.convert("RGB")
    composed = Image.new("RGB", rgba.size, BACKGROUND)
    composed.paste(rgba.convert("RGB"), mask=alpha)
    return composed
