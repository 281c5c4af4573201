"""Image files of any source to what a shard takes, and what is measured of them meanwhile."""

import io
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import simplejpeg
from PIL import ExifTags, Image, ImageOps

from ijepa.arrays import Array
from ijepa.config import LEVELS, MAX_PIXELS, Config, PixelStats, ShardConfig, Size
from ijepa.data.decode import (
    DEEP_MODES,
    FRAMES,
    JPEG,
    NPY,
    DenseLabel,
    as_eight_bits,
    as_reason,
    check_jpeg_size,
    check_size,
    decode_dense,
    decode_rgb,
    is_deep_colour,
    opened,
    read_pixels,
)
from ijepa.errors import IjepaError

JPEG_QUALITY = 95
KEPT = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp"}  # what WebDataset readers expect, and suffixes

# Reasons, counted over a data set; the first one tells what is lost.
DEEP = "images of 16 bits: the upper 8 are used (see --channels)"
ROTATED = "images turned as EXIF says"
SHRUNK = "images shrunk by --resize"
REENCODED = "images of other formats encoded as PNG"


class ReadyImage(NamedTuple):
    """An image file that is ready for a shard: its bytes, `jpg`, `png`, `webp` or `npy`.

    `pixels` are (height, width, channels), of those with `channels` alone.
    """

    content: bytes
    extension: str
    changes: tuple[str, ...] = ()
    pixels: Array | None = None


def prepare_image(content: bytes, config: ShardConfig) -> ReadyImage:
    """Decode an image file to the end, and give its bytes and their extension.

    The bytes stay as they are, unless the short side is longer than `resize_px`, an option asks for
    other pixels, or the format is one that WebDataset readers do not expect (BMP, GIF, TIFF, ...):
    that becomes PNG. An `IjepaError`, a short reason, if it is not a whole image or too large.
    """
    is_jpeg = content.startswith(JPEG)
    if is_jpeg and config.resize_px is None and config.exif == "ignore":
        max_pixels = min(config.max_pixels, MAX_PIXELS)
        with as_reason(content):
            try:  # at an eighth of the size, which reads the same bytes in less time
                check_jpeg_size(content, max_pixels)
                simplejpeg.decode_jpeg(content, "GRAY", min_height=1, min_width=1, min_factor=8)
            except ValueError:
                decode_rgb(content, max_pixels)  # broken, or only Pillow knows it
        return ReadyImage(content, "jpg")
    with opened(content, config.max_pixels) as image:
        kind = "JPEG" if is_jpeg else image.format  # a JPEG of several pictures is Pillow's MPO
        changes = [FRAMES] if not is_jpeg and getattr(image, "n_frames", 1) > 1 else []
        if is_deep_colour(content) or image.mode in DEEP_MODES:
            changes.append(DEEP)
        pixels, changed = image, list[str]()
        tag = ExifTags.Base.Orientation
        if config.exif == "rotate" and image.getexif().get(tag) in range(2, 9):
            pixels = ImageOps.exif_transpose(image)
            changed.append(ROTATED)
        pixels = as_eight_bits(pixels).convert("RGB")
        if size := _smaller(pixels.width, pixels.height, config):
            pixels = pixels.resize(size, Image.Resampling.BICUBIC)  # with antialiasing
            changed.append(SHRUNK)
        check_size(pixels.height, pixels.width, MAX_PIXELS)  # readers decode no more
        if kind in KEPT and not changed:
            return ReadyImage(content, KEPT[kind], tuple(changes))
        changes += changed
        if kind not in KEPT:
            kind = "PNG"
            changes.append(REENCODED)
        file = io.BytesIO()
        pixels.info.clear()  # the EXIF orientation of a turned image, for one
        pixels.save(file, kind, quality=JPEG_QUALITY)
        return ReadyImage(file.getvalue(), KEPT[kind], tuple(changes))


def _smaller(width: int, height: int, config: ShardConfig) -> Size | None:
    """Width and height with a short side of `resize_px`; None if it is no longer than that."""
    scale = (config.resize_px or np.inf) / min(width, height)
    return (max(1, round(width * scale)), max(1, round(height * scale))) if scale < 1 else None


def prepare_channels(content: bytes, config: ShardConfig) -> ReadyImage:
    """Decode an image file in its stored depth, and give it as `.npy`; raises as `read_pixels`."""
    assert config.channels is not None
    pixels, changes = read_pixels(content, config.channels, config.channel_axis, config.max_pixels)
    if size := _smaller(pixels.shape[1], pixels.shape[0], config):
        dtype, bicubic = pixels.dtype, Image.Resampling.BICUBIC
        planes = np.moveaxis(pixels, -1, 0).astype(np.float32)
        resized = [np.asarray(Image.fromarray(plane).resize(size, bicubic)) for plane in planes]
        pixels = np.stack(resized, axis=-1)
        if dtype.kind != "f":
            pixels = np.rint(pixels).clip(np.iinfo(dtype).min, np.iinfo(dtype).max)
        pixels = pixels.astype(dtype)
        changes.append(SHRUNK)
    check_size(pixels.shape[0], pixels.shape[1], MAX_PIXELS)  # readers decode no more
    file = io.BytesIO()
    np.save(file, pixels, allow_pickle=False)
    return ReadyImage(file.getvalue(), "npy", tuple(changes), pixels)


def prepare_map(
    content: bytes, label: DenseLabel, image_size: Size, *, resized: bool
) -> tuple[str, int]:
    """Check a map that belongs to an image of (height, width).

    Returns its extension (`npy` or `png`), and its largest class + 1: of depth 1 if any is known,
    of a map that tells nothing 0.

    An `IjepaError`, a short reason, if it does not decode, or is of another size (another aspect,
    if the image was `resized`).
    """
    values = decode_dense(content, label)
    (height, width), (image_height, image_width) = values.shape, image_size
    skew = abs(height * image_width - width * image_height)
    fits = skew <= max(height, width) if resized else values.shape == image_size
    if not fits:
        raise IjepaError(f"{width} x {height} pixels, the image {image_width} x {image_height}")
    classes = int(values.any())
    if label.kind == "classes":
        known = values[values != np.iinfo(label.dtype).max]
        classes = int(known.max()) + 1 if known.size else 0
    return "npy" if content.startswith(NPY) else "png", classes


class PixelSums(Config):
    """Sums over images of one pixel type, from which `PixelStats` are made."""

    dtype: str
    file: str  # the first of the images
    images: int
    means: tuple[float, ...]  # of each channel: sum of the images' mean pixels
    squares: tuple[float, ...]  # sum of their mean squared pixels


def pixel_sums(pixels: Array, file: str) -> PixelSums:
    """What is measured of one image."""
    flat, level = pixels.reshape(-1, pixels.shape[-1]), LEVELS[pixels.dtype.name]
    means = flat.mean(axis=0, dtype=np.float64) / level
    squares = np.einsum("nc,nc->c", flat, flat, dtype=np.float64) / len(flat) / level**2
    return PixelSums(
        dtype=pixels.dtype.name, file=file, images=1, means=tuple(means), squares=tuple(squares)
    )


def merged_sums(parts: Sequence[PixelSums]) -> PixelSums | None:
    """What was measured of all images together; an `IjepaError` if their types differ."""
    if not parts:
        return None
    first = parts[0]
    if other := next((one for one in parts if one.dtype != first.dtype), None):
        raise IjepaError(
            f"{other.file} has pixels of {other.dtype}, {first.file} of {first.dtype}; all images "
            f"of a shard set must have the same type."
        )
    means, squares = (
        tuple(np.sum([getattr(one, name) for one in parts], axis=0).tolist())
        for name in ("means", "squares")
    )
    images = sum(one.images for one in parts)
    return first.model_copy(update={"images": images, "means": means, "squares": squares})


def pixel_stats(found: PixelSums) -> PixelStats:
    """Mean and standard deviation of each channel; 1 for a channel of one value."""
    means, squares = np.array(found.means) / found.images, np.array(found.squares) / found.images
    std = np.sqrt(np.maximum(squares - means**2, 0))
    std[std <= 1e-6 * np.abs(means)] = 1.0
    return PixelStats.model_validate({
        "channels": len(means), "dtype": found.dtype, "mean": tuple(means.tolist()),
        "std": tuple(std.tolist()), "images": found.images,
    })  # fmt: skip
