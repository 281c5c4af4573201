"""What features look like without a probe: spectrum, spread, classes; in one pass."""

from typing import NamedTuple

import numpy as np

from ijepa.probes.arrays import Floats, Ints

POWER_LAW = (5, 100)  # eigenvalues, counted from 1, to which the exponent is fitted
DEAD = 1e-4  # of the largest standard deviation

Doubles = np.ndarray[tuple[int, ...], np.dtype[np.float64]]


class Diagnosis(NamedTuple):
    """Of one layer.

    Attributes:
        rankme: effective number of dimensions (Garrido et al., RankMe, 2023, equation 1).
        alpha_req: exponent of the power law that the eigenvalues of the covariance follow, 1 being
            balanced (Agrawal et al., alpha-ReQ, 2022); fitted to eigenvalues 5 to 100, or to
            those there are.
        feature_std: standard deviation over images, mean over dimensions.
        dead_dims: share of dimensions that hardly vary.
        mean_cosine: cosine between different images, mean over pairs.
        class_separation: 1 less the ratio of mean cosine distances within classes and over all
            (Kornblith et al., 2021, R^2); None without labels.
    """

    rankme: float
    alpha_req: float
    feature_std: float
    dead_dims: float
    mean_cosine: float
    class_separation: float | None


class Moments:
    """Sums over images, from which all of a `Diagnosis` follows."""

    def __init__(self, dim: int, num_classes: int) -> None:
        """Begin with no image; `num_classes` is 0 where there are no labels."""
        self._count = 0
        self._sum, self._products = np.zeros(dim), np.zeros((dim, dim))
        self._unit_sums, self._per_class = np.zeros((num_classes, dim)), np.zeros(num_classes)
        self._unit_sum = np.zeros(dim)

    def add(self, features: Floats, classes: Ints | None) -> None:
        """Some more images.

        Args:
            features: (n, dim).
            classes: (n,) numbers from 0, -1 where not known; None without labels.
        """
        rows = features.astype(np.float64)
        unit = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
        self._count += len(rows)
        self._sum += rows.sum(axis=0)
        self._products += rows.T @ rows
        self._unit_sum += unit.sum(axis=0)
        if classes is not None:
            known = classes >= 0
            np.add.at(self._unit_sums, classes[known], unit[known])
            self._per_class += np.bincount(classes[known], minlength=len(self._per_class))

    def diagnosis(self) -> Diagnosis:
        """Of all images so far; there must be two."""
        count, mean = self._count, self._sum / self._count
        covariance = (self._products - count * np.outer(mean, mean)) / (count - 1)
        std = np.sqrt(np.clip(np.diag(covariance), 0, None))
        return Diagnosis(
            rankme=_effective_rank(_eigenvalues(self._products)),
            alpha_req=_power_law(_eigenvalues(covariance)),
            feature_std=float(std.mean()),
            dead_dims=float(np.mean(std <= DEAD * std.max())),
            mean_cosine=float((self._unit_sum @ self._unit_sum - count) / (count * (count - 1))),
            class_separation=self._class_separation(),
        )

    def _class_separation(self) -> float | None:
        there = self._per_class > 0
        if there.sum() < 2:
            return None
        means = self._unit_sums[there] / self._per_class[there, np.newaxis]
        within = 1 - np.square(means).sum(axis=1).mean()
        over_all = 1 - np.square(means.mean(axis=0)).sum()
        return float(1 - within / over_all)


def _eigenvalues(matrix: Doubles) -> Doubles:
    """Descending, without the negative ones that rounding makes."""
    values: Doubles = np.clip(np.linalg.eigvalsh(matrix)[::-1], 0, None)
    return values


def _effective_rank(squares: Doubles) -> float:
    """Exp of the entropy of singular values, given their squares."""
    singular = np.sqrt(squares)
    share = singular / singular.sum() + 1e-7
    return float(np.exp(-(share * np.log(share)).sum()))


def _power_law(eigenvalues: Doubles) -> float:
    first, last = POWER_LAW
    kept = eigenvalues[eigenvalues > 1e-9 * eigenvalues[0]][:last]
    first = first if len(kept) >= 2 * first else 1
    places = np.arange(first, len(kept) + 1)
    if len(places) < 2:
        return float("nan")
    slope = np.polyfit(np.log(places), np.log(kept[first - 1 :]), 1)[0]
    return float(-slope)
