"""Fit a probe on frozen features, baselines beside it."""

import importlib
import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ijepa.config import RUNTIME, Config, ProbeConfig, Runtime
from ijepa.errors import IjepaError
from ijepa.progress import Progress, silent
from ijepa.stores.features import Features, open_features
from ijepa.stores.results import (
    Origin,
    ProbeResult,
    Score,
    Splits,
    image_set,
    pack_correct,
    read_result,
)
from ijepa.stores.stage import StagePlan, exclusive_work, library_versions, write_bytes

if TYPE_CHECKING:
    from ijepa.probes.arrays import Fit, Labelled

VERSION = 2
CONCATENATED = 4  # layers, paper A.2

# Imported when chosen: scikit-learn, faiss and torch each take seconds.
PROBES = {
    "logistic": "ijepa.probes.logistic:logistic",
    "linear": "ijepa.probes.linear:linear",
    "knn": "ijepa.probes.knn:knn",
    "few-shot": "ijepa.probes.few_shot:few_shot",
}
DESCRIPTIONS = {
    "logistic": "multinomial L-BFGS on the standardised last layer",
    "linear": "SGD heads: last or concatenated layers, with or without batch norm",
    "knn": "cosine, votes weighted by exp(similarity / 0.07), last layer",
    "few-shot": "as MSN: multinomial L-BFGS on drawn subsets, last layer, each image centred",
}
SELECTIONS = {
    "logistic": "C on a held-out part of train, then refitted on all of train",
    "linear": "head and learning rate on a held-out part of train",
    "knn": "k on a held-out part of train, then all of train votes",
    "few-shot": "nothing is chosen",
}


class FeaturePair(NamedTuple):
    """Feature files of the same encoder: what a probe is fitted on, and what it is scored on."""

    train: Path
    test: Path


class ProbeOutcome(Config):
    """A finished result and where it stands."""

    out: Path
    cached: bool
    result: ProbeResult


def probe(
    features: FeaturePair,
    baselines: Sequence[FeaturePair],
    out: Path,
    config: ProbeConfig,
    runtime: Runtime = RUNTIME,
    progress: Progress = silent,
) -> ProbeOutcome:
    """Fit `config.name` on each pair and score it on the same test images.

    Args:
        features: of the encoder that the result is about.
        baselines: of others, such as its random initialisation and `pixels`.
        out: the JSON file to make.
        config: which probe, which label.
        runtime: `force` fits again.
        progress: hears of each encoder.

    Raises:
        IjepaError: files that do not belong together, no such label, or images in train and test.
    """
    opened = [_open(pair, config.label) for pair in (features, *baselines)]
    for other in opened[1:]:
        for theirs, ours in zip(other, opened[0], strict=True):
            same_data = theirs.header.data_fingerprint == ours.header.data_fingerprint
            if not same_data or theirs.keys != ours.keys:
                raise IjepaError(
                    f"{theirs.path} holds other images than {ours.path}; baselines are fitted and "
                    f"compared on the same images."
                )
    inputs = {
        f"{role} {number}": store.header.fingerprint
        for number, pair in enumerate(opened)
        for role, store in (("train", pair.train), ("test", pair.test))
    }
    plan = StagePlan("probe", VERSION, config, inputs, out)
    with exclusive_work(plan, force=runtime.force) as work:
        if not work.cached:
            scores = _scores(opened, config, progress)
            result = _result(opened[0], config, scores, plan.fingerprint, runtime.command)
            write_bytes(work.folder / out.name, result.model_dump_json(indent=2).encode())
            work.publish_file({"seed": config.seed})
        return ProbeOutcome(out=out, cached=work.cached, result=read_result(out))


class _Pair(NamedTuple):
    train: Features
    test: Features


def _open(pair: FeaturePair, label: str) -> _Pair:
    """Open both files, and see that they belong together."""
    train, test = open_features(pair.train), open_features(pair.test)
    for what in ("weights_sha256", "which", "layers", "pooling", "image_px", "transform"):
        ours, theirs = getattr(train.header, what), getattr(test.header, what)
        if ours != theirs:
            raise IjepaError(
                f"{pair.train} and {pair.test} were not made alike: {what} is {ours!r} and "
                f"{theirs!r}. Extract both with the same encoder and options."
            )
    for store in (train, test):
        if label not in store.labels:
            there = ", ".join(store.labels) or "none"
            raise IjepaError(f"{store.path} has no label {label!r}; its labels are: {there}.")
        if not store.shape[0]:
            raise IjepaError(f"{store.path} holds no image.")
    names, others = (store.header.class_names[label] for store in (train, test))
    if names != others:
        raise IjepaError(
            f"Classes of {label!r} are numbered otherwise in {train.path} and {test.path}: "
            f"{_first_difference(names or [], others or [])}. Shard both splits together."
        )
    _refuse_unfit(train, label)
    _refuse_leak(train, test)
    return _Pair(train, test)


def _first_difference(names: list[str], others: list[str]) -> str:
    pairs = itertools.zip_longest(names, others, fillvalue="nothing")
    return next(f"{number} is {a} and {b}" for number, (a, b) in enumerate(pairs) if a != b)


def _refuse_unfit(train: Features, label: str) -> None:
    _, counts = np.unique(train.labels[label], return_counts=True)
    if len(counts) < 2 or counts.max() < 2:
        raise IjepaError(
            f"{train.path} has {len(counts)} classes of {label!r} with at most {counts.max()} "
            f"images each; a probe needs two classes, and two images of one to choose with."
        )


def _refuse_leak(train: Features, test: Features) -> None:
    same_data = train.header.data_fingerprint == test.header.data_fingerprint
    shared = set(train.keys) & set(test.keys) if same_data else set()
    if shared:
        raise IjepaError(
            f"{len(shared):,} images of {test.path} are in {train.path}, too, such as "
            f"{min(shared)}; a probe must not be scored on what it was fitted on."
        )


def _scores(opened: list[_Pair], config: ProbeConfig, progress: Progress) -> list[Score]:
    """Setting by setting, the first encoder before the baselines."""
    from ijepa.probes.scores import summary

    module, _, name = PROBES[config.name].partition(":")
    fit: Callable[..., list[Fit]] = getattr(importlib.import_module(module), name)
    labels, keys = opened[0].test.labels[config.label], opened[0].test.keys
    fits: list[list[Fit]] = []
    for number, pair in enumerate(opened):
        progress(f"probe {config.name} encoders", number, len(opened))
        fits.append(
            fit(_labelled(pair.train, config.label), _labelled(pair.test, config.label), config)
        )
    progress(f"probe {config.name} encoders", len(opened), len(opened))
    return [
        Score(
            setting=found.setting,
            origin=_origin(pair),
            best_on_test=found.best_on_test,
            choices=found.choices,
            correct=pack_correct(found.predictions == labels, keys),
            **summary(
                found.predictions == labels,
                labels,
                setting[0].predictions == labels if number else None,
            )._asdict(),
        )
        for setting in zip(*fits, strict=True)
        for number, (found, pair) in enumerate(zip(setting, opened, strict=True))
    ]


def _result(
    first: _Pair, config: ProbeConfig, scores: list[Score], fingerprint: str, command: str
) -> ProbeResult:
    """The scores with all that produced them; baselines saw the same images as the first."""
    train, test = (store.labels[config.label] for store in first)
    return ProbeResult(
        probe=config.name,
        protocol=config.name,
        description=DESCRIPTIONS[config.name],
        selection=SELECTIONS[config.name],
        config=config.model_dump(mode="json"),
        label=config.label,
        seed=config.seed,
        source=first.test.header.source,
        splits=Splits(train=first.train.header.split, test=first.test.header.split),
        train_images=image_set(first.train.keys, train),
        test_images=image_set(first.test.keys, test),
        num_classes=len(np.unique(train)),
        chance=float(np.bincount(test).max() / len(test)),
        train_rows=len(train),
        test_rows=len(test),
        scores=tuple(scores),
        libraries=library_versions(),
        command=command,
        fingerprint=fingerprint,
    )


def _origin(pair: _Pair) -> Origin:
    train, test = pair.train.header, pair.test.header
    return Origin(
        encoder=test.encoder,
        weights_sha256=test.weights_sha256,
        which=test.which,
        layers=test.layers,
        pooling=test.pooling,
        image_px=test.image_px,
        transform=test.transform,
        train=train.fingerprint,
        test=test.fingerprint,
        data=test.data_fingerprint,
        lineage=test.lineage,
    )


def _labelled(store: Features, label: str) -> "Labelled":
    from ijepa.probes.arrays import Labelled

    return Labelled(
        store.last(1), store.last(min(CONCATENATED, store.shape[1])), store.labels[label]
    )
