"""Multinomial logistic regression on the last layer, by scikit-learn's L-BFGS."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from sklearn import config_context
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from ijepa.distributed import pick_device
from ijepa.probes.arrays import Asked, Fit, Floats, Ints, Labelled, blocks, hold_out
from ijepa.probes.views import View

Rescale = Callable[[Floats], Floats]


@dataclass(frozen=True)
class LogisticProtocol:
    """How a logistic regression is fitted.

    Attributes:
        strengths: values of C, the inverse of the L2 penalty of the summed loss, ascending; the
            best on a held-out part of train is taken.
        scale: `columns` to mean 0 and variance 1 by the training images; `rows`, each less its
            mean and of length 1; or `none`.
        intercept: is there a bias, unpenalised?
        tolerance: of the gradient, times the number of classes: it shrinks as classes share it.
        iterations: at most.
        search_iterations: at most while C is chosen; weak penalties would take most of the time,
            and are seldom chosen.
        precision: of the sums.
        source: repo:path.
        view: of the images; None takes any.
    """

    strengths: tuple[float, ...]
    scale: str
    intercept: bool
    tolerance: float
    iterations: int
    search_iterations: int
    precision: str
    source: str
    view: View | None = None


# Penalty lambda / (2 n) on the mean loss, as cyanure has it: C = 1 / lambda, whatever n is. Its 300
# epochs reach the optimum; L-BFGS needs over 1,000 iterations to.
MSN = LogisticProtocol(
    strengths=(4000.0,),
    scale="rows",
    intercept=False,
    tolerance=1e-5,
    iterations=5000,
    search_iterations=5000,
    precision="float32",
    source="msn:logistic_eval.py, lambda 2.5e-4, its default; none is given for 1% of ImageNet",
    view=View(interpolation="bilinear", features="the class token before the final norm"),
)

FITTED = "coef_", "intercept_"  # where the next fit starts

LOGISTIC_PROTOCOLS = {
    "ijepa": LogisticProtocol(
        strengths=(0.0001, 0.001, 0.01, 0.1, 1.0, 10.0),
        scale="columns",
        intercept=True,
        tolerance=1e-3,
        iterations=5000,
        search_iterations=200,
        precision="float32",
        source="ours",
    ),
    "msn": MSN,
    "msn-5-shot": replace(
        MSN,
        strengths=(400.0,),
        source="msn:README.md, lambda 2.5e-3, for five images a class",
    ),
    "dinov2": LogisticProtocol(
        strengths=tuple((10.0 ** np.linspace(-6, 5, 45)).tolist()),
        scale="none",
        intercept=True,
        tolerance=1e-12,
        iterations=1000,
        search_iterations=1000,
        precision="float64",
        source="dinov2:dinov2/eval/log_regression.py",
        view=View(crop_fraction=1.0, interpolation="bicubic"),
    ),
}


def logistic(train: Labelled, test: Labelled, asked: Asked) -> list[Fit]:
    """Choose C on a held-out part of train, fit on all of train, predict the test set."""
    named, device = LOGISTIC_PROTOCOLS[asked.config.protocol], _device(asked)
    protocol = replace(named, scale=asked.config.scale or named.scale)
    strength, choices = protocol.strengths[0], {}
    if len(protocol.strengths) > 1:
        scores = _held_out_scores(train, protocol, asked)
        strength = max(scores, key=lambda strength: (scores[strength], -strength))
        choices = {"held_out_accuracy": scores[strength]}
    features = train.last()
    rescale = rescaling(protocol.scale, features)
    probe = regression(protocol, strength, train.labels)
    converged = fit(probe, _precise(rescale(features), protocol), train.labels, device)
    found = predicted(probe, _precise(rescale(test.last()), protocol), device)
    departures = unfinished(0 if converged else 1, 1, protocol)
    if protocol != named:
        departures += (f"scaled by {protocol.scale}, not {named.scale}",)
    chosen = {"C": strength} | choices
    precision = {"float32": "fp32", "float64": "fp64"}[protocol.precision]
    return [Fit("", found[np.newaxis], chosen, departures=departures, precision=precision)]


def rescaling(scale: str, features: Floats) -> Rescale:
    """How to rescale features in place, learned from those of the training images where need be."""
    if scale != "columns":
        return centred_unit if scale == "rows" else np.asarray
    scaler = StandardScaler(copy=False)
    for some in blocks(len(features)):  # at once, the squares would be a copy in float64
        scaler.partial_fit(features[some])
    transform: Rescale = scaler.transform
    return transform


def centred_unit(features: Floats) -> Floats:
    """Each row less its own mean, then of length 1, in place; the other images play no part.

    Args:
        features: (n, dim) float32.
    """
    for some in blocks(len(features)):
        rows = features[some]
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
    """What a score says where some of the fits behind it stopped before they had converged."""
    which = "the fit" if fits == 1 else f"{stopped} of {fits} fits"
    said = f"{which} stopped within {protocol.iterations:,} iterations before it converged"
    return (said,) if stopped else ()


def fit(
    probe: LogisticRegression, features: Floats, labels: Ints, device: torch.device | None
) -> bool:
    """Fit in place.

    Args:
        probe: as of `regression`.
        features: (n, dim).
        labels: (n,) class numbers.
        device: where scikit-learn computes through its array API, to the same optimum; None is
            plain NumPy. SciPy must have been imported with SCIPY_ARRAY_API=1.

    Returns:
        Whether it converged; if not, it stopped at its cap of iterations, or where numbers of its
        precision led no further.
    """
    with (
        warnings.catch_warnings(record=True) as caught,
        config_context(array_api_dispatch=device is not None),
    ):
        warnings.simplefilter("always")
        probe.fit(_on(device, features), _on(device, labels))
    others = [one for one in caught if not issubclass(one.category, ConvergenceWarning)]
    for one in others:
        warnings.warn_explicit(one.message, one.category, one.filename, one.lineno)
    return len(others) == len(caught)


def predicted(probe: LogisticRegression, features: Floats, device: torch.device | None) -> Ints:
    """(n,) class numbers of (n, dim) features, by a probe fitted on the same device."""
    with config_context(array_api_dispatch=device is not None):
        found = probe.predict(_on(device, features))
    classes: Ints = found.cpu().numpy() if device is not None else found
    return classes


def _held_out_scores(
    train: Labelled, protocol: LogisticProtocol, asked: Asked
) -> dict[float, float]:
    """Accuracy on a held-out part by C; each fit starts where that of the one before ended."""
    device, labels = _device(asked), train.labels
    fitted, held = hold_out(labels, asked.config.holdout, asked.config.seed)
    part = train.last(fitted)
    rescale = rescaling(protocol.scale, part)
    part, rest = (_precise(rescale(rows), protocol) for rows in (part, train.last(held)))
    probe = regression(protocol, protocol.strengths[0], labels[fitted])
    scores = _taken_up(probe, protocol, asked)
    asked.progress("search strengths", len(scores), len(protocol.strengths))
    for strength in protocol.strengths[len(scores) :]:
        probe.set_params(C=strength, warm_start=True, max_iter=protocol.search_iterations)
        fit(probe, part, labels[fitted], device)
        scores[strength] = float(np.mean(predicted(probe, rest, device) == labels[held]))
        asked.progress("search strengths", len(scores), len(protocol.strengths))
        fitted_to = {name: torch.as_tensor(getattr(probe, name)).cpu() for name in FITTED}
        asked.keep.save("search", {"accuracies": list(scores.values()), **fitted_to})
    return scores


def _taken_up(
    probe: LogisticRegression, protocol: LogisticProtocol, asked: Asked
) -> dict[float, float]:
    """Bring a regression to where an earlier start left it; the accuracies found until then."""
    state = asked.keep.load("search")
    if state is None:
        return {}
    for name in FITTED:
        setattr(probe, name, _on(_device(asked), state[name].numpy().copy()))
    return dict(zip(protocol.strengths, state["accuracies"], strict=False))  # the first of them


def _precise(features: Floats, protocol: LogisticProtocol) -> Floats:
    return features.astype(protocol.precision, copy=False)


def _on(device: torch.device | None, values: Any) -> Any:  # noqa: ANN401  # arrays of either kind
    return values if device is None else torch.from_numpy(np.ascontiguousarray(values)).to(device)


def _device(asked: Asked) -> torch.device | None:
    """None on a CPU, where NumPy is no slower."""
    device = pick_device(asked.device)
    return None if device.type == "cpu" else device
