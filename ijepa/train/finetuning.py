"""The loop of fine-tuning: steps, the watch, records, checkpoints, and the score at the end."""

import contextlib
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from timm.data.mixup import Mixup
from torch import Tensor

from ijepa.compute import computing, linear_name, pick_linear
from ijepa.config import DataConfig, FinetuneConfig, Runtime
from ijepa.data.augmented import AugmentedBatches
from ijepa.data.loader import ChosenImages, Images, ViewBatches, ViewPlan, batches
from ijepa.distributed import (
    any_rank,
    device_name,
    in_parallel,
    mean_over_ranks,
    num_workers,
    pick_device,
    sum_over_ranks,
    uses_bf16,
)
from ijepa.errors import IjepaError
from ijepa.jepa.augment import normalise
from ijepa.jepa.rng import MASKS, SKIPPED, stream
from ijepa.probes.arrays import Ints
from ijepa.progress import Progress
from ijepa.train.checkpoint import CheckpointWriter
from ijepa.train.classifier import Classifier, learning_rate, parameter_groups
from ijepa.train.metrics import MetricsLog
from ijepa.train.stopping import stop_requests
from ijepa.weights import check_weights, load_state
from ijepa.world import World

SCORED_AT_ONCE = 64
FLUSH_STEPS = 10

log = logging.getLogger(__name__)


class Labelled(NamedTuple):
    """Images of a split that take part.

    Attributes:
        images: the whole split.
        chosen: (n,) numbers of those that take part.
        labels: (n,) int64 their class numbers, from 0.
        keys: n names.
    """

    images: Images
    chosen: Ints
    labels: Ints
    keys: list[str]


class Parts(NamedTuple):
    """Images to train on, to watch, and to score at the end; the first two share a split."""

    train: Labelled
    held: Labelled
    test: Labelled


class FinetuneRun:
    """Classifier, optimizer and the number of steps done; `train` takes the rest."""

    def __init__(
        self,
        folder: Path,
        model: Classifier,
        parts: Parts,
        config: FinetuneConfig,
        data: DataConfig,
        runtime: Runtime,
        world: World,
    ) -> None:
        """Take up what stands in `folder`, or begin.

        Args:
            folder: gets `checkpoints/last.pt`, `metrics.jsonl` and `tensorboard/`.
            model: freshly made; trained in place.
            parts: which images.
            config: what to do.
            data: how images are cut and normalised; its batch is that of all processes.
            runtime: device, workers, how often to save.
            world: this process among all.
        """
        self._folder, self._parts, self._config, self._data = folder, parts, config, data
        self._runtime, self._world = runtime, world
        self._device = device = pick_device(runtime.device)
        train = parts.train
        self._labels = torch.from_numpy(_by_number(train))
        part = world.share(data.batch_size)
        self._batches = AugmentedBatches(train.images, train.chosen, config, data, part)
        self.model = model.to(device)
        groups = parameter_groups(model, config.layer_decay, config.weight_decay)
        self._optimizer = torch.optim.AdamW(groups, lr=config.lr, fused=True)
        patches = self.model.encoder.patch_embed.num_patches
        rows = data.batch_size // world.size * patches
        self._linear = pick_linear(device, rows, self.model.encoder.embed_dim)
        self._steps_per_epoch = len(train.chosen) // data.batch_size
        self.total_steps = config.epochs * self._steps_per_epoch
        self.steps_done = 0
        self.held_out: dict[str, float] = {}  # by the last watch
        self._writer = CheckpointWriter(runtime.checkpoint_seconds, writes=world.leads)
        metrics_bytes = self._resume()
        self._forward = in_parallel(self.model, device, world)
        self._metrics = MetricsLog(folder, metrics_bytes, self.steps_done) if world.leads else None
        self._bf16 = uses_bf16(config.precision, device)

    @property
    def precision(self) -> str:
        """What matrices are multiplied in, for the record: `fp32` or `bf16`."""
        return "bf16" if self._bf16 else "fp32"

    @property
    def device_name(self) -> str:
        """What computes, for the record."""
        return device_name(self._device, self._world) + linear_name(self._linear)

    def train(self, progress: Progress) -> None:
        """Take all steps that are left.

        Raises:
            StoppedError: a signal asked for it; the state is saved.
            IjepaError: the loss is not finite.
        """
        losses: list[dict[str, Any]] = []
        self.model.train()
        todo, on_gpu = range(self.steps_done, self.total_steps), self._device.type == "cuda"
        workers = num_workers(self._runtime, self._device)
        made = batches(self._batches, todo, workers, pin_memory=on_gpu)
        with (
            contextlib.closing(self._writer),
            computing(self._device, linear=self._linear),
            stop_requests() as asked,
            contextlib.closing(made),  # else workers outlive an error
        ):
            for batch in made:
                losses.append(self._step(batch.step, batch.images, self._labels[batch.numbers]))
                last = self.steps_done == self.total_steps
                if self._watched_now():
                    losses[-1] |= self._watch()
                elif (
                    not last and self.steps_done % FLUSH_STEPS and not self._stops_now(bool(asked))
                ):
                    continue
                self._flush(losses, progress)
                losses = []
                stop = any_rank(bool(asked), self._device, self._world)
                due = any_rank(self._writer.is_due(), self._device, self._world)
                if last or stop or due:
                    self._save()
                if stop and not last:
                    self._end()
                    raise asked.stopped(self.steps_done, self.total_steps)
        self._end()

    def predictions(self, progress: Progress) -> Ints:
        """(n,) class numbers of the test images by their evaluation views; all ranks must ask."""
        test, world = self._parts.test, self._world
        found = torch.zeros(len(test.chosen), dtype=torch.int64)
        with computing(self._device, linear=self._linear):
            mine = range(world.rank, _batches(test), world.size)
            for numbers, logits in self._scored(test, mine):
                found[numbers] = logits.argmax(dim=1)
                progress("score images", int(numbers[-1]) + 1, None)
        every: Ints = sum_over_ranks(found.to(self._device), world).cpu().numpy()
        return every

    def _watched_now(self) -> bool:
        """Is an epoch over, and are there images held out to see what it came to?"""
        return len(self._parts.held.chosen) > 0 and self.steps_done % self._steps_per_epoch == 0

    def _watch(self) -> dict[str, float]:
        """Score the held-out images, every process some of them; the loss is not smoothed.

        Nothing that the next steps draw depends on it.
        """
        held, world = self._parts.held, self._world
        labels, sums = torch.from_numpy(held.labels), torch.zeros(2, dtype=torch.float64)
        for numbers, logits in self._scored(held, range(world.rank, _batches(held), world.size)):
            true = labels[numbers]
            sums[0] += F.cross_entropy(logits, true, reduction="sum").double()
            sums[1] += (logits.argmax(dim=1) == true).sum()
        means = mean_over_ranks(sums.to(self._device), world) * (world.size / len(labels))
        loss, accuracy = means.tolist()
        if not np.isfinite(loss):
            raise IjepaError(f"The held-out loss is {loss} after step {self.steps_done}; lower lr.")
        self.held_out = {"held_out_loss": loss, "held_out_accuracy": accuracy}
        return self.held_out

    @torch.inference_mode()
    def _scored(self, part: Labelled, numbers: Sequence[int]) -> Iterator[tuple[Tensor, Tensor]]:
        """Places in `part` and float logits, on the CPU, of some of its batches."""
        data = self._data
        plan = ViewPlan(data.image_px, data.eval_crop_fraction, interpolation="bicubic")  # as MAE
        views = ViewBatches(ChosenImages(part.images, part.chosen.tolist()), plan, SCORED_AT_ONCE)
        self.model.eval()
        on_gpu, workers = self._device.type == "cuda", num_workers(self._runtime, self._device)
        with contextlib.closing(batches(views, numbers, workers, pin_memory=on_gpu)) as made:
            for batch in made:
                with self._precision():
                    logits = self.model(self._normalised(batch.images))
                yield batch.numbers, logits.float().cpu()
        self.model.train()

    def _step(self, step: int, images: Tensor, labels: Tensor) -> dict[str, Any]:
        """One update; returns its record, the loss still on the device."""
        lr = self._set_rates(step)
        inputs, targets = self._mixed(step, self._normalised(images), labels.to(self._device))
        self._optimizer.zero_grad()
        with self._precision():
            logits = self._forward(inputs, self._draws(step))
        loss = F.cross_entropy(logits.float(), targets, label_smoothing=self._smoothing())
        torch.autograd.backward(loss)
        self._optimizer.step()
        self.steps_done = step + 1
        facts = {
            "step": self.steps_done,
            "epoch": self.steps_done / self._steps_per_epoch,
            "lr": lr,
        }
        facts["images"] = self.steps_done * self._data.batch_size
        return facts | {"loss": loss.detach()}

    def _set_rates(self, step: int) -> float:
        config = self._config
        warmup = config.warmup_epochs / config.epochs
        lr = learning_rate(step / self.total_steps, config.lr, config.final_lr, min(1.0, warmup))
        for group in self._optimizer.param_groups:
            group["lr"] = lr * group["lr_scale"]
        return lr

    def _draws(self, step: int) -> Tensor:
        """(B, 2 * blocks) by which images skip branches of blocks: a function of (seed, step).

        They are drawn for the whole batch, so that they do not depend on the number of processes.
        """
        shape = self._data.batch_size, 2 * len(self.model.encoder.blocks)
        every = stream(self._config.seed, SKIPPED, step).random(shape, dtype=np.float32)
        mine = every[self._world.share(self._data.batch_size)]
        return torch.from_numpy(mine).to(self._device)

    def _mixed(self, step: int, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Mixup and CutMix, if asked for; labels then are (B, classes) shares.

        Neighbours in the batch are mixed, where timm mixes the first image with the last: a pair
        then lies on one process, whatever their number.
        """
        config = self._config
        if not (config.mixup or config.cutmix):
            return images, labels
        mixup = Mixup(  # type: ignore[no-untyped-call]  # timm's
            mixup_alpha=config.mixup,
            cutmix_alpha=config.cutmix,
            label_smoothing=config.label_smoothing,
            num_classes=self.model.head.out_features,
        )
        seed = stream(config.seed, MASKS, step).integers(2**32, size=2)[1]
        np.random.seed(int(seed))  # noqa: NPY002  # the generator that timm draws from
        order = torch.arange(len(images), device=self._device)
        order = torch.cat([order[::2], order[1::2].flip(0)])  # what timm pairs are now neighbours
        mixed, shares = mixup(images[order], labels[order])
        back = order.argsort()
        return mixed[back], shares[back]

    def _smoothing(self) -> float:
        """Mixed labels are smooth already."""
        mixed = self._config.mixup or self._config.cutmix
        return 0.0 if mixed else self._config.label_smoothing

    def _normalised(self, images: Tensor) -> Tensor:
        on_device = images.to(self._device, non_blocking=True)
        return normalise(on_device, self._data.mean, self._data.std)

    def _precision(self) -> torch.autocast:
        return torch.autocast(self._device.type, torch.bfloat16, enabled=self._bf16)

    def _stops_now(self, asked: bool) -> bool:
        """One process may stop at any step, several only when all look."""
        return asked and self._world.size == 1

    def _flush(self, records: list[dict[str, Any]], progress: Progress) -> None:
        losses = mean_over_ranks(torch.stack([r["loss"] for r in records]), self._world).tolist()
        for record, loss in zip(records, losses, strict=True):
            if not np.isfinite(loss):
                raise IjepaError(
                    f"The loss is {loss} at step {record['step']}; lower lr, or lengthen the "
                    f"warm-up."
                )
            if self._metrics:
                self._metrics.append(record | {"loss": loss})
        size = self._data.batch_size
        shown = {"loss": losses[-1], "lr": records[-1]["lr"]} | self.held_out
        progress("finetune images", self.steps_done * size, self.total_steps * size, shown)

    def _end(self) -> None:
        self._writer.wait()
        if self._metrics:
            self._metrics.close()

    @property
    def _last_checkpoint(self) -> Path:
        return self._folder / "checkpoints" / "last.pt"

    def _save(self) -> None:
        if not self._metrics:
            return
        self._last_checkpoint.parent.mkdir(exist_ok=True)
        body = {
            "step": self.steps_done,
            "config": self._config.model_dump(mode="json"),
            "model": self.model.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "held_out": self.held_out,
            "metrics_bytes": self._metrics.flush(),
        }
        self._writer.save([self._last_checkpoint], body)

    def _resume(self) -> int:
        """Take up the last checkpoint, if there is one; returns its metrics' length in bytes."""
        if not self._last_checkpoint.exists():
            return 0
        body = load_state(self._last_checkpoint)
        check_weights(self.model, body["model"], self._last_checkpoint)
        self.model.load_state_dict(body["model"])
        self._optimizer.load_state_dict(body["optimizer"])
        self.steps_done, self.held_out = body["step"], body["held_out"]
        if self._world.leads:
            log.info("going on after step %d of %d", self.steps_done, self.total_steps)
        return int(body["metrics_bytes"])


def _batches(part: Labelled) -> int:
    return -(-len(part.chosen) // SCORED_AT_ONCE)


def _by_number(train: Labelled) -> Ints:
    """(images of the split,) class numbers, -1 where an image takes no part."""
    labels = np.full(len(train.images), -1, np.int64)
    labels[train.chosen] = train.labels
    return labels
