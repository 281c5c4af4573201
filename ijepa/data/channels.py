"""Images that are not 8-bit RGB: read in their stored depth, kept in shards as `.npy`, measured."""

import io
import logging
import math
import struct
from collections.abc import Iterable
from typing import Any

import numpy as np
from PIL import Image

from ijepa.config import LEVELS, MAX_PIXELS, MOST, Config, PixelStats, ShardConfig
from ijepa.data.decode import (
    FRAMES,
    SHRUNK,
    Taken,
    as_reason,
    check_size,
    decode_rgb,
    opened,
    size_of,
)
from ijepa.data.dense import NPY
from ijepa.errors import IjepaError

TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
PNG = b"\x89PNG\r\n\x1a\n"
PNG_HEADER = struct.Struct(">IIBB")  # width, height, bits and kind, at byte 16
NARROWED = "images of float64 kept as float32"

Array = np.ndarray[tuple[int, ...], np.dtype[Any]]


class Measured(Config):
    """Sums over images of one pixel type, from which `PixelStats` are made."""

    dtype: str
    file: str  # the first of the images
    images: int
    means: tuple[float, ...]  # of each channel: sum of the images' mean pixels
    squares: tuple[float, ...]  # sum of their mean squared pixels


def decode_image(content: bytes, max_pixels: int = MAX_PIXELS) -> Array:
    """(height, width, channels) of a shard's image: `.npy` in its stored depth, or `decode_rgb`."""
    if not content.startswith(NPY):
        return decode_rgb(content, max_pixels)
    with as_reason(content):
        return _of_npy(content)


def image_size(content: bytes) -> tuple[int, int]:
    """(height, width) in pixels of a shard's image."""
    if not content.startswith(NPY):
        return size_of(content)
    height, width, _ = decode_image(content).shape
    return height, width


def read_pixels(
    content: bytes, channels: int, axis: str | None = None, max_pixels: int = MAX_PIXELS
) -> tuple[Array, list[str]]:
    """Decode an image file in its stored depth: TIFF, `.npy`, 16-bit PNG, or what Pillow reads.

    Args:
        content: of the file.
        channels: how many it must have.
        axis: of them in a TIFF or `.npy`: first or last; None takes the one that has as many.
        max_pixels: of height times width; what claims more is not decoded.

    Returns:
        What `checked_pixels` gives, and what is lost of the file.

    Raises:
        IjepaError: it does not decode, or as `checked_pixels`; the message is a short reason.
    """
    has_more = False
    with as_reason(content):
        if content.startswith(NPY):
            found = _of_npy(content)
        elif content.startswith(TIFF):
            found, has_more = _of_tiff(content, max_pixels)
        else:
            found, axis = _of_picture(content, max_pixels), "last"
        found = _channels_last(found, channels, axis)
        check_size(found.shape[0], found.shape[1], max_pixels)
        is_wide = found.dtype == np.float64
        lost = ([FRAMES] if has_more else []) + ([NARROWED] if is_wide else [])
        return checked_pixels(found), lost


def checked_pixels(pixels: Array) -> Array:
    """The same pixels, those of float64 as float32, if their type is one of `LEVELS`.

    Raises:
        IjepaError: it is not, or values are not finite or beyond `MOST`, which is no pixel's.
    """
    if pixels.dtype == np.float64:
        pixels = pixels.astype(np.float32)
    if pixels.dtype.name not in LEVELS:
        raise IjepaError(f"pixels of {pixels.dtype.name}, expected {', '.join(LEVELS)}")
    if pixels.dtype.kind == "f" and not float(np.abs(pixels).max()) <= MOST:  # NaN is not, either
        raise IjepaError(f"values that are not finite or beyond {MOST:g}; replace them first")
    return np.ascontiguousarray(pixels, pixels.dtype.newbyteorder("="))


def _channels_last(found: Array, channels: int, axis: str | None) -> Array:
    """(height, width, channels) of an array that has them first, last, or none for one channel."""
    shape = found.shape
    if found.ndim > 3:
        found = found.reshape([side for side in shape if side > 1])
    if found.ndim == 2:
        found = found[..., np.newaxis]
    elif found.ndim == 3:
        ends = {"first": found.shape[0], "last": found.shape[-1]}
        fits = [end for end, side in ends.items() if side == channels]
        if axis is None and len(fits) > 1:
            raise IjepaError(
                f"pixels of shape {shape}, whose first and last axis could both be the channels; "
                f"say which with --set channel_axis=first or channel_axis=last"
            )
        if (axis or "".join(fits)) == "first":
            found = np.moveaxis(found, 0, -1)
    if found.ndim != 3 or found.shape[-1] != channels or not found.size:
        raise IjepaError(f"pixels of shape {shape}, expected {channels} channels")
    return found


def _of_npy(content: bytes) -> Array:
    """An array as its header says; no object is unpickled, no more memory taken than it has."""
    file = io.BytesIO(content)
    version = np.lib.format.read_magic(file)
    header = np.lib.format.read_array_header_1_0
    shape, is_fortran, dtype = (
        header if version == (1, 0) else np.lib.format.read_array_header_2_0
    )(file)
    flat = np.frombuffer(content, dtype, math.prod(shape), file.tell())
    return flat.reshape(shape, order="F" if is_fortran else "C").copy()


def _of_tiff(content: bytes, max_pixels: int) -> tuple[Array, bool]:
    """The first image or stack of pages of a TIFF; does it hold others?"""
    try:
        import tifffile
    except ImportError as error:
        raise IjepaError("TIFF needs tifffile: pip install tifffile imagecodecs") from error
    logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # faults are told once, below
    with tifffile.TiffFile(io.BytesIO(content)) as file:
        first = file.series[0]
        width, height = sorted((1, 1, *first.shape))[-2:]
        check_size(height, width, max_pixels)
        return first.asarray(), len(file.series) > 1


def _of_picture(content: bytes, max_pixels: int) -> Array:
    """(height, width) or (height, width, channels) of PNG, JPEG and the like."""
    if content.startswith(PNG) and len(content) > 26:
        width, height, bits, kind = PNG_HEADER.unpack_from(content, 16)
        if bits == 16 and kind:  # of which Pillow keeps 8 bits
            check_size(height, width, max_pixels)
            try:
                import imagecodecs
            except ImportError as error:
                raise IjepaError(
                    "16-bit PNG in colour needs imagecodecs: pip install tifffile imagecodecs"
                ) from error
            found: Array = imagecodecs.png_decode(content)
            return found
    with opened(content, max_pixels) as image:
        modes = {"P": "RGB", "PA": "RGBA", "1": "L"}
        return np.asarray(image.convert(modes[image.mode]) if image.mode in modes else image)


def take_channels(content: bytes, config: ShardConfig) -> Taken:
    """Decode an image file in its stored depth, and give it as `.npy`; raises as `read_pixels`."""
    assert config.channels is not None
    pixels, changes = read_pixels(content, config.channels, config.channel_axis, config.max_pixels)
    height, width = pixels.shape[:2]
    scale = (config.resize_px or np.inf) / min(height, width)
    if scale < 1:
        pixels = _resized(pixels, (max(1, round(width * scale)), max(1, round(height * scale))))
        changes.append(SHRUNK)
    check_size(pixels.shape[0], pixels.shape[1], MAX_PIXELS)  # readers decode no more
    file = io.BytesIO()
    np.save(file, pixels, allow_pickle=False)
    return Taken(file.getvalue(), "npy", tuple(changes), pixels)


def _resized(pixels: Array, size: tuple[int, int]) -> Array:
    """Each channel resized to (width, height) with antialiasing, of the same type."""
    how = Image.Resampling.BICUBIC
    channels = np.moveaxis(pixels, -1, 0).astype(np.float32)
    made = np.stack([np.asarray(Image.fromarray(one).resize(size, how)) for one in channels], -1)
    if pixels.dtype.kind != "f":
        most = np.iinfo(pixels.dtype)
        made = np.rint(made).clip(most.min, most.max)
    found: Array = made.astype(pixels.dtype)
    return found


def measured(before: Measured | None, pixels: Array, file: str) -> Measured:
    """Add an image to what was measured; an `IjepaError` if its type is another."""
    flat, level = pixels.reshape(-1, pixels.shape[-1]), LEVELS[pixels.dtype.name]
    means = flat.mean(axis=0, dtype=np.float64) / level
    squares = np.einsum("nc,nc->c", flat, flat, dtype=np.float64) / len(flat) / level**2
    now = Measured(
        dtype=pixels.dtype.name, file=file, images=1, means=tuple(means), squares=tuple(squares)
    )
    return merged([before, now] if before else [now])


def merged(parts: Iterable[Measured]) -> Measured:
    """What was measured of all images together; an `IjepaError` if their types differ."""
    first, *others = parts
    if other := next((one for one in others if one.dtype != first.dtype), None):
        raise IjepaError(
            f"{other.file} has pixels of {other.dtype}, {first.file} of {first.dtype}; all images "
            f"of a shard set must have the same type."
        )
    means, squares = (
        tuple(np.sum([getattr(one, name) for one in (first, *others)], axis=0).tolist())
        for name in ("means", "squares")
    )
    images = sum(one.images for one in (first, *others))
    return first.model_copy(update={"images": images, "means": means, "squares": squares})


def pixel_stats(found: Measured) -> PixelStats:
    """Mean and standard deviation of each channel; 1 for a channel of one value."""
    means, squares = np.array(found.means) / found.images, np.array(found.squares) / found.images
    std = np.sqrt(np.maximum(squares - means**2, 0))
    std[std <= 1e-6 * np.abs(means)] = 1.0
    return PixelStats.model_validate({
        "channels": len(means), "dtype": found.dtype, "mean": tuple(means.tolist()),
        "std": tuple(std.tolist()), "images": found.images,
    })  # fmt: skip
