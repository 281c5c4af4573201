"""Bytes to pixels: 8-bit RGB, images in their stored depth, and maps beside images."""

import contextlib
import io
import logging
import math
import os
import struct
import threading
import zlib
from collections.abc import Iterator
from pathlib import Path
from tokenize import TokenError
from typing import Literal

import numpy as np
import simplejpeg
from PIL import Image, UnidentifiedImageError

from ijepa.arrays import Array, Pixels
from ijepa.config import LEVELS, MAX_PIXELS, MOST, Config, StrPath
from ijepa.errors import IjepaError, optional
from ijepa.files import no_file

Picture = Image.Image | StrPath | Array  # what `Encoder.encode` takes for one image

# Pillow knows many more, some of which run other programs (EPS) or are files of several images.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
# What Pillow, NumPy, tifffile and imagecodecs raise for damaged files.
BROKEN = (
    OSError, SyntaxError, ValueError, TypeError, LookupError, EOFError, ArithmeticError,
    AssertionError, AttributeError, RuntimeError, TokenError, struct.error, zlib.error,
    Image.DecompressionBombError,
)  # fmt: skip
DEEP_MODES = ("I;16", "I;16B", "I;16L", "I;16N", "I", "F")  # one channel of more than 8 bits
JPEG, PNG, NPY = b"\xff\xd8", b"\x89PNG\r\n\x1a\n", b"\x93NUMPY"
TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
PNG_HEADER = struct.Struct(">IIBB")  # width, height, bits and colour type
PNG_HEADER_AT = 16  # byte

# Reasons, counted over a data set.
FRAMES = "images with further pages or frames: the first one is kept"
MOST_UNNAMED = 1024  # classes of masks whose classes nothing names
NARROWED = "images of float64 kept as float32"

_UNLIMITED = threading.Lock()  # held while the limit of Pillow is lifted


def decode_rgb(content: bytes, max_pixels: int = MAX_PIXELS) -> Pixels:
    """Decode to (height, width, 3) uint8 RGB, bit for bit what Pillow's `convert("RGB")` gives.

    CMYK differs from it by one level at most. Images of 16 bits keep the upper 8, where Pillow
    turns all but the darkest values white. EXIF orientation is ignored, as in torchvision's
    ImageFolder and the published code.

    Raises:
        IjepaError: not a whole image, of more than `max_pixels` or than memory holds, or of pixels
            without a range of their own (float or 32-bit).
    """
    if content.startswith(JPEG):
        with as_reason(content), contextlib.suppress(ValueError):
            check_jpeg_size(content, max_pixels)
            pixels: Pixels = simplejpeg.decode_jpeg(content, "RGB")
            return pixels  # else it is broken, or only Pillow knows it
    with opened(content, max_pixels) as image:
        return rgb_pixels(image)


def rgb_pixels(image: Image.Image) -> Pixels:
    """(height, width, 3) uint8 of a PIL image; of 16 bits the upper 8, see `decode_rgb`."""
    return np.array(as_eight_bits(image).convert("RGB"))


def check_jpeg_size(content: bytes, max_pixels: int) -> None:
    """Refuse a JPEG as `check_size` does."""
    height, width, _, _ = simplejpeg.decode_jpeg_header(content)
    check_size(height, width, max_pixels)


def check_size(height: int, width: int, max_pixels: int) -> None:
    """Refuse an image by what its header claims, before memory is taken for its pixels."""
    if height * width > max_pixels:
        raise IjepaError(
            f"{width:,} x {height:,} pixels, more than {max_pixels:,}; if it is what it claims, "
            f"shrink it with `ijepa shard --resize` and a higher --max-pixels"
        )


def as_eight_bits(image: Image.Image) -> Image.Image:
    """Scale 16 bits by their range; Pillow's own conversion cuts off all above 255."""
    if image.mode not in DEEP_MODES:
        return image
    if image.mode == "F" or (image.mode == "I" and image.format not in ("PPM", "PNG")):
        kind = "float" if image.mode == "F" else "signed or 32-bit"
        raise IjepaError(
            f"{kind} pixels, whose range is not known; keep them with `ijepa shard --channels 1`"
        )
    return Image.fromarray((np.asarray(image).astype(np.uint32) >> 8).astype(np.uint8))


@contextlib.contextmanager
def opened(content: bytes, max_pixels: int) -> Iterator[Image.Image]:
    """Open an image by Pillow, its pixels not decoded yet; any failure gets a short reason.

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
        hint = ", or one for --channels" if content.startswith(TIFF) else ""
        raise IjepaError(f"not an image{hint} ({len(content):,} bytes)") from error
    except MemoryError as error:
        raise IjepaError("image does not fit into memory") from error
    except BROKEN as error:
        raise IjepaError(f"image does not decode: {error}") from error


def decode_image(content: bytes) -> Array:
    """(height, width, channels) of a shard's image: `.npy` in its stored depth, or `decode_rgb`."""
    if not content.startswith(NPY):
        return decode_rgb(content)
    with as_reason(content):
        return _of_npy(content)


def image_size(content: bytes) -> tuple[int, int]:
    """(height, width) in pixels of a shard's image."""
    if content.startswith(NPY):
        height, width, _ = decode_image(content).shape
        return height, width
    with opened(content, MAX_PIXELS) as image:  # whose header alone is read
        return image.height, image.width


def read_pixels(
    content: bytes, channels: int, axis: str | None = None, max_pixels: int = MAX_PIXELS
) -> tuple[Array, list[str]]:
    """Decode an image file in its stored depth: TIFF, `.npy`, 16-bit PNG, or what Pillow reads.

    Args:
        content: of the file.
        channels: how many it must have.
        axis: where a TIFF or `.npy` has them, first or last; None takes the one of that length.
        max_pixels: of height times width; what claims more is not decoded.

    Returns:
        What `checked_pixels` gives (an `IjepaError` is a short reason), and what is lost.
    """
    has_more = False
    with as_reason(content):
        if content.startswith(NPY):
            pixels = _of_npy(content)
        elif content.startswith(TIFF):
            pixels, has_more = _of_tiff(content, channels, max_pixels)
        else:
            pixels, axis = _of_picture(content, max_pixels), "last"
        pixels = _channels_last(pixels, channels, axis)
        check_size(pixels.shape[0], pixels.shape[1], max_pixels)
        lost = [FRAMES] * has_more + [NARROWED] * (pixels.dtype == np.float64)
        return checked_pixels(pixels), lost


def checked_pixels(pixels: Array) -> Array:
    """The same pixels, those of float64 as float32.

    An `IjepaError` if their type is none of `LEVELS`, or values are not finite or beyond `MOST`.
    """
    if pixels.dtype == np.float64:
        pixels = pixels.astype(np.float32)
    if pixels.dtype.name not in LEVELS:
        raise IjepaError(f"pixels of {pixels.dtype.name}, expected {', '.join(LEVELS)}")
    if pixels.dtype.kind == "f" and not float(np.abs(pixels).max()) <= MOST:  # NaN is not, either
        raise IjepaError(f"values that are not finite or beyond {MOST:g}; replace them first")
    return np.ascontiguousarray(pixels, pixels.dtype.newbyteorder("="))


def _channels_last(pixels: Array, channels: int, axis: str | None) -> Array:
    """(height, width, channels) of an array that has them first, last, or none for one channel."""
    shape = pixels.shape
    if pixels.ndim > 3:
        pixels = pixels.reshape([side for side in shape if side > 1])
    if pixels.ndim == 2:
        pixels = pixels[..., np.newaxis]
    elif pixels.ndim == 3:
        ends = {"first": pixels.shape[0], "last": pixels.shape[-1]}
        fits = [end for end, side in ends.items() if side == channels]
        if axis is None and len(fits) > 1:
            raise IjepaError(
                f"pixels of shape {shape}, whose first and last axis could both be the channels; "
                f"say which with --set channel_axis=first or channel_axis=last"
            )
        if (axis or "".join(fits)) == "first":
            pixels = np.moveaxis(pixels, 0, -1)
    if pixels.ndim != 3 or pixels.shape[-1] != channels or not pixels.size:
        raise IjepaError(f"pixels of shape {shape}, expected {channels} channels")
    return pixels


def _of_npy(content: bytes) -> Array:
    """An array as its header says; nothing is unpickled, and memory is as large as the file."""
    file = io.BytesIO(content)
    form = np.lib.format
    is_first = form.read_magic(file) == (1, 0)
    read_header = form.read_array_header_1_0 if is_first else form.read_array_header_2_0
    shape, is_fortran, dtype = read_header(file)
    flat = np.frombuffer(content, dtype, math.prod(shape), file.tell())
    return flat.reshape(shape, order="F" if is_fortran else "C").copy()


def _of_tiff(content: bytes, channels: int, max_pixels: int) -> tuple[Array, bool]:
    """The first image of a TIFF, or its pages if these are the channels; whether it has more."""
    tifffile = optional("tifffile", "TIFF", "tifffile imagecodecs")
    logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # faults are told once, below
    with tifffile.TiffFile(io.BytesIO(content)) as file:
        first = file.series[0]
        width, height = sorted((1, 1, *first.shape))[-2:]
        check_size(height, width, max_pixels)
        shapes = [one.shape for one in file.series]
        if len(first.shape) == 2 and channels > 1 and shapes == [first.shape] * channels:
            return np.stack([one.asarray() for one in file.series]), False
        return first.asarray(), len(file.series) > 1


def _of_picture(content: bytes, max_pixels: int) -> Array:
    """(height, width) or (height, width, channels) of PNG, JPEG and the like."""
    if is_deep_colour(content):
        width, height, *_ = PNG_HEADER.unpack_from(content, PNG_HEADER_AT)
        check_size(height, width, max_pixels)
        imagecodecs = optional("imagecodecs", "16-bit PNG in colour", "tifffile imagecodecs")
        found: Array = imagecodecs.png_decode(content)
        return found
    with opened(content, max_pixels) as image:
        modes = {"P": "RGB", "PA": "RGBA", "1": "L"}
        return np.asarray(image.convert(modes[image.mode]) if image.mode in modes else image)


def is_deep_colour(content: bytes) -> bool:
    """Is it a PNG of 16 bits and several channels, of which Pillow keeps 8 bits?"""
    if not content.startswith(PNG) or len(content) <= PNG_HEADER_AT + PNG_HEADER.size:
        return False
    *_, bits, colour_type = PNG_HEADER.unpack_from(content, PNG_HEADER_AT)
    return bool(bits == 16 and colour_type)


class DenseLabel(Config):
    """What the maps of one dense label hold: for each pixel a class, or depth along the axis."""

    kind: Literal["classes", "depth"] = "classes"
    names: tuple[str, ...] | None = None  # of classes 0, 1, ...; None if not yet counted, or depth
    first: int = 0  # the value of class 0 in a file; pixels of lower values are ignored
    ignored: int = 255  # the value of further pixels that are ignored
    scale: float = 0.001  # units of depth in one level of an integer file; floats are in units
    unit: str = "m"  # of depth

    def with_names(self, num_classes: int) -> "DenseLabel":
        """The same, its classes called by their numbers if nothing has named them."""
        if self.names is not None or self.kind == "depth":
            return self
        return self.model_copy(update={"names": tuple(map(str, range(num_classes)))})

    @property
    def dtype(self) -> str:
        """Of maps in views: integers, whose largest value is of ignored pixels, or float32."""
        if self.kind == "depth":
            return "float32"
        return "uint8" if self.names and len(self.names) <= np.iinfo(np.uint8).max else "uint16"


def decode_dense(content: bytes, label: DenseLabel) -> Array:
    """(height, width) of a PNG or `.npy` file: class numbers, or depth (0 where it is not known).

    See `DenseLabel.dtype`. An `IjepaError` if it is another file, or holds a class without a name.
    """
    try:
        if content.startswith(NPY):
            values = _of_npy(content)
        else:
            with Image.open(io.BytesIO(content), formats=("PNG",)) as image:
                values = np.asarray(image)
    except BROKEN as error:
        raise IjepaError(f"not a PNG or .npy file: {error}") from error
    if values.ndim != 2 or values.dtype.kind not in "biuf":
        raise IjepaError(f"{values.dtype} of shape {values.shape}, not (height, width) of numbers")
    if label.kind == "depth":
        if values.dtype.itemsize == 1 and label.scale == DenseLabel().scale:
            raise IjepaError("8 bits, in millimetres at most 0.255 m; give its unit: depth_scale")
        depth: Array = values.astype(np.float32)
        depth *= 1 if values.dtype.kind == "f" else np.float32(label.scale)
        return np.where(np.isfinite(depth) & (depth > 0), depth, np.float32(0))
    if values.dtype.kind == "f":
        raise IjepaError("floats, where classes are integers")
    numbers, largest = values.astype(np.int64) - label.first, np.iinfo(label.dtype).max
    is_ignored = (numbers < 0) | (values == label.ignored)
    highest = int(numbers[~is_ignored].max(initial=0))
    most = MOST_UNNAMED if label.names is None else len(label.names)
    if highest >= most:
        hint = "" if label.names else " where nothing names them: are these masks of objects?"
        raise IjepaError(
            f"the value {highest + label.first}, but classes end at {most - 1 + label.first}{hint}"
        )
    return np.where(is_ignored, largest, numbers).astype(label.dtype)


def pixels_of(image: Picture, channels: int | None) -> Array:
    """(height, width, channels) of a picture that a caller gives; channels None: 8-bit RGB."""
    if isinstance(image, str | os.PathLike):
        path = Path(image)
        if path.is_dir():
            raise IjepaError(
                f"{path} is a folder; give its image files, such as "
                f"sorted(Path({str(path)!r}).glob('*.jpg'))."
            )
        if not path.is_file():
            raise IjepaError(f"{no_file(path, 'image file')}.")
        try:
            content = path.read_bytes()
            return read_pixels(content, channels)[0] if channels else decode_rgb(content)
        except IjepaError as error:
            raise IjepaError(f"{path}: {error}.") from error
    if isinstance(image, Image.Image):
        image = np.atleast_3d(np.asarray(image)) if channels else rgb_pixels(image)
    kind = f"a {type(image).__name__}"
    if isinstance(image, np.ndarray):
        is_known = channels is not None or image.dtype == np.uint8
        if is_known and image.ndim == 3 and image.shape[2] == (channels or 3) and image.size:
            return checked_pixels(image)
        kind = f"an array of shape {image.shape} and type {image.dtype}"
    arrays = f"(height, width, {channels or 3}) {'' if channels else 'uint8 '}arrays"
    raise IjepaError(
        f"encode takes PIL images, paths of image files and {arrays}, not {kind}; for tensors of "
        f"normalised images, call `encoder.features(images)`."
    )
