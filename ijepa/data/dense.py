"""Dense labels: a map of classes or of depth beside each image, as files have them."""

import io
from typing import Any, Literal

import numpy as np
from PIL import Image

from ijepa.config import Config, Size
from ijepa.data.decode import BROKEN
from ijepa.errors import IjepaError

NPY = b"\x93NUMPY"

Map = np.ndarray[tuple[int, ...], np.dtype[Any]]


class DenseLabel(Config):
    """What the maps of one dense label hold.

    Attributes:
        kind: a class, or the depth along the optical axis, for each pixel.
        names: of classes 0, 1, ...; None where they have not been counted yet, and for depth.
        first: the value of class 0 in a file; pixels of lower values are ignored.
        ignored: the value of further pixels that are ignored.
        scale: units of depth in one level of an integer file; floats are in units.
        unit: of depth.
    """

    kind: Literal["classes", "depth"] = "classes"
    names: tuple[str, ...] | None = None
    first: int = 0
    ignored: int = 255
    scale: float = 0.001
    unit: str = "m"

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


def decode_dense(content: bytes, label: DenseLabel) -> Map:
    """(height, width) of a PNG or `.npy` file: class numbers or depth, see `DenseLabel.dtype`.

    Depth is 0 where it is not known.

    Raises:
        IjepaError: it is no such file, has several channels, or holds a class that is not named.
    """
    try:
        if content.startswith(NPY):
            values: Map = np.load(io.BytesIO(content), allow_pickle=False)
        else:
            with Image.open(io.BytesIO(content), formats=("PNG",)) as image:
                values = np.asarray(image)
    except BROKEN as error:
        raise IjepaError(f"not a PNG or .npy file: {error}") from error
    if values.ndim != 2 or values.dtype.kind not in "biuf":
        raise IjepaError(f"{values.dtype} of shape {values.shape}, not (height, width) of numbers")
    if label.kind == "depth":
        depth = values.astype(np.float32)
        depth *= 1 if values.dtype.kind == "f" else np.float32(label.scale)
        known: Map = np.where(np.isfinite(depth) & (depth > 0), depth, np.float32(0))
        return known
    if values.dtype.kind == "f":
        raise IjepaError("floats, where classes are integers")
    numbers, largest = values.astype(np.int64) - label.first, np.iinfo(label.dtype).max
    is_ignored = (numbers < 0) | (values == label.ignored)
    highest = int(numbers[~is_ignored].max(initial=0))
    if highest >= (largest if label.names is None else len(label.names)):
        raise IjepaError(
            f"the value {highest + label.first}, but classes end at "
            f"{len(label.names or range(largest)) - 1 + label.first}"
        )
    return np.where(is_ignored, largest, numbers).astype(label.dtype)


def take_in_dense(
    content: bytes, label: DenseLabel, image_size: Size, *, resized: bool
) -> tuple[str, int]:
    """Suffix and number of classes of a map that belongs to an image of (height, width).

    Raises:
        IjepaError: as `decode_dense`, or it is of another size (another aspect, if the image was
            `resized`); the message is a short reason.
    """
    values = decode_dense(content, label)
    (height, width), (image_height, image_width) = values.shape, image_size
    off = abs(height * image_width - width * image_height)
    if off > (max(height, width) if resized else 0) or (
        not resized and (height, width) != image_size
    ):
        raise IjepaError(f"{width} x {height} pixels, the image {image_width} x {image_height}")
    classes = 0
    if label.kind == "classes":
        known = values[values != np.iinfo(label.dtype).max]
        classes = int(known.max()) + 1 if known.size else 0
    return "npy" if content.startswith(NPY) else "png", classes
