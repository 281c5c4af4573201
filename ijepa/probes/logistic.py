"""Multinomial logistic regression on the last layer, by scikit-learn's L-BFGS.

Fitted on all of train with a chosen C, or on small parts of it, which are drawn several times or
named by lists. Source of the small parts: facebookresearch/msn `logistic_eval.py`, by the paper's
first author.
"""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from ijepa.arrays import Floats, Ints
from ijepa.errors import IjepaError
from ijepa.probes.arrays import Fit, LabelledRows, ProbeRequest, chunks, draw_subset, hold_out
from ijepa.probes.protocols import FEW_SHOT_PROTOCOLS, LOGISTIC_PROTOCOLS, LogisticProtocol

Rescale = Callable[[Floats], Floats]

FITTED = "coef_", "intercept_"  # the solution, from which the next fit starts


def logistic(train: LabelledRows, test: LabelledRows, request: ProbeRequest) -> list[Fit]:
    """Choose C on a held-out part of train, fit on all of train, predict the test set."""
    named = LOGISTIC_PROTOCOLS[request.config.protocol]
    protocol = replace(named, scale=request.config.scale or named.scale)
    strength, choices = protocol.strengths[0], {}
    if len(protocol.strengths) > 1:
        scores = _held_out_scores(train, protocol, request)
        strength = max(scores, key=lambda strength: (scores[strength], -strength))
        choices = {"held_out_accuracy": scores[strength]}
    features = train.last()
    rescale = rescaling(protocol.scale, features)
    probe = regression(protocol, strength, train.labels)
    converged = fit(probe, _precise(rescale(features), protocol), train.labels)
    predictions: Ints = probe.predict(_precise(rescale(test.last()), protocol))
    deviations = unfinished(not converged, 1, protocol)
    if protocol != named:
        deviations += (f"scaled by {protocol.scale}, not {named.scale}",)
    precision = {"float32": "fp32", "float64": "fp64"}[protocol.precision]
    choices = {"C": strength} | choices
    return [Fit("", predictions[np.newaxis], choices, deviations=deviations, precision=precision)]


def few_shot(train: LabelledRows, test: LabelledRows, request: ProbeRequest) -> list[Fit]:
    """One fit for each of `config.shots`, with `config.draws` draws; or one for all lists."""
    config, labels = request.config, train.labels
    protocol = FEW_SHOT_PROTOCOLS[config.protocol]
    settings: list[tuple[str, Sequence[Ints], tuple[str, ...]]]
    if request.subsets:
        sizes = sorted({len(subset) for subset in request.subsets})
        name = f"lists of {' or '.join(f'{size:,}' for size in sizes)} images"
        if config.subsets:  # other lists of as many images are another setting
            name += f" (sha256 {', '.join(digest[:8] for digest in config.subsets)})"
        settings = [(name, request.subsets, ())]
    else:
        settings, counts = [], np.unique(labels, return_counts=True)[1]
        for shots in config.shots:
            name, lacking = f"{100 * shots:.3g}% of train", shots * counts < 0.5
            lack = "give one image, more than their part"
            if shots >= 1:
                name, lacking = f"{int(shots)} a class", counts < shots
                lack = f"have fewer images than {int(shots)}"
            drawn = [draw_subset(labels, shots, config.seed, draw) for draw in range(config.draws)]
            said = (f"{lacking.sum():,} classes {lack}",) if lacking.any() else ()
            settings.append((name, drawn, said))
    fits, scored = [], centred_unit(test.last())
    for name, subsets, deviations in settings:
        probe, predictions, stopped = regression(protocol, protocol.strengths[0], labels), [], 0
        for subset in subsets:
            if len(np.unique(labels[subset])) < 2:
                raise IjepaError(f"{name}: there are images of one class only; a probe needs two.")
            few = train.take(subset)
            stopped += not fit(probe, centred_unit(few.last()), few.labels)
            predictions.append(probe.predict(scored))
        choices = {"C": probe.C, "draws": len(subsets)}
        deviations += unfinished(stopped, len(subsets), protocol)
        fits.append(Fit(name, np.array(predictions), choices, deviations=deviations))
    return fits


def rescaling(scale: str, features: Floats) -> Rescale:
    """A function that rescales features in place; `columns` is learned from these features."""
    if scale != "columns":
        return centred_unit if scale == "rows" else np.asarray
    scaler = StandardScaler(copy=False)
    for chunk in chunks(len(features)):  # at once, the squares would be a copy in float64
        scaler.partial_fit(features[chunk])
    transform: Rescale = scaler.transform
    return transform


def centred_unit(features: Floats) -> Floats:
    """Each row of (n, dim) float32 less its own mean, then of length 1; in place."""
    for chunk in chunks(len(features)):
        rows = features[chunk]
        rows -= rows.mean(axis=1, keepdims=True)
        rows /= np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    return features


def regression(protocol: LogisticProtocol, strength: float, labels: Ints) -> LogisticRegression:
    """An unfitted regression of the protocol."""
    return LogisticRegression(
        C=strength,
        fit_intercept=protocol.intercept,
        max_iter=protocol.iterations,
        tol=protocol.tolerance / len(np.unique(labels)),
    )


def unfinished(stopped: int, fits: int, protocol: LogisticProtocol) -> tuple[str, ...]:
    """The deviation of fits that stopped before they had converged."""
    if not stopped:
        return ()
    which = "the fit" if fits == 1 else f"{stopped} of {fits} fits"
    return (f"{which} stopped within {protocol.iterations:,} iterations before it converged",)


def fit(probe: LogisticRegression, features: Floats, labels: Ints) -> bool:
    """Fit a probe of `regression` in place, on (n, dim) features and (n,) class numbers.

    Returns:
        Whether it converged; if not, it reached the most iterations, or the limit of its precision.
    """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        probe.fit(features, labels)
    others = [one for one in caught if not issubclass(one.category, ConvergenceWarning)]
    for one in others:
        warnings.warn_explicit(one.message, one.category, one.filename, one.lineno)
    return len(others) == len(caught)


def _held_out_scores(
    train: LabelledRows, protocol: LogisticProtocol, request: ProbeRequest
) -> dict[float, float]:
    """Accuracy on a held-out part by C; each fit starts from the solution of the one before."""
    states = {} if request.states is None else request.states
    parts = hold_out(train.labels, request.config.holdout, request.config.seed)
    fitted, held = (train.take(part) for part in parts)
    part = fitted.last()
    rescale = rescaling(protocol.scale, part)
    part, rest = (_precise(rescale(rows), protocol) for rows in (part, held.last()))
    probe = regression(protocol, protocol.strengths[0], fitted.labels)
    scores: dict[float, float] = {}
    if "search" in states:  # an earlier start has tried the first strengths
        for name in FITTED:
            setattr(probe, name, states["search"][name].numpy().copy())
        scores |= zip(protocol.strengths, states["search"]["accuracies"], strict=False)
    request.progress("search strengths", len(scores), len(protocol.strengths))
    for strength in protocol.strengths[len(scores) :]:
        probe.set_params(C=strength, warm_start=True, max_iter=protocol.search_iterations)
        fit(probe, part, fitted.labels)
        scores[strength] = float(np.mean(probe.predict(rest) == held.labels))
        request.progress("search strengths", len(scores), len(protocol.strengths))
        fitted_to = {name: torch.as_tensor(getattr(probe, name)) for name in FITTED}
        states["search"] = {"accuracies": list(scores.values()), **fitted_to}
    return scores


def _precise(features: Floats, protocol: LogisticProtocol) -> Floats:
    return features.astype(protocol.precision, copy=False)
