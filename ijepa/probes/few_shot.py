"""Logistic probes on small parts of train, drawn several times.

Source: facebookresearch/msn `logistic_eval.py`, by the paper's first author.
"""

import warnings

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

from ijepa.config import ProbeConfig
from ijepa.probes.arrays import Fit, Floats, Ints, Labelled

# C is fixed, for a handful of images leaves nothing to choose on: 1 / 2.5e-3, MSN's penalty for
# five images a class.
STRENGTH = 400.0
MAX_ITERATIONS = 300
TOLERANCE = 1e-7  # of the gradient, which is small for rows of length 1 and many classes


def few_shot(train: Labelled, test: Labelled, config: ProbeConfig) -> list[Fit]:
    """One fit a setting of `config.shots`, each with `config.draws` draws."""
    return [_setting(train, test, shots, config) for shots in config.shots]


def draw_subset(labels: Ints, shots: float, seed: int, draw: int) -> Ints:
    """Rows of `shots` images a class; below 1, that fraction of each class, at least one.

    Args:
        labels: (n,) class numbers.
        shots: how many, or which fraction.
        seed: with `draw` it says which images.
        draw: number of the draw.
    """
    rng = np.random.default_rng([seed, 1, draw])
    chosen = []
    for label in np.unique(labels):
        rows = rng.permutation(np.flatnonzero(labels == label))
        count = int(shots) if shots >= 1 else max(1, round(shots * len(rows)))
        chosen.append(rows[:count])
    return np.sort(np.concatenate(chosen))


def centred_unit(features: Floats) -> Floats:
    """Each row less its own mean, then of length 1; the other images play no part.

    Args:
        features: (n, dim) float32.
    """
    centred = features - features.mean(axis=1, keepdims=True)
    unit: Floats = centred / np.maximum(np.linalg.norm(centred, axis=1, keepdims=True), 1e-12)
    return unit


def _setting(train: Labelled, test: Labelled, shots: float, config: ProbeConfig) -> Fit:
    fitted, scored = centred_unit(train.last), centred_unit(test.last)
    probe = LogisticRegression(
        C=STRENGTH, fit_intercept=False, max_iter=MAX_ITERATIONS, tol=TOLERANCE
    )
    predictions = []
    for draw in range(config.draws):
        rows = draw_subset(train.labels, shots, config.seed, draw)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # MSN stops there, too
            probe.fit(fitted[rows], train.labels[rows])
        predictions.append(probe.predict(scored))
    name = f"{int(shots)} a class" if shots >= 1 else f"{100 * shots:.3g}% of train"
    return Fit(name, np.array(predictions), {"C": STRENGTH, "draws": config.draws})
