"""Multinomial logistic regression on the standardised last layer."""

import warnings

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from ijepa.config import ProbeConfig
from ijepa.probes.arrays import Fit, Floats, Ints, Labelled, hold_out

STRENGTHS = (0.001, 0.01, 0.1, 1.0, 10.0)  # C, the inverse of the L2 penalty
MAX_ITERATIONS = 500


def logistic(train: Labelled, test: Labelled, config: ProbeConfig) -> list[Fit]:
    """Choose C on a held-out part of train, fit on all of train, predict the test set."""
    fitted, held = hold_out(train.labels, config.holdout, config.seed)
    scores = {
        strength: np.mean(
            fit_logistic(train.last[fitted], train.labels[fitted], strength).predict(
                train.last[held]
            )
            == train.labels[held]
        )
        for strength in STRENGTHS
    }
    best = max(scores, key=lambda strength: (scores[strength], -strength))
    probe = fit_logistic(train.last, train.labels, best)
    choices = {"C": best, "held_out_accuracy": float(scores[best])}
    return [Fit("", probe.predict(test.last)[np.newaxis], choices)]


def fit_logistic(features: Floats, labels: Ints, strength: float) -> Pipeline:
    """scikit-learn's L-BFGS on features standardised by themselves.

    Args:
        features: (n, dim) float32.
        labels: (n,) class numbers.
        strength: C.
    """
    probe = make_pipeline(
        StandardScaler(), LogisticRegression(C=strength, max_iter=MAX_ITERATIONS, tol=1e-3)
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # weak penalties need not converge
        return probe.fit(features, labels)
