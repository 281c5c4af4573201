"""Check an image file, and make it ready for a shard."""

import io
from typing import NamedTuple

import numpy as np
import simplejpeg
from PIL import ExifTags, Image, ImageOps

from ijepa.config import MAX_PIXELS, ShardConfig
from ijepa.data.images import (
    DEEP_MODES,
    as_eight_bits,
    as_reason,
    check_jpeg_size,
    check_size,
    decode_rgb,
    opened,
)

JPEG_QUALITY = 95
PIXELS_AT_ONCE = 2**20
PILLOW_FORMATS = {"jpg": "JPEG", "png": "PNG", "webp": "WEBP"}

# Reasons, counted over a data set; the first two tell what is lost.
FRAMES = "images with further pages or frames: the first one is kept"
DEEP = "images of 16 bits: the upper 8 are used (--pixel-range LOW HIGH chooses)"
RANGED = "images scaled by --pixel-range"
ROTATED = "images turned as EXIF says"
SHRUNK = "images shrunk by --resize"
REENCODED = "images of other formats encoded as PNG"


class Taken(NamedTuple):
    """An image that is ready.

    Attributes:
        content: bytes of the file to write.
        extension: `jpg`, `png` or `webp`.
        changes: what was lost or changed, as the constants above say it.
    """

    content: bytes
    extension: str
    changes: tuple[str, ...] = ()


def take_in(content: bytes, config: ShardConfig) -> Taken:
    """Decode an image file to the end, and give its bytes and their extension.

    The bytes stay as they are, unless the short side is longer than `resize_px`, an option asks for
    other pixels, or the format is one that WebDataset readers do not expect (BMP, GIF, TIFF, ...):
    that becomes PNG.

    Raises:
        IjepaError: these bytes are not a whole image, or claim too many pixels; the message is a
            short reason.
    """
    extension = sniff(content)
    if extension == "jpg" and config.resize_px is None and config.exif == "ignore":
        check_jpeg(content, min(config.max_pixels, MAX_PIXELS))
        return Taken(content, extension)
    with opened(content, config.max_pixels) as image:
        lost = _lost(image, config) if extension != "jpg" else []
        changed, changes = _changed(image, config)
        made = _encode(changed, extension or "png") if changes or not extension else content
        check_size(changed.height, changed.width, MAX_PIXELS)  # readers decode no more
        reencoded = [] if extension else [REENCODED]
        return Taken(made, extension or "png", (*lost, *changes, *reencoded))


def sniff(content: bytes) -> str | None:
    """The extension that the first bytes ask for, whatever the file is called."""
    if content[:2] == b"\xff\xd8":
        return "jpg"
    if content[:8] == b"\x89PNG\r\n\x1a\n":
        return "png"
    if content[:4] == b"RIFF" and content[8:12] == b"WEBP":
        return "webp"
    return None


def check_jpeg(content: bytes, max_pixels: int) -> None:
    """Decode to the end at an eighth of the size, which reads the same bytes in less time.

    Raises:
        IjepaError: these bytes are not a whole image, or claim more than `max_pixels`.
    """
    with as_reason(content):
        try:
            check_jpeg_size(content, max_pixels)
            simplejpeg.decode_jpeg(content, "GRAY", min_height=1, min_width=1, min_factor=8)
        except ValueError:
            decode_rgb(content, max_pixels)  # CMYK, or broken: it tells which


def _lost(image: Image.Image, config: ShardConfig) -> list[str]:
    """What readers of the shard will not see."""
    deep = image.mode in DEEP_MODES and config.pixel_range is None
    reasons = [FRAMES] if getattr(image, "n_frames", 1) > 1 else []
    return [*reasons, DEEP] if deep else reasons


def _changed(image: Image.Image, config: ShardConfig) -> tuple[Image.Image, list[str]]:
    """RGB pixels as the options want them, and which of these changed them."""
    changes = []
    if config.exif == "rotate" and image.getexif().get(ExifTags.Base.Orientation) in range(2, 9):
        image = ImageOps.exif_transpose(image)
        changes.append(ROTATED)
    if config.pixel_range is not None and image.mode in DEEP_MODES:
        image = _scaled(image, *config.pixel_range)
        changes.append(RANGED)
    pixels = as_eight_bits(image).convert("RGB")
    scale = (config.resize_px or np.inf) / min(pixels.size)
    if scale < 1:
        size = (max(1, round(pixels.width * scale)), max(1, round(pixels.height * scale)))
        pixels = pixels.resize(size, Image.Resampling.BICUBIC)  # with antialiasing
        changes.append(SHRUNK)
    return pixels, changes


def _scaled(image: Image.Image, low: float, high: float) -> Image.Image:
    """Of 8 bits, `low` black and `high` white; some rows at a time, which needs less memory."""
    values = np.asarray(image)
    levels = np.empty(values.shape, np.uint8)
    step = max(1, PIXELS_AT_ONCE // image.width)
    for first in range(0, image.height, step):
        rows = slice(first, first + step)
        shares = (values[rows].astype(np.float64) - low) / (high - low)
        levels[rows] = np.rint(np.nan_to_num(shares).clip(0, 1) * 255)
    return Image.fromarray(levels)


def _encode(image: Image.Image, extension: str) -> bytes:
    file = io.BytesIO()
    image.info.clear()  # the EXIF orientation of a turned image, for one
    image.save(file, PILLOW_FORMATS[extension], quality=JPEG_QUALITY)
    return file.getvalue()
