"""Encoded image bytes to pixels."""

import io

import numpy as np
import simplejpeg
from PIL import Image, UnidentifiedImageError

from ijepa.errors import IjepaError

Pixels = np.ndarray[tuple[int, ...], np.dtype[np.uint8]]


def decode_rgb(content: bytes) -> Pixels:
    """Decode to (height, width, 3) uint8 RGB, bit for bit what Pillow's `convert("RGB")` gives.

    EXIF orientation is ignored, as in torchvision's ImageFolder and the published code.

    Raises:
        IjepaError: these bytes are not an image, or only a part of one.
    """
    if content[:2] == b"\xff\xd8":
        try:
            pixels: Pixels = simplejpeg.decode_jpeg(content, "RGB")
        except ValueError:
            return _decode_with_pillow(content)  # CMYK, or broken: Pillow tells which
        return pixels
    return _decode_with_pillow(content)


def size_of(content: bytes) -> tuple[int, int]:
    """(height, width) in pixels, from the header alone.

    Raises:
        IjepaError: these bytes are not an image.
    """
    try:
        with Image.open(io.BytesIO(content)) as image:
            return image.height, image.width
    except UnidentifiedImageError as error:
        raise IjepaError(f"not an image ({len(content):,} bytes)") from error


def _decode_with_pillow(content: bytes) -> Pixels:
    try:
        with Image.open(io.BytesIO(content)) as image:
            return np.array(image.convert("RGB"))
    except UnidentifiedImageError as error:
        raise IjepaError(f"not an image ({len(content):,} bytes)") from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise IjepaError(f"image does not decode: {error}") from error
