"""Fit a probe on frozen features, baselines beside it."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path

from ijepa.arrays import Ints
from ijepa.config import RUNTIME, Config, ProbeConfig, Runtime, StrPath
from ijepa.data.sources.names import listed, read_lines
from ijepa.errors import IjepaError
from ijepa.features.leakage import OpenPair, open_pair, refuse_other_images
from ijepa.features.store import read_header
from ijepa.files import file_sha256
from ijepa.probes.arrays import ProbeRequest
from ijepa.probes.protocols import LOW_LEVEL, PROTOCOLS, DenseProtocol
from ijepa.progress import Progress, automatic
from ijepa.records import read_record
from ijepa.results.record import Scores, read_result, write_result
from ijepa.stage import DryRun, StagePlan, exclusive_work, outlook
from ijepa.text import did_you_mean

VERSION = 14

DENSE = {"segmentation": "classes", "depth": "depth"}  # what the maps of their labels hold
ON_TOKENS = {"attentive", *DENSE}  # probes that see patch tokens

Pair = tuple[StrPath, StrPath]  # feature files: fitted on, and scored on


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
    pairs = [(Path(train), Path(test)) for train, test in (features, *baselines)]
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
        opened, _ = checked()  # what cannot run is refused before the output is held
        if runtime.dry_run and config.name in DENSE:
            state, why = outlook(plan, force=runtime.force)
            raise DryRun(plan, state, f"{why}; {_cost(opened, known[config.protocol])}")
    with exclusive_work(plan, runtime) as work:
        if not work.cached:  # also where a killed --force left its work beside a fresh output
            opened, chosen = checked()
            from ijepa.probe.fitting import fit_and_score

            request = ProbeRequest(config, runtime.device, progress, chosen)
            facts = {"command": runtime.command, "fingerprint": plan.fingerprint}
            scores = fit_and_score(opened, request, facts, work.folder)
            write_result(work.folder / out.name, scores)
            work.publish({"seed": config.seed})
        return ProbeResult(out=out, cached=work.cached, scores=read_result(out))


def _cost(opened: Sequence[OpenPair], protocol: DenseProtocol) -> str:
    """How long heads on patch tokens are trained: to choose one, then on all images."""
    images, trainings = len(opened[0].train.labels), 2 * len(opened)
    epochs = protocol.steps * min(protocol.batch, images) / images
    each = f"{protocol.steps:,} steps, {epochs:,.0f} epochs of {images:,} images"
    return f"{trainings} trainings of {len(protocol.heads)} heads, each {each}"


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
