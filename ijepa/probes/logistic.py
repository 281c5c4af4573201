"""Multinomial logistic regression on the standardised last layer."""

import warnings

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from ijepa.config import ProbeConfig
from ijepa.probes.arrays import Fit, Floats, Ints, Labelled, hold_out

STRENGTHS = (0.001, 0.01, 0.1, 1.0, 10.0)  # C, the inverse of the L2 penalty
MAX_ITERATIONS, TOLERANCE = 500, 1e-3


def logistic(train: Labelled, test: Labelled, config: ProbeConfig) -> list[Fit]:
    """Choose C on a held-out part of train, fit on all of train, predict the test set."""
    fitted, held = hold_out(train.labels, config.holdout, config.seed)
    scores = _held_out_scores(train.take(fitted), train.take(held))
    best = max(scores, key=lambda strength: (scores[strength], -strength))
    scale, probe = StandardScaler().fit(train.last), _regression(best)
    _fit(probe, scale.transform(train.last), train.labels)
    choices = {"C": best, "held_out_accuracy": scores[best]}
    return [Fit("", probe.predict(scale.transform(test.last))[np.newaxis], choices)]


def _held_out_scores(fitted: Labelled, held: Labelled) -> dict[float, float]:
    """Accuracy on `held` by C; each fit starts where that of the stronger penalty ended."""
    scale, probe = StandardScaler().fit(fitted.last), _regression(STRENGTHS[0])
    part, rest = scale.transform(fitted.last), scale.transform(held.last)
    scores = {}
    for strength in STRENGTHS:
        probe.set_params(C=strength, warm_start=True)
        _fit(probe, part, fitted.labels)
        scores[strength] = float(probe.score(rest, held.labels))
    return scores


def _regression(strength: float) -> LogisticRegression:
    return LogisticRegression(C=strength, max_iter=MAX_ITERATIONS, tol=TOLERANCE)


def _fit(probe: LogisticRegression, features: Floats, labels: Ints) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # weak penalties need not converge
        probe.fit(features, labels)
