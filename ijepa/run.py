"""A pretraining run between its first and its last step: resume, train, watch, save."""

import dataclasses
import logging
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ijepa.config import PretrainConfig, Runtime
from ijepa.distributed import device_name, pick_device
from ijepa.errors import IjepaError
from ijepa.method.augment import normalise
from ijepa.method.draws import SHUFFLE, stream
from ijepa.method.jepa import IJepa, build_ijepa
from ijepa.method.mask_statistics import context_patches
from ijepa.method.masking import Masks, batch_masks, check_masks
from ijepa.method.monitor import Health, health, loss_vs_mean_target, verdict
from ijepa.method.training import Outcome, Trainer
from ijepa.progress import Progress
from ijepa.recipes import dump_yaml
from ijepa.stores.checkpoint import Checkpoint, load_checkpoint, load_weights, save_checkpoint
from ijepa.stores.loader import EvaluationBatches, RandomCropBatches, batches
from ijepa.stores.metrics import MetricsLog
from ijepa.stores.shards import SplitReader
from ijepa.stores.stage import write_bytes

FLUSH_STEPS = 10  # losses are fetched from the device together, so that it need not wait each step
WATCH_BATCH = 128

log = logging.getLogger(__name__)


@dataclasses.dataclass
class _Pending:
    """Records whose losses are still on the device."""

    records: list[dict[str, float]] = dataclasses.field(default_factory=list)
    losses: list[Tensor] = dataclasses.field(default_factory=list)


class Run:
    """Networks, optimizer, metrics and the number of steps done; `train` takes the rest."""

    def __init__(
        self, folder: Path, config: PretrainConfig, images: SplitReader, runtime: Runtime
    ) -> None:
        """Begin in `folder`, or take up what an interrupted run left there.

        Raises:
            IjepaError: masks that do not fit, too few images, a checkpoint that does not load.
        """
        check_masks(config.grid, config.masks)
        self.folder, self.config, self.runtime = folder, config, runtime
        self.images, self.device = images, pick_device(runtime.device)
        self.model: IJepa = build_ijepa(config).to(self.device)
        per_epoch = len(images) // config.data.batch_size
        self.trainer = Trainer(self.model, config.optimization, per_epoch)
        self.per_epoch = per_epoch
        self.steps_done = 0
        self.first_health: Health | None = None
        self.pending = _Pending()
        self.shown: dict[str, float] = {}
        self.metrics = MetricsLog(self.folder, self._resume(), self.steps_done)
        write_bytes(self.folder / "config.yaml", dump_yaml(config).encode())

    @property
    def device_name(self) -> str:
        """What computes, for the record."""
        return device_name(self.device)

    @property
    def last_checkpoint(self) -> Path:
        """The newest state, replaced atomically."""
        return self.folder / "checkpoints" / "last.pt"

    @property
    def total_steps(self) -> int:
        """Steps of the whole run."""
        return self.trainer.schedules.total_steps

    def train(self, progress: Progress) -> None:
        """Take all steps that are left."""
        if self.steps_done == 0:
            self.first_health = self._health()
            self.metrics.append({"step": 0, **self.first_health._asdict()})
        saved = flushed = time.monotonic()
        for step, images in self._batches():
            groups = batch_masks(self.config, step)
            outcome = self.trainer.step(step, images, [m.to(self.device) for m in groups])
            self.steps_done = step + 1
            self._record(step, groups, outcome)
            if len(self.pending.records) >= FLUSH_STEPS or self._is_last():
                self._flush()
                now = time.monotonic()
                rate = FLUSH_STEPS * self.config.data.batch_size / (now - flushed)
                self.metrics.speed(self.steps_done, rate)
                flushed = now
                self._show(progress)
            if self._is_due(saved):
                self._save()
                saved = time.monotonic()
        self.metrics.close()

    def _batches(self) -> Iterator[tuple[int, Tensor]]:
        dataset = RandomCropBatches(self.images, self.config.data, self.config.seed)
        todo = range(self.steps_done, self.total_steps)
        for batch in batches(dataset, todo, self.runtime.workers):
            yield batch.step, self._normalised(batch.images)

    def _normalised(self, images: Tensor) -> Tensor:
        data = self.config.data
        return normalise(images.to(self.device, non_blocking=True), data.mean, data.std)

    def _record(self, step: int, groups: list[Masks], outcome: Outcome) -> None:
        """Note a step; the loss follows when it is fetched, the rest is known now."""
        schedules = self.trainer.schedules
        record = {
            "step": self.steps_done,
            "epoch": self.steps_done / self.per_epoch,
            "images": self.steps_done * self.config.data.batch_size,
            "loss": math.nan,
            "lr": schedules.lr(step),
            "weight_decay": schedules.weight_decay(step),
            "ema": schedules.ema(step),
            "context_patches": context_patches(groups),
            "target_patches": groups[0].targets.shape[2],
        }
        if self.steps_done % self.config.watch.every_steps == 0 or self._is_last():
            record |= self._watch(outcome)
        self.pending.records.append(record)
        self.pending.losses.append(outcome.loss)

    def _watch(self, outcome: Outcome) -> dict[str, float]:
        now = self._health()
        warning = verdict(now, self.first_health or now)
        if warning:
            log.warning("step %d: %s", self.steps_done, warning)
        skill = loss_vs_mean_target(outcome.predictions, outcome.targets)
        return {**now._asdict(), "loss_vs_mean_target": skill}

    def _flush(self) -> None:
        """Fetch the losses, refuse a broken one, and write the records."""
        losses = torch.stack(self.pending.losses).tolist()
        for record, loss in zip(self.pending.records, losses, strict=True):
            if not math.isfinite(loss):
                raise self._broken(f"The loss is {loss}", int(record["step"]))
            self.metrics.append(record | {"loss": loss})
        self.shown |= {"loss": losses[-1], "lr": self.pending.records[-1]["lr"]}
        for record in self.pending.records:
            self.shown |= {name: record[name] for name in Health._fields if name in record}
        self.pending = _Pending()

    def _broken(self, what: str, step: int) -> IjepaError:
        return IjepaError(
            f"{what} at step {step}; the last good state is {self.last_checkpoint}. "
            f"Lower optimization.lr or lengthen the warm-up."
        )

    def _show(self, progress: Progress) -> None:
        batch_size = self.config.data.batch_size
        progress(
            "pretrain images",
            self.steps_done * batch_size,
            self.total_steps * batch_size,
            self.shown,
        )

    @torch.no_grad()
    def _health(self) -> Health:
        """Pooled features of the same images each time, as `extract` would make them."""
        data, watch = self.config.data, self.config.watch
        order = stream(self.config.seed, SHUFFLE, 2**31).permutation(len(self.images))
        chosen = _Chosen(self.images, order[: watch.num_images].tolist())
        views = EvaluationBatches(chosen, data.image_px, data.eval_crop_fraction, WATCH_BATCH)
        features = [
            self.model.target_encoder.pooled_layers(self._normalised(batch.images), 1)[:, -1]
            for batch in batches(views, range(len(views)), workers=0)
        ]
        pooled = torch.cat(features).cpu()
        if not pooled.isfinite().all():
            raise self._broken("The target encoder's features are not finite", self.steps_done)
        return health(pooled)

    def _is_last(self) -> bool:
        return self.steps_done == self.total_steps

    def _is_due(self, saved: float) -> bool:
        late = time.monotonic() - saved > self.runtime.checkpoint_seconds
        return late or self._is_last() or self._ends_kept_epoch()

    def _ends_kept_epoch(self) -> bool:
        epochs, rest = divmod(self.steps_done, self.per_epoch)
        return rest == 0 and epochs % self.config.checkpoint_epochs == 0

    def _save(self) -> None:
        if self.pending.records:
            self._flush()
        facts: dict[str, Any] = {"metrics_bytes": self.metrics.flush()}
        facts["first_health"] = list(self.first_health or ())
        state = Checkpoint(
            step=self.steps_done,
            config=self.config,
            model=self.model.state_dict(),
            optimizer=self.trainer.optimizer.state_dict(),
            facts=facts,
        )
        self.last_checkpoint.parent.mkdir(exist_ok=True)
        if self._ends_kept_epoch():
            epoch = self.steps_done // self.per_epoch
            save_checkpoint(self.last_checkpoint.with_name(f"epoch-{epoch:04d}.pt"), state)
        save_checkpoint(self.last_checkpoint, state)

    def _resume(self) -> int:
        """Take up the last checkpoint, if there is one; returns its metrics' length in bytes."""
        if not self.last_checkpoint.exists():
            return 0
        state = load_checkpoint(self.last_checkpoint)
        load_weights(self.model, state.model, self.last_checkpoint)
        self.trainer.optimizer.load_state_dict(state.optimizer)
        self.steps_done = state.step
        self.first_health = Health(*state.facts["first_health"])
        log.info("going on after step %d of %d", self.steps_done, self.total_steps)
        return int(state.facts["metrics_bytes"])


def model_size(config: PretrainConfig) -> tuple[int, int]:
    """Trained parameters of encoder and predictor, without positions; nothing is allocated."""
    with torch.device("meta"):
        model = build_ijepa(config)
    return _count_trained(model.encoder), _count_trained(model.predictor)


class _Chosen:
    """Some images of a split."""

    def __init__(self, images: SplitReader, numbers: list[int]) -> None:
        self._images, self._numbers = images, numbers

    def __len__(self) -> int:
        return len(self._numbers)

    def read_image(self, number: int) -> bytes:
        content: bytes = self._images.read_image(self._numbers[number])
        return content


def _count_trained(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters() if p.requires_grad)
