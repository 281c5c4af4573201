"""Parts of the training images, drawn class by class."""

import re

import numpy as np

from ijepa.errors import IjepaError
from ijepa.probes.arrays import Ints


def draw_subset(labels: Ints, shots: float, seed: int, draw: int) -> Ints:
    """Numbers of `shots` images a class; below 1, that fraction of each class, at least one.

    Args:
        labels: (n,) class numbers.
        shots: how many, or which fraction.
        seed: with `draw` it says which images.
        draw: number of the draw.
    """
    rng = np.random.default_rng([seed, 1, draw])
    chosen = []
    for label in np.unique(labels):
        images = rng.permutation(np.flatnonzero(labels == label))
        count = int(shots) if shots >= 1 else max(1, round(shots * len(images)))
        chosen.append(images[:count])
    return np.sort(np.concatenate(chosen))


def parse_shots(text: str) -> float:
    """What `draw_subset` takes, of `1%`, `12.5%` or `5-per-class`.

    Raises:
        IjepaError: neither.
    """
    percent = re.fullmatch(r"(\d+(?:\.\d+)?)%", text)
    if percent and 0 < float(percent[1]) < 100:
        return float(percent[1]) / 100
    count = re.fullmatch(r"([1-9]\d*)-per-class", text)
    if count:
        return int(count[1])
    raise IjepaError(f"--subset {text!r} is no file, and not written as 1% or 5-per-class.")
