"""The training loop of one process: steps, records, checkpoints, and an orderly end."""

import contextlib
import logging
import math
import time
from collections.abc import Generator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ijepa.compute import LinearKernel, computing, linear_name, pick_linear
from ijepa.config import PretrainConfig, Runtime
from ijepa.data.shards import SplitReader
from ijepa.distributed import (
    any_rank,
    device_name,
    in_parallel,
    is_shared_out,
    lead,
    mean_over_ranks,
    pick_device,
    wait_for_all,
)
from ijepa.errors import IjepaError, SharedError, StoppedError
from ijepa.jepa.flops import step_flops, utilisation
from ijepa.jepa.masks import Masks, check_masks, context_patches, mask_shapes
from ijepa.jepa.model import IJepa, build_ijepa
from ijepa.jepa.monitor import Health
from ijepa.jepa.step import Outcome, Trainer
from ijepa.jepa.vit import compile_blocks, save_memory
from ijepa.progress import Progress
from ijepa.recipes import dump_yaml
from ijepa.stage import write_bytes
from ijepa.train.checkpoint import CheckpointWriter
from ijepa.train.feeds import open_feed
from ijepa.train.metrics import MetricsLog
from ijepa.train.prefetch import StepInputs, step_inputs
from ijepa.train.starting import load_initial_weights
from ijepa.train.state import full_state, restore, share_out
from ijepa.train.stopping import StopRequest, stop_requests
from ijepa.train.watch import Watch
from ijepa.weights import Checkpoint, checkpoint_body, load_checkpoint
from ijepa.world import World

if TYPE_CHECKING:
    from ijepa.data.stream import RemoteSplit

FLUSH_STEPS = 10  # losses are fetched from the device together, so that it need not wait each step
SHOWN = (*Health._fields, "neighbour_accuracy")  # beside the bar
FEW_SHAPES = 16  # of masks; with more, kernels that are planned for each shape cost more than gain

log = logging.getLogger(__name__)


class _BrokenError(Exception):
    """Loss, gradients or features are not what they should be; says where, and what to do."""


@dataclass
class _Pending:
    """Records whose numbers are still on the device."""

    records: list[dict[str, float]] = field(default_factory=list)
    losses: list[Tensor] = field(default_factory=list)  # () each
    norms: list[Tensor] = field(default_factory=list)  # () of the records that have a norm


class Run:
    """Networks, optimizer, metrics and the number of steps done; `train` takes the rest."""

    def __init__(
        self,
        folder: Path,
        config: PretrainConfig,
        images: "SplitReader | RemoteSplit",
        runtime: Runtime,
        world: World = World(),  # noqa: B008  # a constant
        init: Path | None = None,
    ) -> None:
        """Begin in `folder` from `init` if given, or take up what an interrupted run left there.

        Raises:
            IjepaError: masks that do not fit, too few images, a checkpoint that does not load.
        """
        check_masks(config.grid, config.masks)
        self.folder, self.config, self.runtime, self.world = folder, config, runtime, world
        self.device = pick_device(runtime.device)
        self.model: IJepa = build_ijepa(config)
        if init and not self.last_checkpoint.exists():
            load_initial_weights(self.model, config, init)
        self.model.to(self.device)
        shares_weights = runtime.parallel == "fsdp" and world.size > 1
        if shares_weights:
            share_out(self.model, self.device, world)
        self.per_epoch = len(images) // config.data.batch_size
        self.feed = open_feed(images, config, runtime, self.device, world)
        self.watch = Watch(config, self.feed.watched(), self.device, world)
        self.trainer = Trainer(self.model, config.optimization, self.per_epoch, runtime.micro_batch)
        self.steps_done, self.first_loss = 0, math.nan
        self.left_out = self.rollbacks = 0  # batches; times that the run went back
        self.pending = _Pending()
        self.shown: dict[str, float] = {}
        self.lengths = (0.0, 0.0)  # patches of a context and of a target, in the newest step
        self.stop_asked = StopRequest()
        self.linear = self._pick_linear()
        self.writer = CheckpointWriter(runtime.checkpoint_seconds, writes=world.leads)
        metrics_bytes = self._resume()
        if runtime.recompute:
            save_memory(self.model.encoder, self.model.predictor)
        if runtime.compile:
            compile_blocks((self.model.encoder, self.model.teacher), self.model.predictor)
        if not shares_weights:
            self.trainer.forward = in_parallel(self.model, self.device, world)
        self.metrics = MetricsLog(folder, metrics_bytes, self.steps_done) if world.leads else None
        if world.leads:
            write_bytes(folder / "config.yaml", dump_yaml(config).encode())

    @property
    def device_name(self) -> str:
        """What computes, for the record."""
        return device_name(self.device, self.world) + linear_name(self.linear)

    @property
    def last_checkpoint(self) -> Path:
        """The newest state, replaced atomically."""
        return self.folder / "checkpoints" / "last.pt"

    @property
    def total_steps(self) -> int:
        """Steps of the whole run."""
        return self.trainer.schedules.total_steps

    def train(self, progress: Progress) -> None:
        """Take all steps that are left.

        Raises:
            StoppedError: a signal asked for it; the state is saved.
            IjepaError: the loss or the features are broken; names the last good state.
        """
        on_gpu = self.device.type == "cuda"
        varies = on_gpu and len(mask_shapes(self.config)) > FEW_SHAPES
        with (
            contextlib.closing(self.writer),
            computing(self.device, linear=self.linear, shapes_vary=varies),
            stop_requests() as self.stop_asked,
        ):
            while not self._is_last():
                try:
                    self._take_steps(progress)
                except _BrokenError as error:
                    self._go_back(error)
        if self.metrics:
            self.metrics.close()

    def _pick_linear(self) -> LinearKernel:
        """By timing, on as many tokens as the target encoder sees; the compiler has its own."""
        if self.runtime.compile:
            return "torch"
        images = self.runtime.micro_batch or self.config.data.batch_size // self.world.size
        tokens = images * self.config.grid[0] * self.config.grid[1]
        dim = self.model.encoder.embed_dim
        return lead(self.world, lambda: pick_linear(self.device, tokens, dim))

    def _take_steps(self, progress: Progress) -> None:
        if self.steps_done == 0:
            self._append({"step": 0, **self._look()})
        flushed, flushed_at = time.monotonic(), self.steps_done
        with contextlib.closing(self._inputs(progress)) as made:
            for inputs in made:
                self._step(inputs)
                if not self._is_fetching():
                    continue
                self._flush()
                steps = self.steps_done - flushed_at
                rate = steps * self.config.data.batch_size / (time.monotonic() - flushed)
                stop = any_rank(bool(self.stop_asked), self.device, self.world)
                due = any_rank(self.writer.is_due(), self.device, self.world)
                if stop or due or self._is_milestone():
                    self._save()
                if stop and not self._is_last():
                    raise self._stopped()
                self._show(progress, rate)
                flushed, flushed_at = time.monotonic(), self.steps_done

    def _go_back(self, broken: _BrokenError) -> None:
        """Take up the last checkpoint, and leave out the batches that were seen since.

        Raises:
            IjepaError: there is no checkpoint, or all that is allowed of this was done.
        """
        self.writer.wait()
        exists = lead(self.world, self.last_checkpoint.exists)  # all wait for what rank 0 writes
        allowed = self.config.watch.rollbacks
        if self.rollbacks == allowed or not exists:
            message = str(broken)
            raise IjepaError(message) if self.world.leads else SharedError(message)
        seen, rollbacks = self.steps_done + self.left_out, self.rollbacks + 1
        if self.metrics:
            self.metrics.close()
        metrics_bytes = self._resume()
        self.left_out, self.rollbacks = seen - self.steps_done, rollbacks
        self.pending = _Pending()
        if self.world.leads:
            self.metrics = MetricsLog(self.folder, metrics_bytes, self.steps_done)
            log.warning(
                "%s Going back to step %d without the batches since (rollback %d of %d).",
                broken,
                self.steps_done,
                rollbacks,
                allowed,
            )
        wait_for_all(self.world)  # nobody may read the checkpoint after this
        self._save()
        self.writer.wait()
        wait_for_all(self.world)

    def _inputs(self, progress: Progress) -> Generator[StepInputs]:
        """What each step needs; numbers of batches are steps, but for what was left out."""
        todo = range(self.steps_done + self.left_out, self.total_steps + self.left_out)
        share = self.world.share(self.config.data.batch_size)
        return step_inputs(self.feed.batches(todo, progress), self.config, share, self.device)

    def _step(self, inputs: StepInputs) -> None:
        step = inputs.number - self.left_out
        with_norm = step == 0 or (step + 1) % self.config.watch.grad_norm_steps == 0
        outcome = self.trainer.step(step, inputs.images, inputs.masks, with_norm=with_norm)
        self.steps_done = step + 1
        self._record(step, inputs.groups, outcome)

    def _record(self, step: int, groups: list[Masks], outcome: Outcome) -> None:
        """Note a step; loss and gradient norm follow when they are fetched, the rest is known."""
        schedules = self.trainer.schedules
        self.lengths = context_patches(groups), groups[0].targets.shape[2]
        record = {
            "step": self.steps_done,
            "epoch": self.steps_done / self.per_epoch,
            "images": self.steps_done * self.config.data.batch_size,
            "loss": math.nan,
            "lr": schedules.lr(step),
            "weight_decay": schedules.weight_decay(step),
            "ema": schedules.ema(step),
            "context_patches": self.lengths[0],
            "target_patches": self.lengths[1],
        }
        if self.left_out:
            record["left_out_batches"] = self.left_out
        if self.steps_done % self.config.watch.every_steps == 0 or self._is_last():
            numbers = self._look()
            record |= numbers | self.watch.judge(numbers, outcome, self.steps_done)
        if outcome.grad_norm is not None:
            record["grad_norm"] = math.nan
            self.pending.norms.append(outcome.grad_norm)
        self.pending.records.append(record)
        self.pending.losses.append(outcome.loss)

    def _look(self) -> dict[str, float]:
        uncompiled = contextlib.nullcontext()
        if self.runtime.compile:  # a look's shapes and precision would be compiled for it alone
            uncompiled = torch.compiler.set_stance("force_eager")
        try:
            with uncompiled:
                return self.watch.look(self.model)
        except FloatingPointError as error:
            raise self._broken(str(error), self.steps_done) from error

    def _flush(self) -> None:
        """Fetch the losses, refuse a broken one, and write the records."""
        both = torch.stack([*self.pending.losses, *self.pending.norms])
        fetched = mean_over_ranks(both, self.world).tolist()
        losses, norms = fetched[: len(self.pending.losses)], fetched[len(self.pending.losses) :]
        for record, loss in zip(self.pending.records, losses, strict=True):
            self._check("loss", loss, int(record["step"]))
            record["loss"] = loss
            if "grad_norm" in record:
                record["grad_norm"] = norms.pop(0)
                self._check("gradient norm", record["grad_norm"], int(record["step"]))
            self._append(record)
            self.shown |= {n: v for n, v in record.items() if n in SHOWN}
        self.shown |= {"loss": losses[-1], "lr": self.pending.records[-1]["lr"]}
        self.pending = _Pending()

    def _append(self, record: dict[str, float]) -> None:
        if self.metrics:
            self.metrics.append(record)

    def _check(self, what: str, value: float, step: int) -> None:
        """The loss of the first step is about the largest that a sane run ever sees."""
        if not math.isfinite(value):
            raise self._broken(f"The {what} is {value}", step)
        if what != "loss":
            return
        if math.isnan(self.first_loss):
            self.first_loss = value
        if value > self.config.watch.loss_limit * self.first_loss:
            raise self._broken(
                f"The loss exploded to {value:.4g}, from {self.first_loss:.4g} at the start", step
            )

    def _broken(self, what: str, step: int) -> _BrokenError:
        self.writer.wait()
        good = f"the last good state is {self.last_checkpoint}"
        if not self.last_checkpoint.exists():
            good = "there is no earlier state"
        keys = ", ".join(self.feed.keys(max(step - 1, 0) + self.left_out))
        return _BrokenError(
            f"{what} at step {step} (images {keys}, ...); {good}. "
            f"Lower optimization.lr or lengthen the warm-up."
        )

    def _show(self, progress: Progress, images_per_second: float) -> None:
        speed = {"images_per_second": images_per_second, **self._flops(images_per_second)}
        self.shown |= {name: value for name, value in speed.items() if name != "images_per_second"}
        if self.metrics:
            self.metrics.show(self.steps_done, speed)
        size = self.config.data.batch_size
        done, total = self.steps_done * size, self.total_steps * size
        progress("pretrain images", done, total, self.shown)

    def _flops(self, images_per_second: float) -> dict[str, float]:
        """Achieved TFLOP/s of one process, and its share of what the device could do."""
        flops = step_flops(self.config, *self.lengths).total
        tflops = flops * images_per_second / self.world.size / 1e12
        share = utilisation(tflops, device_name(self.device))
        return {"tflops": tflops} | ({} if share is None else {"flops_utilisation": share})

    def _is_last(self) -> bool:
        return self.steps_done == self.total_steps

    def _ends_kept_epoch(self) -> bool:
        epochs, rest = divmod(self.steps_done, self.per_epoch)
        return rest == 0 and epochs % self.config.checkpoint_epochs == 0

    def _is_milestone(self) -> bool:
        return self._is_last() or self._ends_kept_epoch()

    def _is_fetching(self) -> bool:
        """All ranks answer alike: one alone may stop at any step, with others only now and then."""
        stops_now = self.world.size == 1 and bool(self.stop_asked)
        return len(self.pending.records) >= FLUSH_STEPS or self._is_milestone() or stops_now

    def _stopped(self) -> StoppedError:
        self.writer.wait()
        if self.metrics:
            self.metrics.close()
        return self.stop_asked.stopped(self.steps_done, self.total_steps)

    def _save(self) -> None:
        """Begin to write a checkpoint; at the end of a kept epoch it stays under that name, too.

        Raises:
            _BrokenError: the weights are not finite, as after a gradient that was not measured.
        """
        if not math.isfinite(self.trainer.weights_norm()):
            raise self._broken("The weights are no longer finite", self.steps_done)
        weights, optimizer = full_state(self.model, self.trainer.optimizer)
        if not self.metrics:
            return
        facts: dict[str, Any] = {
            "metrics_bytes": self.metrics.flush(),
            "first_health": list(self.watch.first or ()),
            "first_loss": self.first_loss,
            "world_size": self.world.size,
            "left_out": self.left_out,
            "rollbacks": self.rollbacks,
        }
        state = Checkpoint(self.steps_done, self.config, weights, optimizer, facts)
        paths = [self.last_checkpoint]
        if self._ends_kept_epoch():
            epoch = self.steps_done // self.per_epoch
            paths.insert(0, self.last_checkpoint.with_name(f"epoch-{epoch:04d}.pt"))
        self.last_checkpoint.parent.mkdir(exist_ok=True)
        # On a CPU a gathered state still shares the optimizer's counters with the training.
        is_copy = is_shared_out(self.model) and self.device.type == "cuda"
        self.writer.save(paths, checkpoint_body(state), is_copy=is_copy)

    def _resume(self) -> int:
        """Take up the last checkpoint, if there is one; returns its metrics' length in bytes."""
        if not self.last_checkpoint.exists():
            return 0
        state = load_checkpoint(self.last_checkpoint)
        source = self.last_checkpoint
        restore(self.model, self.trainer.optimizer, state.model, state.optimizer, source)
        self.steps_done, facts = state.step, state.facts
        self.watch.first = Health(*facts["first_health"])
        self.first_loss = facts["first_loss"]
        self.left_out, self.rollbacks = int(facts["left_out"]), int(facts["rollbacks"])
        if self.world.leads:
            log.info("going on after step %d of %d", self.steps_done, self.total_steps)
            self._announce(int(facts["world_size"]))
        return int(facts["metrics_bytes"])

    def _announce(self, size_before: int) -> None:
        if size_before != self.world.size:
            log.warning(
                "the run began with %d processes and goes on with %d: images, crops and masks of "
                "each step stay the same, sums are rounded otherwise.",
                size_before,
                self.world.size,
            )
