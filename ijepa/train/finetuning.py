"""Fine-tuning as a task: mixed images, the optimizer step, checks on held-out images, the score."""

import contextlib
from collections.abc import Generator, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from timm.data.mixup import Mixup
from torch import Tensor

from ijepa.arrays import Ints
from ijepa.compute import computing, pick_linear
from ijepa.config import DataConfig, FinetuneConfig, Runtime
from ijepa.data.augmented import AugmentedBatches
from ijepa.data.loader import Batch, StepPlan, ViewBatches, ViewPlan
from ijepa.data.shards import SplitReader
from ijepa.distributed import (
    from_rank_0,
    in_parallel,
    moved,
    sum_over_ranks,
    uses_bf16,
)
from ijepa.jepa.augment import normalise
from ijepa.jepa.rng import MASKS, SKIPPED, stream
from ijepa.jepa.schedules import warmup_cosine
from ijepa.progress import Progress
from ijepa.train.classifier import Classifier, parameter_groups
from ijepa.train.loop import Task
from ijepa.world import World

SCORED_AT_ONCE = 64

Inputs = tuple[Tensor, Tensor, Tensor]  # images, targets, draws of branches that are skipped


class LabelledImages(NamedTuple):
    """Images of a split that take part."""

    images: SplitReader  # the whole split
    chosen: Ints  # (n,) numbers of those that take part
    labels: Ints  # (n,) int64 their class numbers, from 0
    keys: list[str]  # n names


class FinetuneTask(Task[Inputs]):
    """A classifier and its optimizer; `held_out` holds the newest numbers of `watch`."""

    config: FinetuneConfig
    model: Classifier
    name = "finetune"
    unit = "images"
    shown = ("held_out_loss", "held_out_accuracy")

    def __init__(
        self,
        model: Classifier,
        parts: Sequence[LabelledImages],
        config: FinetuneConfig,
        view: DataConfig,
        runtime: Runtime,
        world: World = World(),  # noqa: B008  # a constant
    ) -> None:
        """Move the classifier to the device, ready to train.

        `parts` are the images to train on and those held out; `view` has the crop and normalisation
        settings, and the global batch size.
        """
        super().__init__(config, runtime, world)
        self.view, device = view, self.device
        train, self._held = parts
        plan = StepPlan(train.chosen, view, config.seed, world.share(view.batch_size))
        self._crops = AugmentedBatches(train.images, plan, config)
        self._labels = torch.zeros(len(train.images), dtype=torch.int64)
        self._labels[torch.from_numpy(train.chosen)] = torch.from_numpy(train.labels)
        self.model = model.to(device)
        groups = parameter_groups(model, config.layer_decay, config.weight_decay)
        self.optimizer = torch.optim.AdamW(groups, lr=config.lr, fused=True)
        rows = view.batch_size // world.size * model.encoder.patch_embed.num_patches
        dim = model.encoder.embed_dim
        self.linear = from_rank_0(world, lambda: pick_linear(device, rows, dim))
        self._per_epoch = len(train.chosen) // view.batch_size
        self._linear_steps = config.linear_first * self._per_epoch  # of the head alone
        self._batch_size = self.units_per_step = view.batch_size
        self.total_steps = self._linear_steps + config.epochs * self._per_epoch
        self._trained = {name for name, weight in model.named_parameters() if weight.requires_grad}
        self._head_alone: bool | None = None
        self.set_phase(0)
        self.bf16 = uses_bf16(config.precision, device)
        self._mixes = bool(config.mixup or config.cutmix)
        self._mixup = Mixup(  # type: ignore[no-untyped-call]  # timm's
            mixup_alpha=config.mixup,
            cutmix_alpha=config.cutmix,
            label_smoothing=config.label_smoothing,
            num_classes=model.head.out_features,
        )
        self.held_out: dict[str, float] = {}
        self.model.train()

    def set_phase(self, step: int) -> None:
        """Train the head alone in the first steps (LP-FT), then all, with a fresh optimizer."""
        alone = step < self._linear_steps
        if alone is self._head_alone:
            return
        self._head_alone = alone
        self.optimizer.state.clear()
        for name, parameter in self.model.named_parameters():
            is_trained = name.startswith("head.") if alone else name in self._trained
            parameter.requires_grad_(is_trained)
        self._forward = in_parallel(self.model, self.device, self.world)

    def batches(self, numbers: range) -> Generator[Batch]:
        """Augmented images of each step, in order."""
        return self.loaded(self._crops, numbers)

    def prepare(self, batch: Batch) -> Inputs:
        """Normalise and mix images, and draw which branches of blocks they skip.

        All is a function of (seed, step), whatever the number of processes: (B, 3, height, width)
        images, (B,) class numbers or (B, classes) shares of mixed ones, (B, 2 * blocks) draws.
        """
        images = self._normalised(batch.images)
        targets = moved(self._labels[batch.numbers], self.device)
        if self._mixes:
            # Neighbours in the batch, where timm mixes the first image with the last: so both are
            # on one process, however many there are. Targets become shares.
            seed = stream(self.config.seed, MASKS, batch.step).integers(2**32, size=2)[1]
            np.random.seed(int(seed))  # noqa: NPY002  # the generator that timm draws from
            order = torch.arange(len(images))
            order = torch.cat([order[::2], order[1::2].flip(0)])  # timm's pairs are now neighbours
            back, order = moved(order.argsort(), self.device), moved(order, self.device)
            mixed, shares = self._mixup(images[order], targets[order])
            images, targets = mixed[back], shares[back]
        shape = self._batch_size, 2 * len(self.model.encoder.blocks)
        drawn = stream(self.config.seed, SKIPPED, batch.step).random(shape, dtype=np.float32)
        mine = torch.from_numpy(drawn[self.world.share(self._batch_size)])
        return images, targets, moved(mine, self.device)

    def step(self, step: int, inputs: Inputs) -> dict[str, Any]:
        """One update of all layers that are trained, each at its own rate."""
        config, done, (images, targets, draws) = self.config, step + 1, inputs
        self.set_phase(step)
        first, peak, warmup = self._linear_steps, config.lr, config.warmup_epochs / config.epochs
        part = (step - first) / (self.total_steps - first)
        if self._head_alone:
            part, peak, warmup = step / first, config.linear_lr, 0.0
        lr = warmup_cosine(part, peak, config.final_lr, min(1.0, warmup))
        for group in self.optimizer.param_groups:
            group["lr"] = lr * group["lr_scale"]
        self.optimizer.zero_grad()
        with self.autocast():
            logits = self._forward(images, None if self._head_alone else draws)
        smoothing = 0.0 if self._mixes else config.label_smoothing  # mixed labels are smooth
        loss = F.cross_entropy(logits.float(), targets, label_smoothing=smoothing)
        torch.autograd.backward(loss)
        self.optimizer.step()
        return {
            "epoch": done / self._per_epoch,
            "lr": lr,
            "images": done * self._batch_size,
            "loss": loss.detach(),
        }

    def watch(self, step: int) -> dict[str, float]:
        """Score the held-out images after each epoch, without label smoothing."""
        held, world = self._held, self.world
        if not (len(held.chosen) and step) or step % self._per_epoch:
            return {}
        labels, sums = torch.from_numpy(held.labels), torch.zeros(2, dtype=torch.float64)
        for numbers, logits in self.logits(held):
            true = labels[numbers]
            sums[0] += F.cross_entropy(logits, true, reduction="sum").double()
            sums[1] += (logits.argmax(dim=1) == true).sum()
        sums = sums.to(self.device) if world.size > 1 else sums  # Apple's GPUs have no float64
        share = 1 / len(labels)
        loss, accuracy = (share * sum_over_ranks(sums, world)).tolist()
        if not np.isfinite(loss):
            raise FloatingPointError(f"The held-out loss is {loss}")
        self.held_out = {"held_out_loss": loss, "held_out_accuracy": accuracy}
        return self.held_out

    def state_dict(self) -> dict[str, Any]:
        """The numbers of the last check of the held-out images."""
        return {"held_out": self.held_out}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See `state_dict`."""
        self.held_out = state["held_out"]

    def predictions(self, test: LabelledImages, progress: Progress) -> Ints:
        """(n,) class numbers of images by their evaluation views; all processes must call it."""
        predicted = torch.zeros(len(test.chosen), dtype=torch.int64)
        with computing(self.device, linear=self.linear):
            for numbers, logits in self.logits(test):
                predicted[numbers] = logits.argmax(dim=1)
                progress("score images", int(numbers[-1]) + 1, len(predicted))
        every: Ints = sum_over_ranks(predicted.to(self.device), self.world).cpu().numpy()
        return every

    @torch.inference_mode()
    def logits(self, part: LabelledImages) -> Iterator[tuple[Tensor, Tensor]]:
        """Places in `part` and their (n, classes) logits, on the CPU; some for each process."""
        view = self.view
        plan = ViewPlan(view.image_px, view.eval_crop_fraction, interpolation="bicubic")  # as MAE
        views = ViewBatches(part.images, plan, SCORED_AT_ONCE, part.chosen.tolist())
        mine = range(self.world.rank, len(views), self.world.size)
        self.model.eval()
        with contextlib.closing(self.loaded(views, mine)) as batches:
            for batch in batches:
                with self.autocast():
                    logits = self.model(self._normalised(batch.images))
                yield batch.numbers, logits.float().cpu()
        self.model.train()

    def _normalised(self, images: Tensor) -> Tensor:
        return normalise(moved(images, self.device), self.view.mean, self.view.std)
