"""Which C of scikit-learn is MSN's lambda? Fits both libraries to the same rows and compares.

    pip install cyanure && python benchmarks/msn_penalty.py

facebookresearch/msn `logistic_eval.py` gives cyanure lambda / n.
"""

import numpy as np
from cyanure.estimators import Classifier
from sklearn.linear_model import LogisticRegression
from timing import emit

from ijepa.probes.logistic import centred_unit

Floats = np.ndarray[tuple[int, ...], np.dtype[np.float64]]

ROWS, DIM, CLASSES, PENALTY = 500, 16, 4, 2.5e-3


def main() -> None:
    """Print, for several C, how far the two solutions are apart."""
    rng = np.random.default_rng(0)
    labels = rng.integers(CLASSES, size=ROWS)
    centres = rng.standard_normal((CLASSES, DIM))
    features = centred_unit(centres[labels] + rng.standard_normal((ROWS, DIM)))
    theirs = Classifier(
        loss="multiclass-logistic", penalty="l2", lambda_1=PENALTY / ROWS, fit_intercept=False,
        tol=1e-8, max_iter=3000, verbose=False,
    ).fit(features, labels)  # fmt: skip
    expected = _centred(theirs.coef_ if theirs.coef_.shape[0] == CLASSES else theirs.coef_.T)
    for name, strength in (("1 / lambda", 1 / PENALTY), ("1 / 2 lambda", 0.5 / PENALTY)):
        ours = LogisticRegression(C=strength, fit_intercept=False, tol=1e-10, max_iter=5000)
        found = _centred(ours.fit(features, labels).coef_)
        apart = float(np.abs(found - expected).max() / np.abs(expected).max())
        emit("msn_penalty", C=name, relative_difference=apart)


def _centred(weights: Floats) -> Floats:
    """Classes' weights are determined but for a common shift."""
    return weights - weights.mean(axis=0)


if __name__ == "__main__":
    main()
