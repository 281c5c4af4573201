"""Accuracies with their uncertainty, and whether one encoder beats another."""

from typing import NamedTuple

import numpy as np
from scipy.stats import binomtest, norm

from ijepa.probes.arrays import Bools, Ints

Z95 = float(norm.ppf(0.975))


class Estimate(NamedTuple):
    """A value between 0 and 1 with its 95% confidence interval."""

    value: float
    low: float
    high: float


def top1(correct: Bools) -> Estimate:
    """Accuracy with Wilson's interval.

    Args:
        correct: (n,) whether each test image was classified rightly; n at least 1.
    """
    test = binomtest(int(correct.sum()), len(correct))
    low, high = test.proportion_ci(0.95, method="wilson")
    return Estimate(test.statistic, low, high)


def mean_class_accuracy(correct: Bools, labels: Ints) -> Estimate:
    """Mean over the classes of the test set of their accuracies, with a normal interval.

    Args:
        correct: (n,) whether each test image was classified rightly.
        labels: (n,) true class numbers.
    """
    parts = [correct[labels == label] for label in np.unique(labels)]
    accuracies = np.array([part.mean() for part in parts])
    variances = accuracies * (1 - accuracies) / [len(part) for part in parts]
    value, spread = float(accuracies.mean()), Z95 * float(np.sqrt(variances.sum())) / len(parts)
    return Estimate(value, max(0.0, value - spread), min(1.0, value + spread))


def paired_p_value(one: Bools, other: Bools) -> float:
    """Exact two-sided McNemar test: are both equally often right on the same test images?

    Args:
        one: (n,) whether the one classified each image rightly.
        other: (n,) the same of the other, in the same order.
    """
    only_one, only_other = int((one & ~other).sum()), int((other & ~one).sum())
    if only_one + only_other == 0:
        return 1.0
    return float(binomtest(only_one, only_one + only_other).pvalue)
