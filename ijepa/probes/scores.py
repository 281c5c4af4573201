"""Accuracies with their uncertainty, and whether one encoder beats another."""

from typing import Any

import numpy as np
from scipy.stats import binomtest, norm

from ijepa.arrays import Bools, Floats, Ints

Z95 = float(norm.ppf(0.975))

Estimate = tuple[float, float, float]  # a value, and the ends of its 95% confidence interval


def summary(correct: Bools, labels: Ints, rival: Bools | None = None) -> dict[str, Any]:
    """Fields of a score: accuracies, and whether a rival on the same test images differs.

    `correct` is (draws, n): whether each test image of the (n,) labels was classified rightly.
    """
    accuracy = np.array([top1(draw) for draw in correct])  # (draws, 3)
    by_class = np.array([mean_class_accuracy(draw, labels) for draw in correct])
    several = len(correct) > 1
    low, high = accuracy[:, 1:].mean(axis=0).tolist()
    class_low, class_high = by_class[:, 1:].mean(axis=0).tolist()
    p_value = None if rival is None or several else paired_p_value(correct[0], rival[0])
    return {
        "top1": float(accuracy[:, 0].mean()),
        "top1_interval": (low, high),
        "mean_class": float(by_class[:, 0].mean()),
        "mean_class_interval": (class_low, class_high),
        "draws_std": float(accuracy[:, 0].std(ddof=1)) if several else None,
        "p_value": p_value,
    }


def mean_of(values: Floats) -> Estimate:
    """Mean of (n,) values in [0, 1], one a test image, with the normal interval; n at least 1."""
    value, images = float(values.mean()), len(values)
    error = Z95 * float(values.std(ddof=1)) / images**0.5 if images > 1 else 1.0
    return value, max(0.0, value - error), min(1.0, value + error)


def top1(correct: Bools) -> Estimate:
    """Accuracy with Wilson's interval, of (n,) answers; n at least 1."""
    test = binomtest(int(correct.sum()), len(correct))
    low, high = test.proportion_ci(0.95, method="wilson")
    return test.statistic, low, high


def mean_class_accuracy(correct: Bools, labels: Ints) -> Estimate:
    """Mean over the classes of the test set of their accuracies, with an interval as Wilson's.

    The variance within a class of n images is estimated without bias, with n - 1, for classes of
    two or three are common; a class of one image counts as drawn from all classes. Where each class
    is all right or all wrong, the variance is that of one other image in the smallest class.
    Wilson's formula then takes as many images as give this variance in one class.
    """
    _, numbered, counts = np.unique(labels, return_inverse=True, return_counts=True)
    accuracies = np.bincount(numbered, correct) / counts
    value = float(accuracies.mean())
    within = accuracies * (1 - accuracies) / np.maximum(counts - 1, 1)
    variances = np.where(counts > 1, within, value * (1 - value))
    total = max(float(variances.sum()), counts.min() ** -2.0)
    images = len(counts) ** 2 * value * (1 - value) / total
    if images == 0:  # all right, or all wrong
        images = len(counts) ** 2 / float((1 / counts).sum())
    middle = (value + Z95**2 / (2 * images)) / (1 + Z95**2 / images)
    spread = Z95 * np.sqrt(value * (1 - value) / images + Z95**2 / (4 * images**2))
    spread = float(spread) / (1 + Z95**2 / images)
    return value, max(0.0, middle - spread), min(1.0, middle + spread)


def paired_p_value(one: Bools, other: Bools) -> float:
    """Exact two-sided McNemar test: are both equally often right on the same (n,) test images?"""
    only_one, only_other = int((one & ~other).sum()), int((other & ~one).sum())
    if only_one + only_other == 0:
        return 1.0
    return float(binomtest(only_one, only_one + only_other).pvalue)
