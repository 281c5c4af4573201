"""DINO's weighted nearest neighbours on the last layer, by cosine."""

import faiss
import numpy as np

from ijepa.config import ProbeConfig
from ijepa.probes.arrays import Fit, Floats, Ints, Labelled, hold_out

NEIGHBOURS = (10, 20, 100, 200)
TEMPERATURE = 0.07


def knn(train: Labelled, test: Labelled, config: ProbeConfig) -> list[Fit]:
    """Choose k on a held-out part of train, then vote with all of train.

    Source: facebookresearch/dinov2 `dinov2/eval/knn.py`.
    """
    fitted, held = hold_out(train.labels, config.holdout, config.seed)
    part = train.take(fitted)
    votes = {k: vote(part, train.last[held], k) for k in NEIGHBOURS if k <= len(fitted)}
    votes = votes or {len(fitted): vote(part, train.last[held], len(fitted))}
    scores = {k: np.mean(found == train.labels[held]) for k, found in votes.items()}
    best = max(scores, key=lambda k: (scores[k], -k))
    predictions = vote(train, test.last, best)[np.newaxis]
    return [Fit("", predictions, {"k": best, "held_out_accuracy": float(scores[best])})]


def vote(train: Labelled, queries: Floats, k: int) -> Ints:
    """Class with the largest sum of exp(cosine / 0.07) over the k nearest.

    Args:
        train: what votes.
        queries: (n, dim) float32.
        k: at most the number of training rows.

    Returns:
        (n,) class numbers.
    """
    index = faiss.IndexFlatIP(train.last.shape[1])
    index.add(_unit(train.last))
    cosine, neighbours = index.search(_unit(queries), k)
    weights = np.exp((cosine - 1.0) / TEMPERATURE)
    classes = np.unique(train.labels)
    found = train.labels[neighbours]
    totals = [np.where(found == label, weights, 0).sum(axis=1) for label in classes]
    winners: Ints = classes[np.argmax(totals, axis=0)]
    return winners


def _unit(features: Floats) -> Floats:
    unit: Floats = np.ascontiguousarray(features, dtype=np.float32).copy()
    faiss.normalize_L2(unit)
    return unit
