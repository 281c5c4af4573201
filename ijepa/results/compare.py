"""Two encoders on one test set, image by image."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from scipy.stats import binomtest, norm

from ijepa.arrays import Bools, Ints
from ijepa.config import Config, StrPath
from ijepa.errors import IjepaError
from ijepa.results.record import Score, read_result, unpack_classes, unpack_correct

Z95 = float(norm.ppf(0.975))
ALIKE = (  # what both results must have in common, of their scores or of their settings
    "protocol", "label", "train_images", "test_images", "setting", "deviations", "holdout",
    "subsets",
)  # fmt: skip


class Comparison(Config):
    """What one encoder gets right that another does not, in one setting of a probe."""

    setting: str  # as in the results
    encoders: tuple[str, str]  # names of the two
    top1: tuple[float, float]
    difference: float  # of the first less the second; its 95% interval is of the pairs
    interval: tuple[float, float]
    # Of the means of the classes' accuracies, likewise.
    mean_class_difference: float
    mean_class_interval: tuple[float, float]
    only_first: int  # images that the first alone classifies rightly
    only_second: int
    p_value: float  # exact two-sided McNemar test


class Comparisons(Config):
    """Of two results, setting by setting."""

    protocol: str
    label: str
    test_rows: int
    rows: tuple[Comparison, ...]


def compare(first: StrPath, second: StrPath) -> Comparisons:
    """Compare the first encoders of two results, which must be of one protocol and of one data.

    Raises:
        IjepaError: they are not, depart from the protocol otherwise, or average several draws.
    """
    first, second = Path(first), Path(second)
    one, other = (  # the first encoder of each, setting by setting
        list({score.setting: score for score in reversed(read_result(path))}.values())[::-1]
        for path in (first, second)
    )
    seed = ("seed",) if one[0].probe == "few-shot" else ()  # which draws the training images
    for what in (*ALIKE, *seed):
        ours, theirs = _told(one, what), _told(other, what)
        if ours != theirs:
            raise IjepaError(
                f"{first} and {second} cannot be compared: {what.replace('_', ' ')} is {ours} and "
                f"{theirs}. Probe both encoders alike, on the same images."
            )
    pairs = zip(one, other, strict=True)
    rows = tuple(_compared(a, b) for a, b in pairs if len(a.correct) == len(b.correct) == 1)
    if not rows:
        raise IjepaError(f"{first} or {second} averages draws or is dense; compare other probes.")
    protocol, label, test_rows = one[0].protocol, one[0].label, one[0].test_rows
    return Comparisons(protocol=protocol, label=label, test_rows=test_rows, rows=rows)


def _told(scores: Sequence[Score], what: str) -> str:
    """A field of scores, or of their settings, each value once."""
    values = (getattr(score, what, score.config.get(what)) for score in scores)
    return "; ".join(dict.fromkeys("none" if v in ("", (), []) else str(v) for v in values))


def _compared(first: Score, second: Score) -> Comparison:
    one, other = (unpack_correct(score.correct, first.test_rows)[0] for score in (first, second))
    labels = unpack_classes(first.test_classes, first.test_rows)
    difference, low, high = paired_difference(one, other)
    class_difference, class_low, class_high = paired_difference(one, other, labels)
    gains, losses = int((one & ~other).sum()), int((other & ~one).sum())
    return Comparison(
        setting=first.setting,
        encoders=(first.encoder, second.encoder),
        top1=(first.top1, second.top1),
        difference=difference,
        interval=(low, high),
        mean_class_difference=class_difference,
        mean_class_interval=(class_low, class_high),
        only_first=gains,
        only_second=losses,
        p_value=float(binomtest(gains, gains + losses).pvalue) if gains + losses else 1.0,
    )


def paired_difference(
    one: Bools, other: Bools, labels: Ints | None = None
) -> tuple[float, float, float]:
    """How much more often the one is right on the same test images, with its 95% interval.

    With the images' true classes `labels` (n,) it is the mean of the classes' differences. The
    variance within a class of n images is estimated with n - 1; a class of one image, which has
    none, takes that of all such classes together. One gain and one loss are added to the variance
    (Agresti and Min 2005), without which too few intervals hold the truth where few images differ.

    `one` and `other` are (n,), whether each classified an image rightly.
    """
    gain = one.astype(np.float64) - other
    alike = np.zeros(len(one)) if labels is None else labels
    _, numbered, counts = np.unique(alike, return_inverse=True, return_counts=True)
    means = np.bincount(numbered, gain) / counts
    squares = np.bincount(numbered, (gain - means[numbered]) ** 2)
    variances = squares / np.maximum(counts - 1, 1) / counts
    alone = gain[counts[numbered] == 1]
    variances[counts == 1] = alone.var(ddof=1) if len(alone) > 1 else 1.0
    per_image = (1 / counts).sum() / len(counts) ** 2  # how far one moves the value, on average
    variance = variances.sum() / len(counts) ** 2 + 2 * per_image**2
    value, error = float(means.mean()), Z95 * float(variance) ** 0.5
    return value, max(-1.0, value - error), min(1.0, value + error)
