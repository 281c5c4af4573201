"""What a probe is fitted on, and what it gives back."""

import re
from collections.abc import Iterator, Mapping, MutableMapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ijepa.arrays import Array, Floats, Ints
from ijepa.config import ProbeConfig
from ijepa.errors import IjepaError
from ijepa.progress import Progress, silent

if TYPE_CHECKING:
    from torch import Tensor

States = MutableMapping[str, dict[str, Any]]  # unfinished work by name: tensors, plain values

CHOOSE, TRAIN = "choose among heads", "train heads"  # names of the states of heads

ROWS_AT_ONCE = 4096
SAVE_SECONDS = 120.0  # between two saved states of a training


def chunks(rows: int, at_once: int = ROWS_AT_ONCE) -> Iterator[slice]:
    """Slices of consecutive rows, for code that copies one chunk at a time."""
    return (slice(first, first + at_once) for first in range(0, rows, at_once))


class LabelledRows(NamedTuple):
    """Labels of images, and the rows of their features."""

    # (rows, layers, dim) of all views of all images, mapped where they come from a file; for probes
    # that read patch tokens (rows, patches, dim). A tensor where a device holds them.
    features: "Array | Tensor"
    labels: Ints  # (n,) class numbers
    views: Ints  # (n, 1 + K) rows: of each image's evaluation view, then of its augmented ones

    def take(self, images: Ints) -> "LabelledRows":
        """Some of the images, in that order."""
        return self._replace(labels=self.labels[images], views=self.views[images])

    def last(self) -> Floats:
        """(n, dim) float32: the last layer of the evaluation views."""
        rows = self.views[:, 0]
        vectors: Floats = np.empty((len(rows), self.features.shape[2]), dtype=np.float32)
        for chunk in chunks(len(rows)):
            vectors[chunk] = self.features[rows[chunk], -1]
        return vectors


class ProbeRequest(NamedTuple):
    """Settings of a probe, and what it needs beside the features."""

    config: ProbeConfig
    device: str = "cpu"  # on which torch computes, where a probe uses it
    progress: Progress = silent
    subsets: tuple[Ints, ...] = ()  # (n,) image numbers of each list of training images given
    states: States | None = None  # left by an earlier start; where to leave states for the next


class Fit(NamedTuple):
    """One fitted probe, applied to the test set."""

    setting: str  # tells the fits of one probe apart, such as `5 a class`; may be empty
    # (draws, n) class numbers, a row for each training subset; of dense probes (n, m) sums.
    predictions: Array
    choices: dict[str, Any]  # made on the held-out part of train, such as C
    best_on_test: float | None = None  # accuracy of the head that is best there, as papers report
    deviations: tuple[str, ...] = ()  # from the protocol that it is named by
    precision: str = "fp32"  # of matrix products: `fp32`, `fp64` or `bf16`
    metrics: Mapping[str, tuple[float, float, float]] = {}  # beside accuracy, see `Score.metrics`


def hold_out(labels: Ints, fraction: float, seed: int) -> tuple[Ints, Ints]:
    """Split images at random into (images to fit on, images to choose on), both ascending.

    A fraction of each class is held out, rounded, at least one image; a class of one image is
    fitted on. `labels` are (n,) class numbers.
    """
    rng = np.random.default_rng([seed, 0])
    held = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        images = rng.permutation(np.flatnonzero(labels == label))
        count = max(1, round(len(images) * fraction))
        held[images[: min(count, len(images) - 1)]] = True
    return np.flatnonzero(~held), np.flatnonzero(held)


def smaller_batch(images: int, batch: int) -> tuple[str, ...]:
    """The deviation of a training set that does not fill one batch of its protocol."""
    return (f"batches of all {images:,} images, not of {batch:,}",) if images < batch else ()


def draw_subset(labels: Ints, shots: float, seed: int, draw: int) -> Ints:
    """Draw `shots` images a class; below 1, that fraction of each class, at least one image."""
    rng = np.random.default_rng([seed, 1, draw])
    chosen = []
    for label in np.unique(labels):
        images = rng.permutation(np.flatnonzero(labels == label))
        count = int(shots) if shots >= 1 else max(1, round(shots * len(images)))
        chosen.append(images[:count])
    return np.sort(np.concatenate(chosen))


def parse_shots(text: str) -> float:
    """The `shots` of `draw_subset` from text such as `12.5%` or `5-per-class`; or an error."""
    percent = re.fullmatch(r"(\d+(?:\.\d+)?)%", text)
    if percent and 0 < float(percent[1]) < 100:
        return float(percent[1]) / 100
    count = re.fullmatch(r"([1-9]\d*)-per-class", text)
    if count:
        return int(count[1])
    raise IjepaError(f"--subset {text!r} is no file, and not written as 1% or 5-per-class.")
