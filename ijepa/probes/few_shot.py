"""Logistic probes on small parts of train: drawn several times, or named by lists.

Source: facebookresearch/msn `logistic_eval.py`, by the paper's first author.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from ijepa.errors import IjepaError
from ijepa.probes.arrays import Asked, Fit, Ints, Labelled
from ijepa.probes.logistic import (
    LOGISTIC_PROTOCOLS,
    LogisticProtocol,
    centred_unit,
    fit,
    predicted,
    regression,
    unfinished,
)
from ijepa.probes.subsets import draw_subset

# C is fixed, for a handful of images leaves nothing to choose on.
FEW_SHOT_PROTOCOLS = {
    "ijepa": replace(LOGISTIC_PROTOCOLS["msn-5-shot"], view=None),
    "msn": LOGISTIC_PROTOCOLS["msn"],
}


def few_shot(train: Labelled, test: Labelled, asked: Asked) -> list[Fit]:
    """One fit a setting of `config.shots`, each with `config.draws` draws; or one for all lists."""
    protocol, config = FEW_SHOT_PROTOCOLS[asked.config.protocol], asked.config
    if asked.subsets:
        sizes = sorted({len(subset) for subset in asked.subsets})
        name = f"lists of {' or '.join(f'{size:,}' for size in sizes)} images"
        if config.subsets:  # other lists of as many images are other ground
            name += f" (sha256 {', '.join(digest[:8] for digest in config.subsets)})"
        return [_setting(name, train, test, asked.subsets, protocol)]
    return [
        _setting(
            f"{int(shots)} a class" if shots >= 1 else f"{100 * shots:.3g}% of train",
            train,
            test,
            [draw_subset(train.labels, shots, config.seed, draw) for draw in range(config.draws)],
            protocol,
            _too_few(train.labels, shots),
        )
        for shots in config.shots
    ]


def _too_few(labels: Ints, shots: float) -> tuple[str, ...]:
    """Classes that do not have what a setting asks of each."""
    counts = np.unique(labels, return_counts=True)[1]
    if shots >= 1:
        small = int((counts < shots).sum())
        return (f"{small:,} classes have fewer images than {int(shots)}",) if small else ()
    small = int((shots * counts < 0.5).sum())
    return (f"{small:,} classes give one image, more than their part",) if small else ()


def _setting(
    name: str,
    train: Labelled,
    test: Labelled,
    subsets: Sequence[Ints],
    protocol: LogisticProtocol,
    departures: tuple[str, ...] = (),
) -> Fit:
    scored = centred_unit(test.last())
    probe = regression(protocol, protocol.strengths[0], train.labels)
    predictions, stopped = [], 0
    for subset in subsets:
        if len(np.unique(train.labels[subset])) < 2:
            raise IjepaError(f"{name}: there are images of one class only; a probe needs two.")
        fitted = centred_unit(train.last(subset))
        stopped += not fit(probe, fitted, train.labels[subset], None)
        predictions.append(predicted(probe, scored, None))
    choices = {"C": probe.C, "draws": len(subsets)}
    departures += unfinished(stopped, len(subsets), protocol)
    return Fit(name, np.array(predictions), choices, departures=departures)
