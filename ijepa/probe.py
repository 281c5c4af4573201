"""Fit a probe on frozen features, baselines beside it."""

import importlib
import logging
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ijepa.arrays import Ints
from ijepa.config import RUNTIME, Config, ProbeConfig, Runtime, StrPath
from ijepa.data.sources.names import listed, read_lines
from ijepa.errors import IjepaError
from ijepa.features.leakage import (
    FeaturePair,
    Images,
    OpenPair,
    is_one_file,
    open_pair,
    refuse_other_images,
)
from ijepa.features.store import read_header
from ijepa.files import file_sha256
from ijepa.probes.arrays import Asked, Fit, Labelled, TokenRows
from ijepa.probes.protocols import LOW_LEVEL, PROBES, PROTOCOLS, View, deviations
from ijepa.progress import Progress, automatic
from ijepa.records import library_versions, read_record
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
from ijepa.stage import DryRun, StagePlan, exclusive_work
from ijepa.text import did_you_mean

if TYPE_CHECKING:
    from ijepa.probes.dense import Dense

log = logging.getLogger(__name__)

__all__ = ["PROTOCOLS", "FeaturePair", "LowLevelOutcome", "ProbeOutcome", "low_level", "probe"]

VERSION = 13

DENSE = {"segmentation": "classes", "depth": "depth"}  # what the maps of their labels hold
ON_TOKENS = {"attentive", *DENSE}  # probes that see patch tokens
SAME = (  # fields of a feature file's header and of a score
    "encoder", "weights_sha256", "which", "layers", "pooling", "image_px", "transform",
    "provenance",
)  # fmt: skip


Pair = tuple[StrPath, StrPath]  # feature files: fitted on, and scored on; also a `FeaturePair`


class ProbeOutcome(Config):
    """A finished result and where it stands; setting by setting, the first encoder leads."""

    out: Path
    cached: bool
    scores: Result

    def __repr__(self) -> str:
        """A line a score, where pydantic would show each test image."""
        lines = [f"{type(self).__name__}('{self.out}', cached={self.cached})"]
        for score in self.scores:
            low, high = score.top1_interval
            named = " ".join(filter(None, (score.protocol, score.setting, score.label)))
            lines.append(
                f"  {named}: {score.headline} {100 * score.top1:.1f} ({100 * low:.1f} to "
                f"{100 * high:.1f})  {score.encoder}"
            )
        return "\n".join(lines)

    def __str__(self) -> str:
        return repr(self)


class LowLevelOutcome(Config):
    """Results of all low-level tasks."""

    out: Path
    outcomes: tuple[ProbeOutcome, ...]


def probe(
    features: Pair,
    baselines: Sequence[Pair],
    out: StrPath,
    config: ProbeConfig,
    runtime: Runtime = RUNTIME,
    progress: Progress = automatic,
    subsets: Sequence[StrPath] = (),
) -> ProbeOutcome:
    """Fit `config.name` on each pair and score it on the same test images.

    Args:
        features: files of the encoder that the result is about, of train and of test images.
        baselines: files of others, such as its random initialisation and `pixels`.
        out: the JSON file to make.
        config: which probe, which label; its `subsets` is filled in from `subsets`.
        runtime: `force` fits again.
        progress: hears of each encoder.
        subsets: lists of training images for `few-shot`, each in place of a draw.

    Raises:
        IjepaError: no such protocol, files that do not belong together, no such label, images in
            train and test, or a list that names others.
    """
    out, known = Path(out), PROTOCOLS[config.name]
    if subsets and config.name != "few-shot":
        raise IjepaError(f"Lists of training images are for few-shot, not for {config.name}.")
    if config.protocol not in known:
        raise IjepaError(
            f"{config.name} has no protocol {config.protocol!r}"
            f"{did_you_mean(config.protocol, known)}; it has {', '.join(known)}."
        )
    lists = [Path(path) for path in subsets]
    for path in lists:
        read_lines(path)
    config = config.model_copy(update={"subsets": tuple(file_sha256(path) for path in lists)})
    pairs = [FeaturePair(Path(train), Path(test)) for train, test in (features, *baselines)]
    inputs = {
        f"{role} {number}": read_header(path).fingerprint
        for number, pair in enumerate(pairs)
        for role, path in zip(("train", "test"), pair, strict=True)
    }
    plan = StagePlan("probe", VERSION, config, inputs, out)

    @cache
    def checked() -> tuple[list[OpenPair], tuple[Ints, ...]]:
        name = config.name
        how = {"tokens": name in ON_TOKENS, "leave_one_out": name == "retrieval"}
        opened = [open_pair(pair, config.label, **how, dense=name in DENSE) for pair in pairs]
        refuse_other_images(opened[0], opened[1:])
        return opened, tuple(listed(path, opened[0].train.keys) for path in lists)

    made = read_record(out)
    if runtime.force or made is None or made.get("fingerprint") != plan.fingerprint:
        checked()  # what cannot run is refused before the output is held
    with exclusive_work(plan, runtime) as work:
        if not work.cached:  # also where a killed --force left its work beside a fresh output
            opened, chosen = checked()
            fits = _fits(opened, Asked(config, runtime.device, progress, chosen), work.folder)
            facts = {"command": runtime.command, "fingerprint": plan.fingerprint}
            write_result(work.folder / out.name, _scores(opened, fits, config, facts))
            work.publish({"seed": config.seed})
        return ProbeOutcome(out=out, cached=work.cached, scores=read_result(out))


def low_level(
    features: Pair,
    baselines: Sequence[Pair],
    out: StrPath,
    config: ProbeConfig,
    runtime: Runtime = RUNTIME,
    progress: Progress = automatic,
) -> LowLevelOutcome:
    """Count and distance on CLEVR, each by the protocol of the paper's evaluation.

    As `probe` on features with the labels `count` and `dist`, into a folder of `count.json` and
    `dist.json`; probe, label and protocol of `config` are not read. A dry run raises an
    `ExceptionGroup` with the `DryRun` of each.
    """
    outcomes, foreseen = [], []
    for label, protocol in LOW_LEVEL.items():
        choices = {"name": "linear", "label": label, "protocol": protocol}
        task, path = config.model_copy(update=choices), Path(out) / f"{label}.json"
        try:
            outcomes.append(probe(features, baselines, path, task, runtime, progress))
        except DryRun as found:
            foreseen.append(found)
    if foreseen:
        raise ExceptionGroup("dry run of low-level", foreseen)
    return LowLevelOutcome(out=Path(out), outcomes=tuple(outcomes))


def _fits(opened: Sequence[OpenPair], asked: Asked, folder: Path) -> list[list[Fit]]:
    """What each encoder gives in each setting; unfinished work is kept in a folder."""
    import torch

    # Imported when chosen: scikit-learn, faiss and torch each take seconds.
    module, _, name = PROBES[asked.config.name].home.partition(":")
    fit: Callable[..., list[Fit]] = getattr(importlib.import_module(f"ijepa.probes.{module}"), name)
    task, every = f"probe {asked.config.name} encoders", []
    for number, pair in enumerate(opened):
        asked.progress(task, number, len(opened))
        kept = KeptStates(folder / f"encoder-{number}.pt")
        if "fits" not in kept:
            train, test = (
                _dense(one, asked.config)
                if asked.config.name in DENSE
                else Labelled(
                    TokenRows(one.store.tokens) if asked.config.name in ON_TOKENS else one.store,
                    one.labels,
                    one.views,
                )
                for one in pair[:2]
            )
            if is_one_file(pair.train.store, pair.test.store):  # only retrieval gets here
                test = train
            found = fit(train, test, asked._replace(kept=kept))
            kept.clear()
            tensors = [{"predictions": torch.from_numpy(one.predictions)} for one in found]
            plain = [one._asdict() | own for one, own in zip(found, tensors, strict=True)]
            kept["fits"] = {"fits": plain}
        every.append(
            [Fit(**f | {"predictions": f["predictions"].numpy()}) for f in kept["fits"]["fits"]]
        )
    asked.progress(task, len(opened), len(opened))
    return every


def _dense(images: Images, config: ProbeConfig) -> "Dense":
    from ijepa.probes.dense import Dense

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
    """Unfinished work by name, in one file that is written anew whenever a state is set.

    A file that cannot be read is an error, never a silent start from the beginning. One that cannot
    be written is a warning: the work goes on, and a stop would cost more of it.
    """

    def __init__(self, path: Path) -> None:
        """Take up what an earlier start left in the file."""
        from ijepa.weights import load_state, save_state  # behind the cached answer: needs torch

        super().__init__(load_state(path) if path.exists() else {})
        self._path, self._save = path, save_state

    def __setitem__(self, name: str, state: dict[str, Any]) -> None:
        super().__setitem__(name, state)
        try:
            self._save(self._path, dict(self))
        except OSError as error:
            log.warning(
                "%s cannot be saved (%s); if the probe is stopped, it begins again",
                self._path,
                error.strerror,
            )


def _scores(
    opened: Sequence[OpenPair],
    fits: Sequence[Sequence[Fit]],
    config: ProbeConfig,
    facts: dict[str, Any],
) -> Result:
    """Setting by setting, the first encoder before the baselines; `facts` are of every score."""
    from ijepa.probes.scores import summary

    is_dense = config.name in DENSE
    train, test = opened[0].train, opened[0].test  # baselines saw the same images
    one, other = train.store.header, test.store.header
    name = config.name if config.protocol == "ijepa" else f"{config.name}-{config.protocol}"
    facts |= {
        "probe": config.name,
        "protocol": name.removeprefix("linear-"),  # linear, vissl-clevr-count, logistic-msn
        "description": PROBES[config.name].description,
        "selection": PROBES[config.name].selection,
        "config": config.model_dump(mode="json"),
        "label": config.label,
        "seed": config.seed,
        "source": joined_source(one.source, other.source),
        "train_split": one.split,
        "test_split": other.split,
        "train_images": image_set(train.keys, train.labels),
        "test_images": image_set(test.keys, test.labels),
        "num_classes": len(np.unique(train.labels)),
        "chance": float(np.bincount(test.labels).max() / len(test.labels)),
        "train_rows": len(train.labels),
        "test_rows": len(test.labels),
        "repeats": opened[0].repeats,
        "test_classes": pack_classes(test.labels, test.keys),
        "libraries": library_versions(),
    }
    if is_dense:
        from ijepa.probes.dense import constant_guess, dense_summary

        classes = one.dense[config.label].names or ()
        chance = constant_guess(_dense(train, config), _dense(test, config))
        facts |= {"num_classes": len(classes), "chance": chance, "test_classes": ""}
    scores = []
    for setting in zip(*fits, strict=True):
        correct = [found.predictions == test.labels for found in setting if not is_dense]
        for number, (found, pair) in enumerate(zip(setting, opened, strict=True)):
            if is_dense:
                first = setting[0].predictions if number else None
                told = dense_summary(found.predictions, first, classes) | {"correct": ()}
            else:
                told = summary(correct[number], test.labels, correct[0] if number else None)
                told["correct"] = pack_correct(correct[number], test.keys)
            one, other = pair.train.store.header, pair.test.store.header
            crop = "squash" if other.transform.startswith("squash") else "center"
            view = View(crop, other.crop_fraction, other.interpolation, (other.image_px,))
            of_protocol = deviations(config, view, one.augment, one.num_views)
            scores.append(
                Score(
                    **facts,
                    **{name: getattr(other, name) for name in SAME},
                    features_precision=other.precision,
                    train_features=one.fingerprint,
                    test_features=other.fingerprint,
                    data=other.data_fingerprint,
                    setting=found.setting,
                    best_on_test=found.best_on_test,
                    choices=found.choices,
                    precision=found.precision,
                    metrics=found.metrics,
                    deviations=(*pair.deviations, *of_protocol, *found.deviations),
                    **told,
                )
            )
    return tuple(scores)
