"""Check an image file, and make it ready for a shard."""

import io

import simplejpeg
from PIL import Image

from ijepa.stores.images import decode_rgb

JPEG_QUALITY = 95
PILLOW_FORMATS = {"jpg": "JPEG", "png": "PNG", "webp": "WEBP"}


def take_in(content: bytes, resize_px: int | None) -> tuple[bytes, str]:
    """Decode an image file to the end, and give its bytes and their extension.

    The bytes stay as they are, unless the short side is longer than `resize_px`, or the format is
    one that WebDataset readers do not expect (BMP, GIF, TIFF, ...): that becomes PNG, pixels kept.

    Raises:
        IjepaError: these bytes are not a whole image; the message is a short reason.
    """
    extension = sniff(content)
    if resize_px is None and extension is not None:
        check(content, extension)
        return content, extension
    pixels = decode_rgb(content)
    height, width = pixels.shape[:2]
    if resize_px is None or min(height, width) <= resize_px:
        return (
            (content, extension) if extension else (_encode(Image.fromarray(pixels), "png"), "png")
        )
    scale = resize_px / min(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    small = Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC)  # with antialiasing
    extension = extension or "png"
    return _encode(small, extension), extension


def sniff(content: bytes) -> str | None:
    """The extension that the first bytes ask for, whatever the file is called."""
    if content[:2] == b"\xff\xd8":
        return "jpg"
    if content[:8] == b"\x89PNG\r\n\x1a\n":
        return "png"
    if content[:4] == b"RIFF" and content[8:12] == b"WEBP":
        return "webp"
    return None


def check(content: bytes, extension: str) -> None:
    """Decode to the end; a JPEG at an eighth of its size, which reads the same bytes in less time.

    Raises:
        IjepaError: these bytes are not a whole image.
    """
    if extension == "jpg":
        try:
            simplejpeg.decode_jpeg(content, "GRAY", min_height=1, min_width=1, min_factor=8)
        except ValueError:
            decode_rgb(content)  # CMYK, or broken: it tells which
    else:
        decode_rgb(content)


def _encode(image: Image.Image, extension: str) -> bytes:
    file = io.BytesIO()
    image.save(file, PILLOW_FORMATS[extension], quality=JPEG_QUALITY)
    return file.getvalue()
