"""Images that stand in train and in test: the same file, byte for byte, whatever its name.

Published data sets hold a few, so that few are told with the score; many are a leak, and refused.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from ijepa.errors import IjepaError

MOST = 0.05  # of the test images
SHOWN = 3  # of them, in an error

Ints = np.ndarray[tuple[int, ...], np.dtype[Any]]


class Known(NamedTuple):
    """Images by content and name: (n,) numbers of their bytes, and n keys."""

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
