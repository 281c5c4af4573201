"""Encoded image bytes to pixels."""

import contextlib
import io
import struct
import threading
from collections.abc import Iterator

import numpy as np
import simplejpeg
from PIL import Image, UnidentifiedImageError

from ijepa.config import MAX_PIXELS
from ijepa.errors import IjepaError

# Pillow knows many more, some of which run other programs (EPS) or are files of several images.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
BROKEN = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    LookupError,
    EOFError,
    OverflowError,
    struct.error,
    Image.DecompressionBombError,
)  # what Pillow raises for damaged files
DEEP_MODES = ("I;16", "I;16B", "I;16L", "I;16N", "I", "F")  # one channel of more than 8 bits

_UNLIMITED = threading.Lock()  # held while the limit of Pillow is lifted

Pixels = np.ndarray[tuple[int, ...], np.dtype[np.uint8]]


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
            check_jpeg_size(content, max_pixels)
            pixels: Pixels = simplejpeg.decode_jpeg(content, "RGB")
            return pixels  # else it is CMYK, or broken: Pillow finds out which
    with opened(content, max_pixels) as image:
        return np.array(as_eight_bits(image).convert("RGB"))


def size_of(content: bytes) -> tuple[int, int]:
    """(height, width) in pixels, from the header alone.

    Raises:
        IjepaError: these bytes are not an image.
    """
    with opened(content) as image:
        return image.height, image.width


def check_size(height: int, width: int, max_pixels: int) -> None:
    """Refuse an image by what its header claims, before memory is taken for its pixels.

    Raises:
        IjepaError: it has more than `max_pixels`.
    """
    if height * width > max_pixels:
        raise IjepaError(
            f"{width:,} x {height:,} pixels, more than {max_pixels:,}; if it is what it claims, "
            f"shrink it with `ijepa shard --resize` and a higher --max-pixels"
        )


def as_eight_bits(image: Image.Image) -> Image.Image:
    """Scale 16 bits by their range; Pillow's own conversion cuts off all above 255.

    Raises:
        IjepaError: float and 32-bit pixels, which have no range of their own.
    """
    if image.mode not in DEEP_MODES:
        return image
    if image.mode == "F" or (image.mode == "I" and image.format not in ("PPM", "PNG")):
        kind = "float" if image.mode == "F" else "signed or 32-bit"
        raise IjepaError(
            f"{kind} pixels, whose range is not known; name it with `ijepa shard --pixel-range`"
        )
    return Image.fromarray((np.asarray(image).astype(np.uint32) >> 8).astype(np.uint8))


def check_jpeg_size(content: bytes, max_pixels: int) -> None:
    """As `check_size`, for the bytes of a JPEG.

    Raises:
        IjepaError: it has more than `max_pixels`.
        ValueError: the header is not one that libjpeg-turbo decodes.
    """
    height, width, _, _ = simplejpeg.decode_jpeg_header(content)
    check_size(height, width, max_pixels)


@contextlib.contextmanager
def opened(content: bytes, max_pixels: int = MAX_PIXELS) -> Iterator[Image.Image]:
    """An image of Pillow's, of whose pixels none is decoded yet; whatever fails has a short reason.

    Raises:
        IjepaError: as `decode_rgb` does, also for what is done with the image in the context.
    """
    with as_reason(content), _open(content) as image:
        check_size(image.height, image.width, max_pixels)
        yield image


@contextlib.contextmanager
def as_reason(content: bytes) -> Iterator[None]:
    """Give whatever fails while an image is decoded a short reason.

    Raises:
        IjepaError: these bytes are no image, are damaged, or their pixels do not fit into memory.
    """
    try:
        yield
    except UnidentifiedImageError as error:
        raise IjepaError(f"not an image ({len(content):,} bytes)") from error
    except MemoryError as error:
        raise IjepaError("image does not fit into memory") from error
    except BROKEN as error:
        raise IjepaError(f"image does not decode: {error}") from error


def _open(content: bytes) -> Image.Image:
    """Pillow's own limit, which warns at first and is told in other words, is lifted meanwhile."""
    with _UNLIMITED:
        before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            return Image.open(io.BytesIO(content), formats=FORMATS)
        finally:
            Image.MAX_IMAGE_PIXELS = before
