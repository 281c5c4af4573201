"""What a probe is fitted on, and what it gives back."""

from typing import Any, NamedTuple

import numpy as np

Floats = np.ndarray[tuple[int, ...], np.dtype[np.float32]]
Ints = np.ndarray[tuple[int, ...], np.dtype[np.int64]]
Bools = np.ndarray[tuple[int, ...], np.dtype[np.bool_]]


class Labelled(NamedTuple):
    """Features with one label.

    Attributes:
        last: (n, dim) float32, the last layer.
        concat: (n, layers * dim) float32, all stored layers side by side.
        labels: (n,) int64 class numbers.
    """

    last: Floats
    concat: Floats
    labels: Ints

    def take(self, rows: Ints) -> "Labelled":
        """Some of the rows, in that order."""
        return Labelled(self.last[rows], self.concat[rows], self.labels[rows])


class Fit(NamedTuple):
    """One fitted probe, applied to the test set.

    Attributes:
        setting: what sets it apart within one probe, such as `5 a class`; may be empty.
        predictions: (draws, n) int64 class numbers, one row a draw of the training subset.
        choices: what was chosen on the held-out part of train, such as C.
        best_on_test: accuracy of the best head chosen on the test set, as papers report it; None
            where nothing of the kind is customary.
    """

    setting: str
    predictions: Ints
    choices: dict[str, Any]
    best_on_test: float | None = None


def hold_out(labels: Ints, fraction: float, seed: int) -> tuple[Ints, Ints]:
    """Split rows at random into a part to fit on and a part to choose on, class by class.

    Args:
        labels: (n,) class numbers.
        fraction: of each class that is held out, rounded, at least one; a class of one stays in
            the fit.
        seed: of the split.

    Returns:
        Rows to fit on and rows held out, ascending and disjoint.
    """
    rng = np.random.default_rng([seed, 0])
    held = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        rows = rng.permutation(np.flatnonzero(labels == label))
        count = max(1, round(len(rows) * fraction))
        held[rows[: min(count, len(rows) - 1)]] = True
    return np.flatnonzero(~held), np.flatnonzero(held)
