"""Images that stand in train and in test under two names: the same file, byte for byte.

Published data sets hold a few, so that few are counted and told; many are a leak, and refused.
"""

import hashlib
from typing import Any

import numpy as np

from ijepa.errors import IjepaError
from ijepa.progress import Progress, silent
from ijepa.stores.shards import SplitReader

MOST = 0.05  # of the test images

Ints = np.ndarray[tuple[int, ...], np.dtype[Any]]


def image_id(image: bytes) -> int:
    """Number of an image file by its bytes: the first 8 of their sha256, little-endian."""
    return int.from_bytes(hashlib.sha256(image).digest()[:8], "little")


def count_repeats(train: Ints, test: Ints) -> int:
    """How many test images are training images, too.

    Args:
        train: (n,) numbers of training images, see `image_id`.
        test: (m,) of test images.
    """
    return int(np.isin(test, train).sum())


def refuse_many(repeats: int, test_images: int) -> None:
    """Is this more than a published data set holds by mistake?

    Raises:
        IjepaError: it is.
    """
    if repeats > MOST * test_images:
        raise IjepaError(
            f"{repeats:,} of {test_images:,} test images are training images, too, byte for byte "
            f"under another name; a probe must not be scored on what it was fitted on. Leave them "
            f"out of one split (`ijepa shard --subset`)."
        )


def repeats_in_shards(
    train: SplitReader, chosen: Ints, test: SplitReader, progress: Progress = silent
) -> int:
    """How many images of `test` are among the chosen ones of `train`.

    Reads no more than the images whose size is that of an image of the other split.
    """
    every = np.arange(len(test))
    alike = np.intersect1d(train.image_bytes[chosen], test.image_bytes)
    readers = ((train, chosen), (test, every))
    todo = [(reader, some[np.isin(reader.image_bytes[some], alike)]) for reader, some in readers]
    total, ids = sum(len(numbers) for _, numbers in todo), []
    for reader, numbers in todo:
        for number in numbers.tolist():
            ids.append(image_id(reader.read_image(number)))
            progress("compare train and test images", len(ids), total)
    cut = len(todo[0][1])
    return count_repeats(np.array(ids[:cut], np.uint64), np.array(ids[cut:], np.uint64))
