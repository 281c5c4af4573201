"""Encoded image bytes to pixels; and image files of any source to what a shard takes."""

import contextlib
import io
import struct
import threading
import zlib
from collections.abc import Iterator
from tokenize import TokenError
from typing import Any, NamedTuple

import numpy as np
import simplejpeg
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from ijepa.config import MAX_PIXELS, ShardConfig
from ijepa.errors import IjepaError

# Pillow knows many more, some of which run other programs (EPS) or are files of several images.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
# What Pillow, NumPy, tifffile and imagecodecs raise for damaged files.
BROKEN = (
    OSError, SyntaxError, ValueError, TypeError, LookupError, EOFError, ArithmeticError,
    AssertionError, AttributeError, RuntimeError, TokenError, struct.error, zlib.error,
    Image.DecompressionBombError,
)  # fmt: skip
DEEP_MODES = ("I;16", "I;16B", "I;16L", "I;16N", "I", "F")  # one channel of more than 8 bits
JPEG_QUALITY = 95
PIXELS_AT_ONCE = 2**20
KEPT = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp"}  # what WebDataset readers expect, and suffixes

# Reasons, counted over a data set; the first two tell what is lost.
FRAMES = "images with further pages or frames: the first one is kept"
DEEP = "images of 16 bits: the upper 8 are used (see --pixel-range and --channels)"
RANGED = "images scaled by --pixel-range"
ROTATED = "images turned as EXIF says"
SHRUNK = "images shrunk by --resize"
REENCODED = "images of other formats encoded as PNG"

_UNLIMITED = threading.Lock()  # held while the limit of Pillow is lifted

Pixels = np.ndarray[tuple[int, ...], np.dtype[np.uint8]]


class Taken(NamedTuple):
    """An image file that is ready for a shard: its bytes, `jpg`, `png`, `webp` or `npy`.

    `pixels` are (height, width, channels), of those with `channels` alone.
    """

    content: bytes
    extension: str
    changes: tuple[str, ...] = ()
    pixels: np.ndarray[Any, np.dtype[Any]] | None = None


def decode_rgb(content: bytes, max_pixels: int = MAX_PIXELS) -> Pixels:
    """Decode to (height, width, 3) uint8 RGB, bit for bit what Pillow's `convert("RGB")` gives.

    Images of 16 bits keep the upper 8, where Pillow turns all but the darkest values white. EXIF
    orientation is ignored, as in torchvision's ImageFolder and the published code.

    Raises:
        IjepaError: these bytes are not an image, or only a part of one, the header claims more
            than `max_pixels`, the pixels do not fit into memory, or they have no range of their
            own (float or 32-bit).
    """
    if content[:2] == b"\xff\xd8":
        with as_reason(content), contextlib.suppress(ValueError):
            _check_jpeg_size(content, max_pixels)
            pixels: Pixels = simplejpeg.decode_jpeg(content, "RGB")
            return pixels  # else it is CMYK, or broken: Pillow finds out which
    with opened(content, max_pixels) as image:
        return rgb_pixels(image)


def rgb_pixels(image: Image.Image) -> Pixels:
    """(height, width, 3) uint8 of a PIL image; of 16 bits the upper 8, see `decode_rgb`."""
    return np.array(_as_eight_bits(image).convert("RGB"))


def size_of(content: bytes) -> tuple[int, int]:
    """(height, width) in pixels, from the header alone."""
    with opened(content, MAX_PIXELS) as image:
        return image.height, image.width


def take_in(content: bytes, config: ShardConfig) -> Taken:
    """Decode an image file to the end, and give its bytes and their extension.

    The bytes stay as they are, unless the short side is longer than `resize_px`, an option asks for
    other pixels, or the format is one that WebDataset readers do not expect (BMP, GIF, TIFF, ...):
    that becomes PNG.

    Raises:
        IjepaError: these bytes are not a whole image, or claim too many pixels; the message is a
            short reason.
    """
    is_jpeg = content[:2] == b"\xff\xd8"
    if is_jpeg and config.resize_px is None and config.exif == "ignore":
        max_pixels = min(config.max_pixels, MAX_PIXELS)
        with as_reason(content):
            try:  # at an eighth of the size, which reads the same bytes in less time
                _check_jpeg_size(content, max_pixels)
                simplejpeg.decode_jpeg(content, "GRAY", min_height=1, min_width=1, min_factor=8)
            except ValueError:
                decode_rgb(content, max_pixels)  # CMYK, or broken: it tells which
        return Taken(content, "jpg")
    with opened(content, config.max_pixels) as image:
        kind = "JPEG" if is_jpeg else image.format  # a JPEG of several pictures is Pillow's MPO
        changes = [FRAMES] if not is_jpeg and getattr(image, "n_frames", 1) > 1 else []
        if image.mode in DEEP_MODES and config.pixel_range is None:
            changes.append(DEEP)
        pixels, changed = _changed(image, config)
        check_size(pixels.height, pixels.width, MAX_PIXELS)  # readers decode no more
        if kind in KEPT and not changed:
            return Taken(content, KEPT[kind], tuple(changes))
        changes += changed
        if kind not in KEPT:
            kind = "PNG"
            changes.append(REENCODED)
        file = io.BytesIO()
        pixels.info.clear()  # the EXIF orientation of a turned image, for one
        pixels.save(file, kind, quality=JPEG_QUALITY)
        return Taken(file.getvalue(), KEPT[kind], tuple(changes))


def _check_jpeg_size(content: bytes, max_pixels: int) -> None:
    height, width, _, _ = simplejpeg.decode_jpeg_header(content)
    check_size(height, width, max_pixels)


def check_size(height: int, width: int, max_pixels: int) -> None:
    """Refuse an image by what its header claims, before memory is taken for its pixels."""
    if height * width > max_pixels:
        raise IjepaError(
            f"{width:,} x {height:,} pixels, more than {max_pixels:,}; if it is what it claims, "
            f"shrink it with `ijepa shard --resize` and a higher --max-pixels"
        )


def _as_eight_bits(image: Image.Image) -> Image.Image:
    """Scale 16 bits by their range; Pillow's own conversion cuts off all above 255."""
    if image.mode not in DEEP_MODES:
        return image
    if image.mode == "F" or (image.mode == "I" and image.format not in ("PPM", "PNG")):
        kind = "float" if image.mode == "F" else "signed or 32-bit"
        raise IjepaError(
            f"{kind} pixels, whose range is not known; name it with `ijepa shard --pixel-range`"
        )
    return Image.fromarray((np.asarray(image).astype(np.uint32) >> 8).astype(np.uint8))


def _changed(image: Image.Image, config: ShardConfig) -> tuple[Image.Image, list[str]]:
    """RGB pixels as the options want them, and which of these changed them."""
    changes = []
    if config.exif == "rotate" and image.getexif().get(ExifTags.Base.Orientation) in range(2, 9):
        image = ImageOps.exif_transpose(image)
        changes.append(ROTATED)
    if config.pixel_range is not None and image.mode in DEEP_MODES:
        image = _scaled(image, *config.pixel_range)
        changes.append(RANGED)
    pixels = _as_eight_bits(image).convert("RGB")
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


@contextlib.contextmanager
def opened(content: bytes, max_pixels: int) -> Iterator[Image.Image]:
    """An image of Pillow's, of whose pixels none is decoded yet; whatever fails has a short reason.

    Pillow's own limit of pixels, which warns at first, is lifted meanwhile.
    """
    with as_reason(content):
        with _UNLIMITED:
            before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
            try:
                opened = Image.open(io.BytesIO(content), formats=FORMATS)
            finally:
                Image.MAX_IMAGE_PIXELS = before
        with opened as image:
            check_size(image.height, image.width, max_pixels)
            yield image


@contextlib.contextmanager
def as_reason(content: bytes) -> Iterator[None]:
    """Give whatever fails while an image is decoded a short reason."""
    try:
        yield
    except UnidentifiedImageError as error:
        raise IjepaError(f"not an image ({len(content):,} bytes)") from error
    except MemoryError as error:
        raise IjepaError("image does not fit into memory") from error
    except BROKEN as error:
        raise IjepaError(f"image does not decode: {error}") from error
