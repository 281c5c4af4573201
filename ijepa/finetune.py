"""Train a whole encoder and a classifier on labelled images, few or all."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ijepa.arrays import Ints
from ijepa.config import RUNTIME, Config, FinetuneConfig, Runtime, StrPath
from ijepa.data.shards import ShardSet, open_shards
from ijepa.data.sources.names import listed
from ijepa.encoders.spec import EncoderSpec
from ijepa.errors import IjepaError
from ijepa.features.leakage import repeated_keys
from ijepa.files import file_sha256, write_bytes
from ijepa.probes.arrays import draw_subset, hold_out, parse_shots
from ijepa.progress import Progress, automatic, silent
from ijepa.recipes import dump_yaml
from ijepa.results.record import (
    RESULT,
    Score,
    Scores,
    pack_correct,
    read_result,
    shared_fields,
    write_result,
)
from ijepa.stage import StagePlan, Work, exclusive_work
from ijepa.world import World, together

if TYPE_CHECKING:
    from ijepa.encoders.base import Encoder
    from ijepa.train.classifier import Classifier
    from ijepa.train.finetuning import FinetuneTask, LabelledImages

    Parts = tuple[LabelledImages, LabelledImages, LabelledImages]  # to train on, held out, to test

VERSION = 11

log = logging.getLogger(__name__)

ASIDE = {  # what a protocol leaves open, or what results say elsewhere
    "protocol", "encoder", "which", "label", "split", "test_split", "subset", "holdout", "image_px",
    "precision", "seed",
}  # fmt: skip


class FinetuneResult(Config):
    """A finished fine-tuning and its score."""

    out: Path
    cached: bool
    scores: Scores


class FinetunePlan(Config):
    """What would run."""

    protocol: str
    train_images: int
    held_out_images: int
    test_images: int
    num_classes: int
    batch_size: int
    steps: int
    linear_steps: int  # of these, the first ones, in which the linear layer is trained alone
    parameters: int  # of the encoder
    trained_parameters: int  # of encoder and classifier, after the linear steps
    gflops_per_image: float  # of matrix products, forward and backward; mean over all steps


def finetune(
    shards: StrPath,
    out: StrPath,
    config: FinetuneConfig,
    runtime: Runtime = RUNTIME,
    progress: Progress = automatic,
    subset: StrPath | None = None,
) -> FinetuneResult:
    """Train on `config.split`, or a part of it, and score the last state on `config.test_split`.

    The folder gets `config.yaml`, `metrics.jsonl`, `tensorboard/`, `checkpoints/last.pt` and
    `result.json`, which `ijepa report` shows beside probes. Nothing is chosen, on the test split or
    on the images that `config.holdout` keeps from training: loss and accuracy on these are recorded
    after every epoch, the last ones in the result. Under torchrun every process calls this.
    `subset`, a list of training images, one key or file name a line, fills in `config.subset`.

    Raises:
        IjepaError: the encoder does not load, no such split or label, a list that names others.
    """
    data, config = _opened(shards, config)
    if subset is not None:
        config = config.model_copy(update={"subset": f"list {file_sha256(Path(subset))}"})
    inputs = {"data": data.fingerprint, "encoder": EncoderSpec.of(config).fingerprint(progress)}
    precious = not runtime.replace
    plan = StagePlan("finetune", VERSION, config, inputs, Path(out), precious, is_folder=True)
    with together(exclusive_work(plan, runtime), runtime) as (work, world):
        if not work.cached:
            told = progress if world.is_rank_0 else silent
            _train(work, data, config, runtime, told, world, subset)
    return FinetuneResult(out=plan.out, cached=work.cached, scores=read_result(plan.out))


def plan_finetune(
    shards: StrPath, config: FinetuneConfig, subset: StrPath | None = None
) -> FinetunePlan:
    """Say what `finetune` would do; raises as it would, but for images that are in both splits."""
    from ijepa.train.classifier import step_gflops

    data, config = _opened(shards, config)
    train, held, test = _images(data, config, subset)
    images, vit = len(train.chosen), _trainable(data, config)
    batch, parameters = _batch(config, images), sum(p.numel() for p in vit.network.parameters())
    num_classes = int(train.labels.max()) + 1
    model = _classifier(config, vit, num_classes)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    all_layers = step_gflops(model, vit.data.image_size)
    head_alone = step_gflops(model.requires_grad_(False), vit.data.image_size)
    epochs = config.linear_first + config.epochs
    cost = (config.linear_first * head_alone + config.epochs * all_layers) / epochs
    return FinetunePlan(
        protocol=config.protocol,
        train_images=images,
        held_out_images=len(held.chosen),
        test_images=len(test.chosen),
        num_classes=num_classes,
        batch_size=batch,
        steps=epochs * (images // batch),
        linear_steps=config.linear_first * (images // batch),
        parameters=parameters,
        trained_parameters=trained,
        gflops_per_image=cost,
    )


def _classifier(config: FinetuneConfig, vit: "Encoder", num_classes: int) -> "Classifier":
    """The encoder with a fresh classifier on it; the encoder's network becomes part of it."""
    import torch

    from ijepa.encoders.base import CLASS_TOKEN
    from ijepa.train.classifier import Classifier

    generator, has_token = torch.Generator().manual_seed(config.seed), vit.pooling == CLASS_TOKEN
    sizes = vit.network, num_classes, config.drop_path
    return Classifier(*sizes, generator, class_token=has_token, freeze=config.freeze)


def _opened(shards: StrPath, config: FinetuneConfig) -> tuple[ShardSet, FinetuneConfig]:
    """The shard set, and the configuration with the name of the test split filled in."""
    data = open_shards(Path(shards))
    fitted = {"test_split": data.named_split(config.test_split, config.split)}
    if data.pixels and config.randaugment:
        log.warning("RandAugment is left out: it is made for 8-bit RGB images")
        fitted["randaugment"] = ""
    return data, config.model_copy(update=fitted)


def _trainable(data: ShardSet, config: FinetuneConfig) -> "Encoder":
    """The encoder, on the CPU, as it takes these images."""
    spec = EncoderSpec.of(config)._replace(pixels=data.pixels)
    return spec.trainable().fit_channels(data.pixels, data.folder)


def _batch(config: FinetuneConfig, images: int, num_processes: int = 1) -> int:
    """Images of a step, of which each process takes as many."""
    batch = min(config.batch_size, images)
    share, rest = divmod(batch, num_processes)
    if rest:
        raise IjepaError(
            f"Batches of {batch} cannot be shared evenly by {num_processes} processes."
        )
    if batch < 2:  # a pair
        raise IjepaError(f"There are {images} training images; fine-tuning needs two.")
    if (config.mixup or config.cutmix) and share % 2:
        raise IjepaError(f"Mixup pairs images, and {share} are odd; change batch_size.")
    return batch


def _train(
    work: Work,
    data: ShardSet,
    config: FinetuneConfig,
    runtime: Runtime,
    progress: Progress,
    world: World,
    subset: StrPath | None,
) -> None:
    """Take the steps that are left, score the test images, and let rank 0 publish."""
    from ijepa.distributed import from_rank_0
    from ijepa.train import finetuning, loop

    train, held, test = parts = _images(data, config, subset)
    vit, batch = _trainable(data, config), _batch(config, len(train.chosen), world.size)
    fitted, scored = ((part.images.image_ids(part.chosen), part.keys) for part in (train, test))
    repeats = from_rank_0(world, lambda: repeated_keys(*fitted, *scored))
    choices = {"batch_size": batch, "crop_scale": config.crop_scale, "flip": True}
    view = vit.data.model_copy(update=choices)  # the encoder's own size and normalisation
    model = _classifier(config, vit, int(train.labels.max()) + 1)
    task = finetuning.FinetuneTask(model, (train, held), config, view, runtime, world)
    loop.fit(task, work.folder, progress)
    predicted = task.predictions(test, progress)

    def publish() -> None:
        score = _score(work.plan, data, vit, task, parts, predicted, repeats)
        write_bytes(work.folder / "config.yaml", dump_yaml(config).encode())
        write_result(work.folder / RESULT, (score,))
        work.publish({"seed": config.seed, "device": task.device_name()})

    from_rank_0(world, publish)


def _images(data: ShardSet, config: FinetuneConfig, subset: StrPath | None) -> "Parts":
    """Images to train on, held out of these, and to test on; classes are counted from 0."""
    from ijepa.train.finetuning import LabelledImages

    reader, test_reader = data.split(config.split), data.split(config.test_split)
    labels, test_labels = reader.labels(config.label), test_reader.labels(config.label)
    if subset:
        chosen = listed(Path(subset), reader.keys())
    elif config.subset:
        chosen = draw_subset(labels, parse_shots(config.subset), config.seed, draw=0)
    else:
        chosen = np.arange(len(labels))
    chosen = chosen[labels[chosen] >= 0]  # -1 is no class, here and below
    tested = np.flatnonzero(test_labels >= 0)
    if not (len(chosen) and len(tested)):
        raise IjepaError(f"No image to train or none to test has a known {config.label!r}.")
    classes, numbers = np.unique(labels[chosen], return_inverse=True)
    unknown = np.setdiff1d(test_labels[tested], classes)
    if len(unknown):
        names, first = test_reader.label_names[config.label], int(unknown[0])
        raise IjepaError(
            f"{len(unknown):,} classes of {config.test_split} are missing from the training "
            f"images, such as {names[first]}; take more of them."
        )
    trained: Ints = np.arange(len(numbers))
    held: Ints = np.empty(0, np.int64)
    if config.holdout:
        trained, held = hold_out(numbers, config.holdout, config.seed)
        if not len(held):
            raise IjepaError("No image can be held out: there is one of each class; drop holdout.")
    test_numbers = np.searchsorted(classes, test_labels[tested])
    return (
        LabelledImages(reader, chosen[trained], numbers[trained], reader.keys(chosen[trained])),
        LabelledImages(reader, chosen[held], numbers[held], reader.keys(chosen[held])),
        LabelledImages(test_reader, tested, test_numbers, test_reader.keys(tested)),
    )


def _score(
    plan: StagePlan,
    data: ShardSet,
    vit: "Encoder",
    task: "FinetuneTask",
    parts: "Parts",
    predicted: Ints,
    repeats: tuple[str, ...],
) -> Score:
    """The score of the last state, and how the run deviates from the protocol it names."""
    from ijepa.probes.scores import summary

    config, view, (train, held, test) = task.config, task.view, parts
    correct = (predicted == test.labels)[np.newaxis]
    own = dict(FinetuneConfig(encoder=config.encoder, protocol=config.protocol))
    deviations = [
        f"{name} {'none' if chosen == '' else chosen}, not {own[name]}"
        for name, chosen in config
        if name not in ASIDE and chosen != own[name]
    ]
    if view.batch_size != config.batch_size:
        deviations.append(f"batches of all {len(train.chosen):,} images")
    if len(held.chosen):
        deviations.append(f"{len(held.chosen):,} training images held out")
    averaged = "average of patch tokens, then a norm of its own"
    return Score(
        **shared_fields(config, (train.keys, train.labels), (test.keys, test.labels)),
        probe="finetune",
        protocol=f"finetune-{config.protocol}",
        description="encoder and classifier trained together",
        selection="nothing is chosen; the last state is scored",
        data=data.fingerprint,
        source=data.source,
        train_split=config.split,
        test_split=config.test_split,
        fingerprint=plan.fingerprint,
        repeats=repeats,
        command=task.runtime.command,
        setting=config.subset.partition(" ")[0],
        encoder=vit.name,
        weights_sha256=vit.weights_sha256,
        which=vit.which,
        layers=(len(vit.network.blocks) - 1,),
        pooling=vit.pooling if task.model.class_token else averaged,
        image_px=view.image_px,
        transform=view.transform_text("bicubic", view.eval_crop_fraction),
        features_precision=None,
        train_features=None,
        test_features=None,
        provenance=vit.provenance,
        best_on_test=None,
        choices=task.held_out,
        correct=pack_correct(correct, test.keys),
        precision="bf16" if task.bf16 else "fp32",
        deviations=tuple(deviations),
        **summary(correct, test.labels),
    )
