"""Multinomial logistic regression on the standardised last layer."""

import warnings

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from ijepa.config import ProbeConfig
from ijepa.probes.arrays import Fit, Floats, Ints, Labelled, hold_out

STRENGTHS = (0.0001, 0.001, 0.01, 0.1, 1.0, 10.0)  # C, the inverse of the L2 penalty
MAX_ITERATIONS = 500
SEARCH_ITERATIONS = 200  # weak penalties would take most of the time, and are seldom chosen
TOLERANCE = 1e-3  # of one class; L-BFGS stops by the gradient, which shrinks as classes share it


def logistic(train: Labelled, test: Labelled, config: ProbeConfig) -> list[Fit]:
    """Choose C on a held-out part of train, fit on all of train, predict the test set."""
    fitted, held = hold_out(train.labels, config.holdout, config.seed)
    scores = _held_out_scores(train.take(fitted), train.take(held))
    best = max(scores, key=lambda strength: (scores[strength], -strength))
    scale = StandardScaler().fit(train.last)
    probe = _regression(best, train.labels)
    _fit(probe, scale.transform(train.last), train.labels)
    choices = {"C": best, "held_out_accuracy": scores[best]}
    return [Fit("", probe.predict(scale.transform(test.last))[np.newaxis], choices)]


def _held_out_scores(fitted: Labelled, held: Labelled) -> dict[float, float]:
    """Accuracy on `held` by C; each fit starts where that of the stronger penalty ended."""
    scale = StandardScaler().fit(fitted.last)
    probe = _regression(STRENGTHS[0], fitted.labels)
    part, rest = scale.transform(fitted.last), scale.transform(held.last)
    scores = {}
    for strength in STRENGTHS:
        probe.set_params(C=strength, warm_start=True, max_iter=SEARCH_ITERATIONS)
        _fit(probe, part, fitted.labels)
        scores[strength] = float(probe.score(rest, held.labels))
    return scores


def _regression(strength: float, labels: Ints) -> LogisticRegression:
    tolerance = TOLERANCE / len(np.unique(labels))
    return LogisticRegression(C=strength, max_iter=MAX_ITERATIONS, tol=tolerance)


def _fit(probe: LogisticRegression, features: Floats, labels: Ints) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # weak penalties need not converge
        probe.fit(features, labels)
