"""Accuracies with their uncertainty, and whether one encoder beats another."""

from typing import NamedTuple

import numpy as np
from scipy.stats import binomtest, norm

from ijepa.probes.arrays import Bools, Ints

RESAMPLES = 20_000
CLASS_RESAMPLES = 4_000  # of every class
Z95 = float(norm.ppf(0.975))


class Estimate(NamedTuple):
    """A value with its 95% confidence interval."""

    value: float
    low: float
    high: float


class Summary(NamedTuple):
    """What a table says of one encoder in one setting; named as the fields of a stored score.

    Attributes:
        top1: accuracy on the test set, its 95% interval in `top1_interval`; the mean over draws.
        mean_class: mean of the classes' accuracies, likewise.
        draws_std: standard deviation over draws; None for one draw.
        p_value: see `paired_p_value`; None without a rival, and for several draws.
    """

    top1: float
    top1_interval: tuple[float, float]
    mean_class: float
    mean_class_interval: tuple[float, float]
    draws_std: float | None
    p_value: float | None


def summary(correct: Bools, labels: Ints, rival: Bools | None = None) -> Summary:
    """Accuracies of one encoder, and whether a rival on the same test images differs.

    Args:
        correct: (draws, n) whether each test image was classified rightly.
        labels: (n,) true class numbers.
        rival: (draws, n) the same of the encoder that this one is compared with.
    """
    accuracy = [top1(draw) for draw in correct]
    by_class = [mean_class_accuracy(draw, labels) for draw in correct]
    several = len(correct) > 1
    return Summary(
        top1=float(np.mean([estimate.value for estimate in accuracy])),
        top1_interval=_mean_interval(accuracy),
        mean_class=float(np.mean([estimate.value for estimate in by_class])),
        mean_class_interval=_mean_interval(by_class),
        draws_std=float(np.std([e.value for e in accuracy], ddof=1)) if several else None,
        p_value=None if rival is None or several else paired_p_value(correct[0], rival[0]),
    )


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


def _mean_interval(estimates: list[Estimate]) -> tuple[float, float]:
    low, high = np.mean([(estimate.low, estimate.high) for estimate in estimates], axis=0)
    return float(low), float(high)


def paired_difference(one: Bools, other: Bools, seed: int = 0) -> Estimate:
    """How much more often the one is right on the same test images, with a bootstrap interval.

    Images are drawn again with what both made of them. The mean of such a sample depends only on
    how often each of the three outcomes is drawn, so counts are drawn instead of images.

    Args:
        one: (n,) whether the one classified each image rightly.
        other: (n,) the same of the other, in the same order.
        seed: of the resampling.
    """
    gains, losses = float(np.mean(one & ~other)), float(np.mean(other & ~one))
    chances = [gains, losses, max(0.0, 1 - gains - losses)]
    drawn = np.random.default_rng(seed).multinomial(len(one), chances, size=RESAMPLES)
    low, high = np.quantile((drawn[:, 0] - drawn[:, 1]) / len(one), [0.025, 0.975])
    return Estimate(gains - losses, float(low), float(high))


def paired_class_difference(one: Bools, other: Bools, labels: Ints, seed: int = 0) -> Estimate:
    """Difference of the means of the classes' accuracies, with a bootstrap interval.

    As `paired_difference`, but images are drawn again within each class, so that none goes missing.

    Args:
        one: (n,) whether the one classified each image rightly.
        other: (n,) the same of the other, in the same order.
        labels: (n,) true class numbers.
        seed: of the resampling.
    """
    rng, classes = np.random.default_rng(seed), np.unique(labels)
    value, drawn = 0.0, np.zeros(CLASS_RESAMPLES)
    for label in classes:
        here = labels == label
        gains, losses = np.mean((one & ~other)[here]), np.mean((other & ~one)[here])
        value += float(gains - losses)
        if gains or losses:
            chances = [gains, losses, max(0.0, 1 - gains - losses)]
            counts = rng.multinomial(here.sum(), chances, size=CLASS_RESAMPLES)
            drawn += (counts[:, 0] - counts[:, 1]) / here.sum()
    low, high = np.quantile(drawn / len(classes), [0.025, 0.975])
    return Estimate(value / len(classes), float(low), float(high))
