"""Images that stand in train and in test: the same file, byte for byte, whatever its name.

Published data sets hold a few, so that few are told with the score; many are a leak, and refused.
"""

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ijepa.errors import IjepaError
from ijepa.progress import Progress, silent

if TYPE_CHECKING:
    from ijepa.data.loader import Images

MOST = 0.05  # of the test images
SHOWN = 3  # of them, in an error

Ints = np.ndarray[tuple[int, ...], np.dtype[Any]]


def image_id(image: bytes) -> int:
    """Number of an image file by its bytes: the first 8 of their sha256, little-endian."""
    return int.from_bytes(hashlib.sha256(image).digest()[:8], "little")


def image_ids(images: Sequence[bytes]) -> Ints:
    """(n,) uint64 numbers of image files."""
    return np.array([image_id(image) for image in images], np.uint64)


class Known(NamedTuple):
    """Images by content and name: (n,) numbers, see `image_id`, and n keys."""

    ids: Ints
    keys: Sequence[str]


def repeated_keys(train: Known, test: Known, test_images: int) -> tuple[str, ...]:
    """Which test images are training images, too.

    Args:
        train: images to fit on.
        test: images to score on.
        test_images: how many there are, with those that were not looked at.

    Raises:
        IjepaError: they are many.
    """
    found = np.flatnonzero(np.isin(test.ids, train.ids)).tolist()
    if len(found) > MOST * test_images:
        same = dict(zip(train.ids.tolist(), train.keys, strict=True))
        pairs = [(test.keys[place], same[int(test.ids[place])]) for place in found[:SHOWN]]
        raise IjepaError(
            f"{len(found):,} of {test_images:,} test images are training images, too, byte for "
            f"byte, such as {', '.join(f'{one} ({other} in train)' for one, other in pairs)}; a "
            f"score must not be of what was fitted on. Leave them out of one split."
        )
    return tuple(test.keys[place] for place in found)


def of_equal_size(train: Ints, test: Ints) -> tuple[Ints, Ints]:
    """Places of images that may be the same, for there is one of as many bytes in the other.

    Args:
        train: (n,) sizes in bytes of training images.
        test: (m,) of test images.
    """
    alike = np.intersect1d(train, test)
    return np.flatnonzero(np.isin(train, alike)), np.flatnonzero(np.isin(test, alike))


def read_ids(images: "Images", numbers: Ints, progress: Progress = silent) -> Ints:
    """(n,) numbers by content of some images of a split; reads each."""
    found = np.empty(len(numbers), np.uint64)
    for place, number in enumerate(numbers.tolist()):
        found[place] = image_id(images.read_image(number))
        progress("compare train and test images", place + 1, len(numbers))
    return found
