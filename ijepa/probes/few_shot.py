"""Logistic probes on small parts of train, drawn several times."""

import numpy as np

from ijepa.config import ProbeConfig
from ijepa.probes.arrays import Fit, Ints, Labelled
from ijepa.probes.logistic import fit_logistic

STRENGTH = 0.1  # C is fixed: a handful of images leaves nothing to choose on


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


def _setting(train: Labelled, test: Labelled, shots: float, config: ProbeConfig) -> Fit:
    predictions = []
    for draw in range(config.draws):
        part = train.take(draw_subset(train.labels, shots, config.seed, draw))
        probe = fit_logistic(part.last, part.labels, STRENGTH)
        predictions.append(probe.predict(test.last))
    name = f"{int(shots)} a class" if shots >= 1 else f"{shots:.3g} of train"
    return Fit(name, np.array(predictions), {"C": STRENGTH, "draws": config.draws})
