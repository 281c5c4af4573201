"""What fine-tuning computes: the plan, the training, the score of its last state."""

from pathlib import Path

import numpy as np
import torch

from ijepa.arrays import Ints
from ijepa.config import Config, FinetuneConfig, Runtime, StrPath
from ijepa.data.shards import ShardSet
from ijepa.data.sources.names import listed
from ijepa.distributed import from_rank_0
from ijepa.encoders.pooling import CLASS_TOKEN
from ijepa.encoders.spec import EncoderSpec
from ijepa.errors import IjepaError
from ijepa.features.leakage import repeated_keys
from ijepa.files import write_bytes
from ijepa.probes.arrays import draw_subset, hold_out, parse_shots
from ijepa.probes.scores import summary
from ijepa.progress import Progress
from ijepa.recipes import dump_yaml
from ijepa.results.record import RESULT, Score, pack_correct, shared_fields, write_result
from ijepa.stage import StagePlan, Work
from ijepa.train import loop
from ijepa.train.classifier import Classifier, step_gflops
from ijepa.train.finetuning import FinetuneTask, LabelledImages
from ijepa.world import World

ASIDE = {  # what a protocol leaves open, or what results say elsewhere
    "protocol", "encoder", "which", "label", "split", "test_split", "subset", "holdout", "image_px",
    "precision", "seed",
}  # fmt: skip


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


class Finetuning:
    """An encoder on the CPU, and images to train on, held out of these, and to test on."""

    def __init__(self, data: ShardSet, config: FinetuneConfig, subset: StrPath | None) -> None:
        """Choose the images, and load the encoder as it takes them."""
        self.data, self.config = data, config
        self.images = _images(data, config, subset)
        spec = EncoderSpec.of(config)._replace(pixels=data.pixels)
        self.encoder = spec.trainable().fit_channels(data.pixels, data.folder)

    def plan(self) -> FinetunePlan:
        """What would run."""
        config, (train, held, test) = self.config, self.images
        images, batch = len(train.chosen), self._batch()
        parameters = sum(p.numel() for p in self.encoder.network.parameters())
        model = self._classifier()
        trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
        all_layers = step_gflops(model, self.encoder.data.image_size)
        head_alone = step_gflops(model.requires_grad_(False), self.encoder.data.image_size)
        epochs = config.linear_first + config.epochs
        cost = config.linear_first * head_alone + config.epochs * all_layers
        return FinetunePlan(
            protocol=config.protocol,
            train_images=images,
            held_out_images=len(held.chosen),
            test_images=len(test.chosen),
            num_classes=self._num_classes(),
            batch_size=batch,
            steps=epochs * (images // batch),
            linear_steps=config.linear_first * (images // batch),
            parameters=parameters,
            trained_parameters=trained,
            gflops_per_image=cost / epochs,
        )

    def train(self, work: Work, runtime: Runtime, world: World, progress: Progress) -> None:
        """Take the steps that are left, score the test images, and let rank 0 publish."""
        config, (train, held, test) = self.config, self.images
        batch = self._batch(world.size)
        fitted, scored = ((part.images.image_ids(part.chosen), part.keys) for part in (train, test))
        repeats = from_rank_0(world, lambda: repeated_keys(*fitted, *scored))
        choices = {"batch_size": batch, "crop_scale": config.crop_scale, "flip": True}
        view = self.encoder.data.model_copy(update=choices)  # its own size and normalisation
        parts = train, held
        task = FinetuneTask(self._classifier(), parts, config, view, runtime, world)
        loop.fit(task, work.folder, progress)
        predicted = task.predictions(test, progress)

        def publish() -> None:
            score = self._score(work.plan, task, predicted, repeats)
            write_bytes(work.folder / "config.yaml", dump_yaml(config).encode())
            write_result(work.folder / RESULT, (score,))
            work.publish({"seed": config.seed, "device": task.device_name})

        from_rank_0(world, publish)

    def _num_classes(self) -> int:
        return int(self.images[0].labels.max()) + 1

    def _classifier(self) -> Classifier:
        """The encoder with a fresh classifier on it; its network becomes part of it."""
        config, encoder = self.config, self.encoder
        return Classifier(
            encoder.network,
            self._num_classes(),
            config.drop_path,
            torch.Generator().manual_seed(config.seed),
            class_token=encoder.pooling == CLASS_TOKEN,
            freeze=config.freeze,
        )

    def _batch(self, num_processes: int = 1) -> int:
        """Images of a step, of which each process takes as many."""
        config, images = self.config, len(self.images[0].chosen)
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

    def _score(
        self, plan: StagePlan, task: FinetuneTask, predicted: Ints, repeats: tuple[str, ...]
    ) -> Score:
        """The score of the last state, and how the run deviates from the protocol it names."""
        config, view, (train, held, test) = self.config, task.view, self.images
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
            data=self.data.fingerprint,
            source=self.data.source,
            train_split=config.split,
            test_split=config.test_split,
            fingerprint=plan.fingerprint,
            repeats=repeats,
            command=task.runtime.command,
            setting=config.subset.partition(" ")[0],
            encoder=self.encoder.name,
            weights_sha256=self.encoder.weights_sha256,
            which=self.encoder.which,
            layers=(len(self.encoder.network.blocks) - 1,),
            pooling=self.encoder.pooling if task.model.class_token else averaged,
            image_px=view.image_px,
            transform=view.transform_text("bicubic", view.eval_crop_fraction),
            features_precision=None,
            train_features=None,
            test_features=None,
            provenance=self.encoder.provenance,
            best_on_test=None,
            choices=task.held_out,
            correct=pack_correct(correct, test.keys),
            precision="bf16" if task.bf16 else "fp32",
            deviations=tuple(deviations),
            **summary(correct, test.labels),
        )


def _images(
    data: ShardSet, config: FinetuneConfig, subset: StrPath | None
) -> tuple[LabelledImages, LabelledImages, LabelledImages]:
    """Images to train on, held out of these, and to test on; classes are counted from 0."""
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
