"""What a probe computes: fits, kept after each encoder, and their scores."""

import importlib
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from ijepa.config import ProbeConfig
from ijepa.errors import IjepaError
from ijepa.features.leakage import Images, OpenPair
from ijepa.probe import DENSE, ON_TOKENS
from ijepa.probes.arrays import Fit, LabelledRows, ProbeRequest
from ijepa.probes.dense import Dense, constant_guess, dense_summary
from ijepa.probes.protocols import PROBES, View, deviations
from ijepa.probes.scores import summary
from ijepa.results.record import Score, Scores, joined_source, pack_correct, shared_fields
from ijepa.weights import load_state, save_state

SAME = (  # fields of a feature file's header and of a score
    "encoder", "weights_sha256", "which", "layers", "pooling", "image_px", "transform",
    "provenance",
)  # fmt: skip

log = logging.getLogger(__name__)


def fit_and_score(
    opened: Sequence[OpenPair], request: ProbeRequest, facts: dict[str, Any], folder: Path
) -> Scores:
    """Fit a probe on each encoder's features; `facts` are of every score.

    Scores stand setting by setting, the first encoder before the baselines. Unfinished work is kept
    in `folder`, where a rerun finds it.
    """
    config, fits = request.config, _fits(opened, request, folder)
    is_dense = config.name in DENSE
    train, test = opened[0].train, opened[0].test  # baselines saw the same images
    name = config.name if config.protocol == "ijepa" else f"{config.name}-{config.protocol}"
    facts |= shared_fields(config, (train.keys, train.labels), (test.keys, test.labels)) | {
        "probe": config.name,
        "protocol": name.removeprefix("linear-"),  # linear, vissl-clevr-count, logistic-msn
        "description": PROBES[config.name]["description"],
        "selection": PROBES[config.name]["selection"],
        "source": joined_source(train.store.header.source, test.store.header.source),
        "train_split": train.store.header.split,
        "test_split": test.store.header.split,
        "repeats": opened[0].repeats,
    }
    if is_dense:
        classes = train.store.header.dense[config.label].names or ()
        chance = constant_guess(_dense(train, config), _dense(test, config))
        facts |= {"num_classes": len(classes), "chance": chance, "test_classes": ""}
    scores = []
    for setting in zip(*fits, strict=True):
        correct = [fit.predictions == test.labels for fit in setting if not is_dense]
        for number, (fit, pair) in enumerate(zip(setting, opened, strict=True)):
            if is_dense:
                first = setting[0].predictions if number else None
                measured = dense_summary(fit.predictions, first, classes) | {"correct": ()}
            else:
                measured = summary(correct[number], test.labels, correct[0] if number else None)
                measured["correct"] = pack_correct(correct[number], test.keys)
            fitted_on, scored_on = pair.train.store.header, pair.test.store.header
            crop = "squash" if scored_on.transform.startswith("squash") else "center"
            view = View(
                crop, scored_on.crop_fraction, scored_on.interpolation, (scored_on.image_px,)
            )
            of_protocol = deviations(config, view, fitted_on.augment, fitted_on.num_views)
            scores.append(
                Score(
                    **facts,
                    **{name: getattr(scored_on, name) for name in SAME},
                    features_precision=scored_on.precision,
                    train_features=fitted_on.fingerprint,
                    test_features=scored_on.fingerprint,
                    data=scored_on.data_fingerprint,
                    setting=fit.setting,
                    best_on_test=fit.best_on_test,
                    choices=fit.choices,
                    precision=fit.precision,
                    metrics=fit.metrics,
                    deviations=(*pair.deviations, *of_protocol, *fit.deviations),
                    **measured,
                )
            )
    return tuple(scores)


def _fits(opened: Sequence[OpenPair], request: ProbeRequest, folder: Path) -> list[list[Fit]]:
    """The fits of each encoder, one a setting; unfinished work is kept in a folder."""
    config = request.config
    # Imported when chosen: scikit-learn, faiss and torch each take seconds.
    module, _, name = PROBES[config.name]["home"].partition(":")
    fit: Callable[..., list[Fit]] = getattr(importlib.import_module(f"ijepa.probes.{module}"), name)
    task, every = f"probe {config.name} encoders", []
    for number, pair in enumerate(opened):
        request.progress(task, number, len(opened))
        states = KeptStates(folder / f"encoder-{number}.pt")
        if "fits" not in states:
            train = test = _probe_data(pair.train, config)
            # Only retrieval takes one file for both.
            if pair.train.store.header.fingerprint != pair.test.store.header.fingerprint:
                test = _probe_data(pair.test, config)
            fits = fit(train, test, request._replace(states=states))
            states.clear()
            as_tensors = [{"predictions": torch.from_numpy(fit.predictions)} for fit in fits]
            plain = [fit._asdict() | own for fit, own in zip(fits, as_tensors, strict=True)]
            states["fits"] = {"fits": plain}
        kept = states["fits"]["fits"]
        every.append([Fit(**one | {"predictions": one["predictions"].numpy()}) for one in kept])
    request.progress(task, len(opened), len(opened))
    return every


def _probe_data(images: Images, config: ProbeConfig) -> Dense | LabelledRows:
    """What a probe takes: tokens and maps, tokens and labels, or features and labels."""
    if config.name in DENSE:
        return _dense(images, config)
    rows = images.store.tokens if config.name in ON_TOKENS else images.store.values
    return LabelledRows(rows, images.labels, images.views)


def _dense(images: Images, config: ProbeConfig) -> Dense:
    header, label = images.store.header, config.label
    if (header.dense[label].names is None) != (config.name == "depth"):
        raise IjepaError(
            f"{config.name} needs a label of {DENSE[config.name]}; {label!r} is none. The dense "
            f"labels of {images.store.path} are: {', '.join(header.dense)}."
        )
    height, width, _ = header.tokens or (0, 0, 0)
    maps, num_classes = images.store.maps(label), len(header.dense[label].names or ())
    return Dense(images.store.tokens, maps, images.views[:, 0], (height, width), num_classes)


class KeptStates(dict[str, dict[str, Any]]):
    """Unfinished work by name, in one file that is rewritten whenever a state is set.

    A file that cannot be read is an error, never a silent start from the beginning. If it cannot be
    written, a warning says so and the work goes on; a stop then loses more of it.
    """

    def __init__(self, path: Path) -> None:
        """Read what an earlier start left in the file."""
        super().__init__(load_state(path) if path.exists() else {})
        self._path = path

    def __setitem__(self, name: str, state: dict[str, Any]) -> None:
        super().__setitem__(name, state)
        try:
            save_state(self._path, dict(self))
        except OSError as error:
            log.warning(
                "%s cannot be saved (%s); if the probe is stopped, it begins again",
                self._path,
                error.strerror,
            )
