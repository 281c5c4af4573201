"""Fit a probe on frozen features, baselines beside it."""

import importlib
import logging
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
from ijepa.features.store import open_features, read_header
from ijepa.files import file_sha256
from ijepa.probes.arrays import Fit, LabelledRows, ProbeRequest, TokenRows
from ijepa.probes.protocols import LOW_LEVEL, PROBES, PROTOCOLS, View, deviations
from ijepa.progress import Progress, automatic
from ijepa.records import read_record
from ijepa.results.record import (
    Score,
    Scores,
    joined_source,
    pack_correct,
    read_result,
    shared_fields,
    write_result,
)
from ijepa.stage import DryRun, StagePlan, exclusive_work
from ijepa.text import did_you_mean

if TYPE_CHECKING:
    from ijepa.probes.dense import Dense

log = logging.getLogger(__name__)

__all__ = [
    "PROTOCOLS",
    "FeaturePair",
    "LowLevelResult",
    "ProbeResult",
    "low_level",
    "open_features",
    "probe",
]

VERSION = 13

DENSE = {"segmentation": "classes", "depth": "depth"}  # what the maps of their labels hold
ON_TOKENS = {"attentive", *DENSE}  # probes that see patch tokens
SAME = (  # fields of a feature file's header and of a score
    "encoder", "weights_sha256", "which", "layers", "pooling", "image_px", "transform",
    "provenance",
)  # fmt: skip


Pair = tuple[StrPath, StrPath]  # feature files: fitted on, and scored on; also a `FeaturePair`


class ProbeResult(Config):
    """A finished result; in each setting, the score of the first encoder comes first."""

    out: Path
    cached: bool
    scores: Scores

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

    __str__ = __repr__


class LowLevelResult(Config):
    """Results of all low-level tasks."""

    out: Path
    results: tuple[ProbeResult, ...]


def probe(
    features: Pair,
    baselines: Sequence[Pair],
    out: StrPath,
    config: ProbeConfig,
    runtime: Runtime = RUNTIME,
    progress: Progress = automatic,
    subsets: Sequence[StrPath] = (),
) -> ProbeResult:
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
            request = ProbeRequest(config, runtime.device, progress, chosen)
            fits = _fits(opened, request, work.folder)
            facts = {"command": runtime.command, "fingerprint": plan.fingerprint}
            write_result(work.folder / out.name, _scores(opened, fits, config, facts))
            work.publish({"seed": config.seed})
        return ProbeResult(out=out, cached=work.cached, scores=read_result(out))


def low_level(
    features: Pair,
    baselines: Sequence[Pair],
    out: StrPath,
    config: ProbeConfig,
    runtime: Runtime = RUNTIME,
    progress: Progress = automatic,
) -> LowLevelResult:
    """Count and distance on CLEVR, each by the protocol of the paper's evaluation.

    As `probe` on features with the labels `count` and `dist`, into a folder of `count.json` and
    `dist.json`; probe, label and protocol of `config` are not read. A dry run raises an
    `ExceptionGroup` with the `DryRun` of each.
    """
    results, dry_runs = [], []
    for label, protocol in LOW_LEVEL.items():
        choices = {"name": "linear", "label": label, "protocol": protocol}
        task, path = config.model_copy(update=choices), Path(out) / f"{label}.json"
        try:
            results.append(probe(features, baselines, path, task, runtime, progress))
        except DryRun as dry_run:
            dry_runs.append(dry_run)
    if dry_runs:
        raise ExceptionGroup("dry run of low-level", dry_runs)
    return LowLevelResult(out=Path(out), results=tuple(results))


def _fits(opened: Sequence[OpenPair], request: ProbeRequest, folder: Path) -> list[list[Fit]]:
    """The fits of each encoder, one a setting; unfinished work is kept in a folder."""
    import torch

    config = request.config
    # Imported when chosen: scikit-learn, faiss and torch each take seconds.
    module, _, name = PROBES[config.name].home.partition(":")
    fit: Callable[..., list[Fit]] = getattr(importlib.import_module(f"ijepa.probes.{module}"), name)
    task, every = f"probe {config.name} encoders", []
    for number, pair in enumerate(opened):
        request.progress(task, number, len(opened))
        states = KeptStates(folder / f"encoder-{number}.pt")
        if "fits" not in states:
            train = test = _probe_data(pair.train, config)
            if not is_one_file(pair.train.store, pair.test.store):  # only retrieval takes one file
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


def _probe_data(images: Images, config: ProbeConfig) -> "Dense | LabelledRows":
    """What a probe takes: tokens and maps, tokens and labels, or features and labels."""
    if config.name in DENSE:
        return _dense(images, config)
    rows = TokenRows(images.store.tokens) if config.name in ON_TOKENS else images.store
    return LabelledRows(rows, images.labels, images.views)


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
    """Unfinished work by name, in one file that is rewritten whenever a state is set.

    A file that cannot be read is an error, never a silent start from the beginning. If it cannot be
    written, a warning says so and the work goes on; a stop then loses more of it.
    """

    def __init__(self, path: Path) -> None:
        """Read what an earlier start left in the file."""
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
) -> Scores:
    """Setting by setting, the first encoder before the baselines; `facts` are of every score."""
    from ijepa.probes.scores import summary

    is_dense = config.name in DENSE
    train, test = opened[0].train, opened[0].test  # baselines saw the same images
    name = config.name if config.protocol == "ijepa" else f"{config.name}-{config.protocol}"
    facts |= shared_fields(config, (train.keys, train.labels), (test.keys, test.labels)) | {
        "probe": config.name,
        "protocol": name.removeprefix("linear-"),  # linear, vissl-clevr-count, logistic-msn
        "description": PROBES[config.name].description,
        "selection": PROBES[config.name].selection,
        "source": joined_source(train.store.header.source, test.store.header.source),
        "train_split": train.store.header.split,
        "test_split": test.store.header.split,
        "repeats": opened[0].repeats,
    }
    if is_dense:
        from ijepa.probes.dense import constant_guess, dense_summary

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
