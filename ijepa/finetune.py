"""Train a whole encoder and a classifier on labelled images, few or all."""

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ijepa.config import RUNTIME, Config, DataConfig, FinetuneConfig, Runtime, StrPath
from ijepa.data.shards import ShardSet, listed, of_equal_size, open_shards, read_ids
from ijepa.encoders.identity import encoder_fingerprint
from ijepa.errors import IjepaError
from ijepa.features.leakage import Known, repeated_keys
from ijepa.progress import Progress, silent
from ijepa.recipes import dump_yaml
from ijepa.results.record import (
    RESULT,
    Origin,
    ProbeResult,
    Score,
    Splits,
    image_set,
    pack_classes,
    pack_correct,
    read_result,
    write_result,
)
from ijepa.stage import (
    StagePlan,
    Work,
    exclusive_work,
    file_sha256,
    write_bytes,
)
from ijepa.train.finetune_protocols import changed_settings
from ijepa.versions import library_versions
from ijepa.world import is_one_of_many

if TYPE_CHECKING:
    from ijepa.encoders.trainable import Trainable
    from ijepa.probes.arrays import Ints
    from ijepa.train.finetuning import Labelled, Parts
    from ijepa.world import World

VERSION = 6


class FinetuneOutcome(Config):
    """A finished fine-tuning and its score."""

    out: Path
    cached: bool
    result: ProbeResult


class FinetunePlan(Config):
    """What would run."""

    protocol: str
    train_images: int
    held_out_images: int
    test_images: int
    num_classes: int
    batch_size: int
    steps: int
    parameters: int


def finetune(
    shards: StrPath,
    out: StrPath,
    config: FinetuneConfig,
    runtime: Runtime = RUNTIME,
    progress: Progress = silent,
    subset: StrPath | None = None,
) -> FinetuneOutcome:
    """Train on `config.split`, or a part of it, and score the last state on `config.test_split`.

    The folder gets `config.yaml`, `metrics.jsonl`, `tensorboard/`, `checkpoints/last.pt` and
    `result.json`, which `ijepa report` shows beside probes. Nothing is chosen, on the test split or
    on the images that `config.holdout` keeps from training: loss and accuracy on these are recorded
    after every epoch, the last ones in the result.

    Args:
        shards: of `ijepa shard`.
        out: folder to make.
        config: what to train, and how; `subset` is filled in from `subset`.
        runtime: what leaves the result as it is.
        progress: told of images done.
        subset: a list of training images, one key or file name a line.

    Raises:
        IjepaError: the encoder does not load, no such split or label, a list that names others.
    """
    shards, out = Path(shards), Path(out)
    subset = Path(subset) if subset is not None else None
    if subset:
        config = config.model_copy(update={"subset": f"list {file_sha256(subset)}"})
    data = open_shards(shards)
    config = _with_named_split(config, data)
    inputs = {"data": data.fingerprint, "encoder": encoder_fingerprint(config)}
    plan = StagePlan(
        "finetune", VERSION, config, inputs, out, precious=not runtime.replace, is_folder=True
    )
    job = _Job(plan, config, data, runtime, progress, subset)
    if is_one_of_many():
        return _finetune_together(job)
    with exclusive_work(plan, force=runtime.force) as work:
        if not work.cached:
            from ijepa.world import World  # here, so that a cached answer is quick

            _publish(job, work, *_train(job, work, World()))
        return _outcome(out, work.cached)


def plan_finetune(
    shards: StrPath,
    config: FinetuneConfig,
    runtime: Runtime = RUNTIME,
    subset: StrPath | None = None,
) -> FinetunePlan:
    """Say what `finetune` would do; raises as it would, but for images that are in both splits."""
    shards = Path(shards)
    subset = Path(subset) if subset is not None else None
    data = open_shards(shards)
    config = _with_named_split(config, data)
    plan = StagePlan("finetune", VERSION, config, {}, Path("unused"), is_folder=True)
    parts = _images(_Job(plan, config, data, runtime, silent, subset))
    images = len(parts.train.chosen)
    batch = min(config.batch_size, images)
    vit = _encoder(config)
    return FinetunePlan(
        protocol=config.protocol,
        train_images=images,
        held_out_images=len(parts.held.chosen),
        test_images=len(parts.test.chosen),
        num_classes=_num_classes(parts),
        batch_size=batch,
        steps=config.epochs * (images // batch),
        parameters=sum(parameter.numel() for parameter in vit.encoder.parameters()),
    )


def _with_named_split(config: FinetuneConfig, data: ShardSet) -> FinetuneConfig:
    name = data.named_split(config.test_split, config.split)
    return config.model_copy(update={"test_split": name})


class _Job(NamedTuple):
    """What one call is about."""

    plan: StagePlan
    config: FinetuneConfig
    data: ShardSet
    runtime: Runtime
    progress: Progress
    subset: Path | None


class _Trained(NamedTuple):
    """What there is to say of a fine-tuned encoder; the same on all ranks."""

    vit: "Trainable"
    data: DataConfig
    parts: "Parts"
    repeats: tuple[str, ...]
    held_out: dict[str, float]
    predictions: "np.ndarray[tuple[int, ...], np.dtype[np.int64]]"
    precision: str


def _finetune_together(job: _Job) -> FinetuneOutcome:
    """The same with other processes: rank 0 holds the output, all train, rank 0 publishes."""
    from ijepa.distributed import joined, lead, pick_device, wait_for_all

    with joined(pick_device(job.runtime.device)) as world, contextlib.ExitStack() as held:
        force = job.runtime.force
        work = lead(world, lambda: held.enter_context(exclusive_work(job.plan, force=force)))
        if not work.cached:
            trained, device = _train(job, work, world)
            lead(world, lambda: _publish(job, work, trained, device))
        wait_for_all(world)
        return _outcome(job.plan.out, work.cached)


def _train(job: _Job, work: Work, world: "World") -> tuple[_Trained, str]:
    """All steps that are left, then the test images; returns what computed, too."""
    import torch

    from ijepa.encoders.frozen import CLASS_TOKEN
    from ijepa.train.classifier import Classifier
    from ijepa.train.finetuning import FinetuneRun

    config = job.config
    parts = _images(job)
    repeats = _repeats(job, parts, world)
    vit = _encoder(config)
    data = _data(job, vit.data, len(parts.train.chosen), world)
    generator = torch.Generator().manual_seed(config.seed)
    model = Classifier(
        vit.encoder,
        _num_classes(parts),
        config.drop_path,
        generator,
        class_token=vit.pooling == CLASS_TOKEN,
    )
    run = FinetuneRun(work.folder, model, parts, config, data, job.runtime, world)
    run.train(job.progress if world.leads else silent)
    found = run.predictions(job.progress if world.leads else silent)
    trained = _Trained(vit, data, parts, repeats, run.held_out, found, run.precision)
    return trained, run.device_name


def _encoder(config: FinetuneConfig) -> "Trainable":
    from ijepa.encoders.trainable import load_trainable

    return load_trainable(
        config.encoder, which=config.which, image_px=config.image_px, seed=config.seed
    )


def _data(job: _Job, own: DataConfig, images: int, world: "World") -> DataConfig:
    """How images are cut: the encoder's own size and normalisation, the protocol's crops."""
    batch = min(job.config.batch_size, images)
    if batch % world.size:
        raise IjepaError(f"Batches of {batch} cannot be shared evenly by {world.size} processes.")
    if batch < 2:
        raise IjepaError(f"There are {images} training images; fine-tuning needs two.")
    if (job.config.mixup or job.config.cutmix) and (batch // world.size) % 2:
        raise IjepaError(
            f"Mixup pairs images, and {batch // world.size} are odd; change batch_size."
        )
    choices = {"batch_size": batch, "crop_scale": job.config.crop_scale, "flip": True}
    return own.model_copy(update=choices)


def _images(job: _Job) -> "Parts":
    """Images that take part, their classes counted from 0."""
    from ijepa.train.finetuning import Labelled, Parts

    config = job.config
    readers = [job.data.split(split) for split in (config.split, config.test_split)]
    facts = [(reader.keys(), reader.labels(config.label)) for reader in readers]
    chosen = _chosen(job, *facts[0])
    chosen = chosen[facts[0][1][chosen] >= 0]  # -1 is no class, here and below
    every = np.flatnonzero(facts[1][1] >= 0)
    if not (len(chosen) and len(every)):
        raise IjepaError(f"No image to train or none to test has a known {config.label!r}.")
    classes, numbers = np.unique(facts[0][1][chosen], return_inverse=True)
    unknown = np.setdiff1d(facts[1][1][every], classes)
    if len(unknown):
        names, first = readers[1].label_names[config.label], int(unknown[0])
        raise IjepaError(
            f"{len(unknown):,} classes of {config.test_split} are missing from the training "
            f"images, such as {names[first]}; take more of them."
        )
    tested = np.searchsorted(classes, facts[1][1][every])
    test = Labelled(readers[1], every, tested, [facts[1][0][number] for number in every.tolist()])
    trained, held = _held_out(numbers, config)
    train, watched = (
        Labelled(
            readers[0],
            chosen[some],
            numbers[some].astype(np.int64),
            [facts[0][0][number] for number in chosen[some].tolist()],
        )
        for some in (trained, held)
    )
    return Parts(train, watched, test)


def _repeats(job: _Job, parts: "Parts", world: "World") -> tuple[str, ...]:
    """Keys of test images that are training images, too; many are refused."""
    from ijepa.distributed import lead

    train, test = (job.data.split(split) for split in (job.config.split, job.config.test_split))
    places, others = of_equal_size(
        train.image_bytes[parts.train.chosen], test.image_bytes[parts.test.chosen]
    )
    progress = job.progress if world.leads else silent
    fitted = _known(parts.train, places, world, progress)
    scored = _known(parts.test, others, world, progress)
    return lead(world, lambda: repeated_keys(fitted, scored, len(parts.test.chosen)))


def _known(part: "Labelled", places: "Ints", world: "World", progress: Progress) -> Known:
    """Some images of a part by content, each process reading a share of them."""
    from ijepa.distributed import in_shares

    ids = in_shares(world, part.chosen[places], lambda some: read_ids(part.images, some, progress))
    return Known(ids, [part.keys[place] for place in places.tolist()])


def _held_out(labels: "Ints", config: FinetuneConfig) -> "tuple[Ints, Ints]":
    """Places of the images to train on, and of those to watch."""
    from ijepa.probes.arrays import hold_out

    if not config.holdout:
        return np.arange(len(labels)), np.empty(0, np.int64)
    trained, held = hold_out(labels, config.holdout, config.seed)
    if not len(held):
        raise IjepaError("No image can be held out: there is one of each class; drop holdout.")
    return trained, held


def _num_classes(parts: "Parts") -> int:
    return int(parts.train.labels.max()) + 1


def _chosen(
    job: _Job, keys: list[str], labels: "np.ndarray[tuple[int, ...], np.dtype[np.int64]]"
) -> "np.ndarray[tuple[int, ...], np.dtype[np.int64]]":
    """Numbers of the training images, ascending."""
    from ijepa.probes.subsets import draw_subset, parse_shots

    if job.subset:
        return listed(job.subset, keys)
    if not job.config.subset:
        return np.arange(len(keys))
    return draw_subset(labels, parse_shots(job.config.subset), job.config.seed, draw=0)


def _publish(job: _Job, work: Work, trained: _Trained, device: str) -> None:
    result = _result(job, trained)
    write_bytes(work.folder / "config.yaml", dump_yaml(job.config).encode())
    write_result(work.folder / RESULT, result)
    work.publish_folder({"seed": job.config.seed, "device": device})


def _outcome(out: Path, cached: bool) -> FinetuneOutcome:
    return FinetuneOutcome(out=out, cached=cached, result=read_result(out))


def _result(job: _Job, trained: _Trained) -> ProbeResult:
    from ijepa.probes.scores import summary

    config, (train, held, test) = job.config, trained.parts
    correct = (trained.predictions == test.labels)[np.newaxis]
    images, batch = len(train.chosen), trained.data.batch_size
    departures = changed_settings(config)
    if batch != config.batch_size:
        departures.append(f"batches of all {images:,} images")
    if len(held.chosen):
        departures.append(f"{len(held.chosen):,} training images held out")
    score = Score(
        setting=config.subset.partition(" ")[0],
        origin=_origin(job, trained),
        best_on_test=None,
        choices=trained.held_out,
        correct=pack_correct(correct, test.keys),
        precision=trained.precision,
        departures=tuple(departures),
        **summary(correct, test.labels)._asdict(),
    )
    return ProbeResult(
        probe="finetune",
        protocol=f"finetune-{config.protocol}",
        description="encoder and classifier trained together",
        selection="nothing is chosen; the last state is scored",
        config=config.model_dump(mode="json"),
        label=config.label,
        seed=config.seed,
        source=job.data.source,
        splits=Splits(train=config.split, test=config.test_split),
        train_images=image_set(train.keys, train.labels),
        test_images=image_set(test.keys, test.labels),
        num_classes=_num_classes(trained.parts),
        chance=float(np.bincount(test.labels).max() / len(test.labels)),
        train_rows=images,
        test_rows=len(test.labels),
        scores=(score,),
        repeats=trained.repeats,
        test_classes=pack_classes(test.labels, test.keys),
        libraries=library_versions(),
        command=job.runtime.command,
        fingerprint=job.plan.fingerprint,
    )


def _origin(job: _Job, trained: _Trained) -> Origin:
    from ijepa.encoders.frozen import CLASS_TOKEN

    vit, data = trained.vit, trained.data
    averaged = "average of patch tokens, then a norm of its own"
    return Origin(
        encoder=vit.name,
        weights_sha256=vit.weights_sha256,
        which=vit.which,
        layers=(len(vit.encoder.blocks) - 1,),
        pooling=CLASS_TOKEN if vit.pooling == CLASS_TOKEN else averaged,
        image_px=data.image_px,
        transform=(
            f"center-crop {data.eval_crop_fraction:.4g}, bicubic to {data.image_px}, "
            f"mean {data.mean}, std {data.std}"
        ),
        precision=None,
        train=None,
        test=None,
        data=job.data.fingerprint,
        lineage=vit.lineage,
    )
