"""Fit a probe on frozen features, baselines beside it."""

import importlib
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ijepa.config import RUNTIME, Config, ProbeConfig, Runtime, StrPath
from ijepa.data.shards import listed, read_lines
from ijepa.errors import IjepaError
from ijepa.features.leakage import FeaturePair, Images, OpenPair, open_pair, refuse_other_images
from ijepa.features.store import read_header
from ijepa.files import file_sha256
from ijepa.probes.arrays import Asked, Fit, Labelled
from ijepa.probes.protocols import (
    FEW_SHOT_PROTOCOLS,
    LINEAR_PROTOCOLS,
    LOGISTIC_PROTOCOLS,
    LinearProtocol,
    LogisticProtocol,
)
from ijepa.progress import Progress, silent
from ijepa.records import library_versions
from ijepa.results.record import (
    Result,
    Score,
    image_set,
    joined_source,
    pack_classes,
    pack_correct,
    read_result,
    write_result,
)
from ijepa.stage import StagePlan, exclusive_work, is_fresh

log = logging.getLogger(__name__)

__all__ = ["FeaturePair", "LowLevelOutcome", "ProbeOutcome", "low_level", "probe"]

VERSION = 11

# Imported when chosen: scikit-learn, faiss and torch each take seconds.
PROBES = {
    "logistic": "ijepa.probes.logistic:logistic",
    "linear": "ijepa.probes.linear:linear",
    "knn": "ijepa.probes.knn:knn",
    "few-shot": "ijepa.probes.logistic:few_shot",
}
PROTOCOLS = {
    "logistic": tuple(LOGISTIC_PROTOCOLS),
    "linear": tuple(LINEAR_PROTOCOLS),
    "knn": ("ijepa",),
    "few-shot": tuple(FEW_SHOT_PROTOCOLS),
}
DESCRIPTIONS = {
    "logistic": "multinomial L-BFGS on the last layer",
    "linear": "linear heads on the last layer or the last four",
    "knn": "cosine, votes weighted by exp(similarity / 0.07), last layer",
    "few-shot": "multinomial L-BFGS on small parts of train, last layer, each image centred",
}
SELECTIONS = {
    "logistic": "C on a held-out part of train, then refitted on all of train",
    "linear": "head on a held-out part of train, then refitted on all of train",
    "knn": "k on a held-out part of train, then all of train votes",
    "few-shot": "nothing is chosen",
}
LOW_LEVEL = {"count": "vissl-clevr-count", "dist": "vissl-clevr-dist"}  # paper, table 4


class ProbeOutcome(Config):
    """A finished result and where it stands; setting by setting, the first encoder leads."""

    out: Path
    cached: bool
    scores: Result


class LowLevelOutcome(Config):
    """Results of all low-level tasks."""

    out: Path
    outcomes: tuple[ProbeOutcome, ...]


def probe(
    features: FeaturePair,
    baselines: Sequence[FeaturePair],
    out: StrPath,
    config: ProbeConfig,
    runtime: Runtime = RUNTIME,
    progress: Progress = silent,
    subsets: Sequence[StrPath] = (),
) -> ProbeOutcome:
    """Fit `config.name` on each pair and score it on the same test images.

    Args:
        features: of the encoder that the result is about.
        baselines: of others, such as its random initialisation and `pixels`.
        out: the JSON file to make.
        config: which probe, which label; its `subsets` is filled in from `subsets`.
        runtime: `force` fits again.
        progress: hears of each encoder.
        subsets: lists of training images for `few-shot`, each in place of a draw.

    Raises:
        IjepaError: no such protocol, files that do not belong together, no such label, images in
            train and test, or a list that names others.
    """
    out = Path(out)
    lists = [Path(path) for path in subsets]
    config = config.model_copy(update={"subsets": _digests(lists, config)})
    _check_protocol(config)
    pairs = [FeaturePair(Path(one.train), Path(one.test)) for one in (features, *baselines)]
    inputs = {
        f"{role} {number}": read_header(path).fingerprint
        for number, pair in enumerate(pairs)
        for role, path in zip(("train", "test"), pair, strict=True)
    }
    plan = StagePlan("probe", VERSION, config, inputs, out)
    if runtime.force or not is_fresh(plan):  # what cannot run is refused before the output is held
        opened, chosen = _opened(pairs, config, lists)
    with exclusive_work(plan, runtime) as work:
        if not work.cached:
            asked = Asked(config, runtime.device, progress, tuple(chosen))
            shared = _shared(opened[0], config) | {
                "command": runtime.command,
                "fingerprint": plan.fingerprint,
            }
            fits = _fits(opened, asked, work.folder)
            write_result(work.folder / out.name, _scores(opened, fits, config, shared))
            work.publish_file({"seed": config.seed})
        return ProbeOutcome(out=out, cached=work.cached, scores=read_result(out))


def _opened(
    pairs: Sequence[FeaturePair], config: ProbeConfig, subsets: Sequence[Path]
) -> tuple[list[OpenPair], list[Any]]:
    """The features, whole and fit to be compared, and the rows that lists choose."""
    opened = [open_pair(pair, config.label) for pair in pairs]
    refuse_other_images(opened[0], opened[1:])
    return opened, [listed(subset, opened[0].train.keys) for subset in subsets]


def low_level(
    features: FeaturePair,
    baselines: Sequence[FeaturePair],
    out: StrPath,
    config: ProbeConfig,
    runtime: Runtime = RUNTIME,
    progress: Progress = silent,
) -> LowLevelOutcome:
    """Count and distance on CLEVR, each by the protocol of the paper's evaluation.

    Args:
        features: see `probe`; with the labels `count` and `dist`.
        baselines: see `probe`.
        out: the folder of `count.json` and `dist.json`.
        config: its probe, label and protocol are not read.
        runtime: see `probe`.
        progress: see `probe`.
    """
    out = Path(out)
    outcomes = []
    for label, protocol in LOW_LEVEL.items():
        choices = {"name": "linear", "label": label, "protocol": protocol}
        task = config.model_copy(update=choices)
        outcomes.append(probe(features, baselines, out / f"{label}.json", task, runtime, progress))
    return LowLevelOutcome(out=out, outcomes=tuple(outcomes))


def _check_protocol(config: ProbeConfig) -> None:
    known = PROTOCOLS[config.name]
    if config.protocol not in known:
        raise IjepaError(
            f"{config.name} has no protocol {config.protocol!r}; it has {', '.join(known)}."
        )


def _digests(subsets: Sequence[Path], config: ProbeConfig) -> tuple[str, ...]:
    if subsets and config.name != "few-shot":
        raise IjepaError(f"Lists of training images are for few-shot, not for {config.name}.")
    for subset in subsets:
        read_lines(subset)
    return tuple(file_sha256(subset) for subset in subsets)


def _fits(opened: list[OpenPair], asked: Asked, folder: Path) -> list[list[Fit]]:
    """Of each encoder, what it gives in each setting; unfinished work is kept in a folder."""
    module, _, name = PROBES[asked.config.name].partition(":")
    fit: Callable[..., list[Fit]] = getattr(importlib.import_module(module), name)
    task = f"probe {asked.config.name} encoders"
    fits = []
    for number, pair in enumerate(opened):
        asked.progress(task, number, len(opened))
        kept = KeptStates(folder / f"encoder-{number}.pt")
        if "fits" not in kept:
            own = asked._replace(kept=kept)
            found = _plain(fit(_labelled(pair.train), _labelled(pair.test), own))
            kept.clear()
            kept["fits"] = found
        fits.append(_fits_of(kept["fits"]))
    asked.progress(task, len(opened), len(opened))
    return fits


class KeptStates(dict[str, dict[str, Any]]):
    """Unfinished work by name, in one file that is written anew whenever a state is set.

    A file that cannot be read is an error, never a silent start from the beginning. One that cannot
    be written is a warning: the work goes on, and a stop would cost more of it.
    """

    def __init__(self, path: Path) -> None:
        """Take up what an earlier start left in the file."""
        from ijepa.weights import load_state  # behind the cached answer: it needs torch

        super().__init__(load_state(path) if path.exists() else {})
        self._path = path

    def __setitem__(self, name: str, state: dict[str, Any]) -> None:
        from ijepa.weights import save_state

        super().__setitem__(name, state)
        try:
            save_state(self._path, dict(self))
        except OSError as error:
            log.warning("%s is not kept (%s); a stop would cost it", self._path, error.strerror)


def _plain(fits: list[Fit]) -> dict[str, Any]:
    """As tensors and plain values."""
    import torch

    return {
        "fits": [one._asdict() | {"predictions": torch.from_numpy(one.predictions)} for one in fits]
    }


def _fits_of(plain: dict[str, Any]) -> list[Fit]:
    return [Fit(**one | {"predictions": one["predictions"].numpy()}) for one in plain["fits"]]


def _labelled(images: Images) -> Labelled:
    return Labelled(images.store, images.labels, images.views)


def _scores(
    opened: list[OpenPair], fits: list[list[Fit]], config: ProbeConfig, shared: dict[str, Any]
) -> Result:
    """Setting by setting, the first encoder before the baselines."""
    from ijepa.probes.scores import summary

    labels, keys = opened[0].test.labels, opened[0].test.keys
    return tuple(
        Score(
            **shared,
            **_encoder(pair),
            setting=found.setting,
            best_on_test=found.best_on_test,
            choices=found.choices,
            correct=pack_correct(found.predictions == labels, keys),
            precision=found.precision,
            departures=(
                *_split_departures(pair),
                *_class_departures(pair, config.label),
                *_precision_departures(pair),
                *_view_departures(pair, config),
                *_training_departures(pair, config),
                *found.departures,
            ),
            **summary(
                found.predictions == labels,
                labels,
                setting[0].predictions == labels if number else None,
            )._asdict(),
        )
        for setting in zip(*fits, strict=True)
        for number, (found, pair) in enumerate(zip(setting, opened, strict=True))
    )


def _shared(first: OpenPair, config: ProbeConfig) -> dict[str, Any]:
    """Fields that all scores of a result share; baselines saw the same images as the first."""
    train, test, repeats = first
    return {
        "probe": config.name,
        "protocol": _protocol_name(config),
        "description": DESCRIPTIONS[config.name],
        "selection": SELECTIONS[config.name],
        "config": config.model_dump(mode="json"),
        "label": config.label,
        "seed": config.seed,
        "source": joined_source(train.store.header.source, test.store.header.source),
        "train_split": train.store.header.split,
        "test_split": test.store.header.split,
        "train_images": image_set(train.keys, train.labels),
        "test_images": image_set(test.keys, test.labels),
        "num_classes": len(np.unique(train.labels)),
        "chance": float(np.bincount(test.labels).max() / len(test.labels)),
        "train_rows": len(train.labels),
        "test_rows": len(test.labels),
        "repeats": repeats,
        "test_classes": pack_classes(test.labels, test.keys),
        "libraries": library_versions(),
    }


def _protocol_name(config: ProbeConfig) -> str:
    """Short and stable: `linear`, `vissl-clevr-count`, `logistic-msn`."""
    if config.protocol == "ijepa":
        return config.name
    return config.protocol if config.name == "linear" else f"{config.name}-{config.protocol}"


def _split_departures(pair: OpenPair) -> tuple[str, ...]:
    """Encoders have seen `train`; files given the wrong way round are scored on it."""
    split = pair.test.store.header.split
    return (f"scored on the split {split}",) if split == "train" else ()


def _class_departures(pair: OpenPair, label: str) -> tuple[str, ...]:
    """Test images of classes that train lacks, and images without a class."""
    unknown, found = pair.test.labels[~np.isin(pair.test.labels, pair.train.labels)], []
    if len(unknown):
        names = pair.test.store.header.class_names[label] or []
        classes = np.unique(unknown).tolist()
        said = ", ".join(
            names[number] if number < len(names) else str(number) for number in classes[:3]
        )
        more = f" and {len(classes) - 3:,} more" if len(classes) > 3 else ""
        found.append(f"{len(unknown):,} test images are of classes that train lacks: {said}{more}")
    for name, images in (("train", pair.train), ("test", pair.test)):
        if images.unlabelled:
            found.append(f"{images.unlabelled:,} images of {name} without a label left out")
    return tuple(found)


def _precision_departures(pair: OpenPair) -> tuple[str, ...]:
    """Features to fit on and to score on are computed alike."""
    train, test = (images.store.header.precision for images in (pair.train, pair.test))
    if train == test:
        return ()
    return (f"features computed in {train} to train on, in {test} to test on",)


def _view_departures(pair: OpenPair, config: ProbeConfig) -> tuple[str, ...]:
    """How the stored views and features differ from those that the protocol evaluates."""
    if config.protocol == "ijepa":
        return ()
    wanted, found = _protocol(config).view, pair.test.store.header
    assert wanted is not None  # all published protocols have one
    crop = "squash" if found.transform.startswith("squash") else "center"
    sides = " or ".join(str(px) for px in wanted.image_px)
    kept = (found.crop_fraction or wanted.crop_fraction, wanted.crop_fraction)
    departures = {
        f"images cut by --crop {crop}, not {wanted.crop}": crop != wanted.crop,
        f"images of {found.image_px} pixels, not of {sides}": found.image_px not in wanted.image_px,
        f"images resized by {found.interpolation}, not {wanted.interpolation} interpolation": (
            wanted.interpolation not in (None, found.interpolation)
        ),
        f"a centre crop of {kept[0]} of the resized short side, not of {kept[1]}": (
            crop == wanted.crop and kept[0] != kept[1]
        ),
        f"features are not {wanted.features}": wanted.features is not None,
    }
    return tuple(line for line, applies in departures.items() if applies)


def _training_departures(pair: OpenPair, config: ProbeConfig) -> tuple[str, ...]:
    """How labels and stored training views differ from those that a protocol of heads asks for."""
    if config.name != "linear":
        return ()
    wanted, found = LINEAR_PROTOCOLS[config.protocol], pair.train.store.header
    departures = []
    asked_of = {protocol: label for label, protocol in LOW_LEVEL.items()}.get(config.protocol)
    if asked_of and config.label != asked_of:
        departures.append(f"label {config.label}, not {asked_of}")
    if wanted.augment == "none":
        return tuple(departures)
    if found.augment == wanted.augment:
        departures.append(f"{found.num_views} stored views of each image, not a new one an epoch")
    else:
        seen = found.augment if found.num_views else "the evaluation view alone"
        departures.append(f"trained on {seen}, not on {wanted.augment}")
    return tuple(departures)


def _protocol(config: ProbeConfig) -> LinearProtocol | LogisticProtocol:
    """The published protocol that a configuration names."""
    if config.name == "linear":
        return LINEAR_PROTOCOLS[config.protocol]
    return LOGISTIC_PROTOCOLS[config.protocol]


def _encoder(pair: OpenPair) -> dict[str, Any]:
    """Fields of a score that tell its encoder and features."""
    train, test = pair.train.store.header, pair.test.store.header
    return {
        "encoder": test.encoder,
        "weights_sha256": test.weights_sha256,
        "which": test.which,
        "layers": test.layers,
        "pooling": test.pooling,
        "image_px": test.image_px,
        "transform": test.transform,
        "features_precision": test.precision,
        "train_features": train.fingerprint,
        "test_features": test.fingerprint,
        "data": test.data_fingerprint,
        "provenance": test.provenance,
    }
