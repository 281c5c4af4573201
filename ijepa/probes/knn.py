"""Nearest neighbours on the last layer, by cosine: DINO's weighted vote, and retrieval."""

import faiss
import numpy as np
import torch
from torch import Tensor

from ijepa.arrays import Floats, Ints
from ijepa.distributed import pick_device
from ijepa.probes.arrays import Fit, LabelledRows, ProbeRequest, chunks, hold_out
from ijepa.probes.scores import mean_of

NEIGHBOURS = (10, 20, 100, 200)
TEMPERATURE = 0.07
# Caps the held-out set (at least one per class), so choosing k stays linear in the training set.
HELD_OUT_AT_MOST = 5000
VOTES_AT_ONCE = 2**24  # bounds memory
SHOWN = (5, 10)  # the k of precision at k; precision at 1 is top-1


def knn(train: LabelledRows, test: LabelledRows, request: ProbeRequest) -> list[Fit]:
    """Choose k on a held-out part of train, then vote with all of train.

    Source: facebookresearch/dinov2 `dinov2/eval/knn.py`.
    """
    share = min(request.config.holdout, HELD_OUT_AT_MOST / len(train.labels))
    fitted, held = hold_out(train.labels, share, request.config.seed)
    train, count = train.take(np.concatenate([fitted, held])), len(fitted)
    features, labels = unit_length(train.last()), train.labels
    sizes = tuple(k for k in NEIGHBOURS if k <= count) or (count,)
    votes = vote(features[:count], labels[:count], features[count:], sizes)
    scores = {k: float(np.mean(winners == labels[count:])) for k, winners in votes.items()}
    best = max(scores, key=lambda k: (scores[k], -k))
    predictions = vote(features, labels, unit_length(test.last()), (best,))[best]
    return [Fit("", predictions[np.newaxis], {"k": best, "held_out_accuracy": scores[best]})]


def retrieval(train: LabelledRows, test: LabelledRows, request: ProbeRequest) -> list[Fit]:
    """Rank all images of train by cosine for each image of test; those of its class are right.

    The prediction is the class of the first; mean average precision and precision at k are
    `metrics`. Where `test` is `train`, an image is left out of its own ranking.
    """
    device, same = pick_device(request.device), test is train
    if device.type == "mps":  # which has no float64
        device = torch.device("cpu")
    gallery, queries = (
        torch.from_numpy(unit_length(data.last())).to(device) for data in (train, test)
    )
    classes, wanted = (torch.from_numpy(data.labels).to(device) for data in (train, test))
    nearest, measured = [], []
    at_once = max(1, VOTES_AT_ONCE // len(classes))
    for first in range(0, len(wanted), at_once):
        cosine = queries[first : first + at_once] @ gallery.T
        own = torch.arange(len(cosine), device=device)
        if same:
            cosine[own, first + own] = -torch.inf  # the last one, and left out below
        cosine, order = cosine.sort(dim=1, descending=True, stable=True)
        cosine, order = cosine[:, : len(classes) - same], order[:, : len(classes) - same]
        right = classes[order] == wanted[first : first + at_once, None]
        nearest.append(classes[order[:, 0]])
        at_k = [right[:, :k].double().mean(1) for k in SHOWN]
        measured.append(torch.stack([average_precision(cosine, right), *at_k]))
        request.progress("rank images", min(first + at_once, len(wanted)), len(wanted))
    names = ("mAP", *(f"precision at {k}" for k in SHOWN))
    values = torch.cat(measured, dim=1).cpu().numpy()
    metrics = {one: mean_of(row) for one, row in zip(names, values, strict=True)}
    return [Fit("", torch.cat(nearest).cpu().numpy()[np.newaxis], {}, metrics=metrics)]


def average_precision(scores: Tensor, right: Tensor) -> Tensor:
    """(m,) float64 average precision of m rankings; 0 where nothing is right.

    `scores` are (m, n), descending; `right` says which are right. Equal scores share the precision
    at the last of them, as in scikit-learn's `average_precision_score`.
    """
    ends = torch.searchsorted(-scores, -scores, right=True)  # how many score as much or more
    precision = right.cumsum(dim=1).gather(1, ends - 1).double() / ends
    average: Tensor = (precision * right).sum(dim=1) / right.sum(dim=1).clamp(min=1)
    return average


def vote(
    features: Floats, labels: Ints, queries: Floats, sizes: tuple[int, ...]
) -> dict[int, Ints]:
    """Class with the largest sum of exp(cosine / 0.07) over the k nearest, for several k.

    Features (n, dim) and queries (m, dim) are float32 of unit length, labels (n,). Returns (m,)
    class numbers for each k of `sizes`, which are at most n.
    """
    cosine, neighbours = faiss.knn(queries, features, max(sizes), metric=faiss.METRIC_INNER_PRODUCT)
    classes, numbers = np.unique(labels, return_inverse=True)
    weights, voted = np.exp((cosine - 1.0) / TEMPERATURE), numbers[neighbours]
    winners: dict[int, Ints] = {k: np.empty(len(queries), classes.dtype) for k in sorted(sizes)}
    for chunk in chunks(len(queries), max(1, VOTES_AT_ONCE // len(classes))):
        for k, found in winners.items():
            votes = voted[chunk, :k]
            cells = votes + len(classes) * np.arange(len(votes))[:, np.newaxis]
            num_cells = len(votes) * len(classes)
            totals = np.bincount(cells.ravel(), weights[chunk, :k].ravel(), num_cells)
            best = totals.reshape(len(votes), -1).argmax(axis=1)  # the first wins a tie
            found[chunk] = classes[best]
    return winners


def unit_length(features: Floats) -> Floats:
    """Bring each row of (n, dim) float32 to unit length, in place."""
    faiss.normalize_L2(features)
    return features
