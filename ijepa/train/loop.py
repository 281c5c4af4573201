"""The training loop: steps, records, checkpoints, and an orderly end.

Pretraining, fine-tuning and the decoder are each a `Task`, which says what one step is. `fit` does
all else, so that every run resumes bit for bit and is stopped, saved and recorded alike.

A checkpoint holds `schema`, `step`, `config` (settings as plain values), `model` and `optimizer`
(state dicts by the names of the parameters), and `facts` (small values of `Task.state_dict` and of
the loop).
"""

import contextlib
import functools
import logging
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Mapping
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from pydantic import BaseModel
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.optim import Optimizer
from torch.utils.data import Dataset

from ijepa.compute import LinearKernel, computing
from ijepa.config import Runtime
from ijepa.data.loader import Batch, batches
from ijepa.distributed import (
    any_rank,
    device_name,
    num_workers,
    pick_device,
    prepared,
    sum_over_ranks,
)
from ijepa.errors import IjepaError, SharedError, StoppedError
from ijepa.files import LAST, link_or_copy
from ijepa.progress import Progress, silent
from ijepa.train.metrics import MetricsLog, Picture, Tracker, refuse_missing
from ijepa.weights import load_checkpoint, load_weights, save_state
from ijepa.world import StopRequest, World, stop_requests

FETCH_STEPS = 10  # losses of so many steps are fetched at once: a fetch makes the device wait
SHOWN_AT_ONCE = 2  # steps after a start that are reported one by one: a step may take a minute
MOST_OF_TIME = 0.02  # that checkpoints may take of a run
ON_CPU = StateDictOptions(full_state_dict=True, cpu_offload=True)  # whole, and on rank 0 alone

Inputs = TypeVar("Inputs")

log = logging.getLogger(__name__)


class Task(ABC, Generic[Inputs]):
    """What is trained, and what one step does; an instance belongs to one call of `fit`.

    A subclass sets the attributes that have no default here.
    """

    model: nn.Module  # all networks; a checkpoint holds their state dict
    optimizer: Optimizer  # of the networks that are trained
    total_steps: int
    name: str  # in the progress bar, such as `pretrain`
    unit: str  # of the progress bar, such as `images`
    units_per_step: int
    bf16 = False  # whether `autocast` computes in bfloat16
    linear: LinearKernel = "torch"  # what multiplies matrices on a CPU, see `pick_linear`
    shapes_vary = False  # whether attention meets new sequence lengths all the time
    shown: tuple[str, ...] = ()  # numbers of `watch` that are shown beside the progress bar
    loss_limit = math.inf  # a loss of so many times the first one is broken
    advice = "Lower lr, or lengthen the warm-up."  # against a broken loss

    def __init__(self, config: BaseModel, runtime: Runtime, world: World) -> None:
        """Keep `config`, which every checkpoint holds, and how to run."""
        refuse_missing(runtime.track)
        self.config, self.runtime, self.world = config, runtime, world
        self.device = pick_device(runtime.device)

    @abstractmethod
    def batches(self, numbers: range) -> Generator[Batch]:
        """Make the batches of these numbers, in order."""

    @abstractmethod
    def prepare(self, batch: Batch) -> Inputs:
        """Bring a batch to the device; for a GPU, a thread calls this ahead of the step."""

    @abstractmethod
    def step(self, step: int, inputs: Inputs) -> dict[str, Any]:
        """Update the networks once by what `prepare` returned; steps count from 0.

        Returns the step's record; numbers still on the device are () tensors, `loss` is one.
        """

    def set_phase(self, step: int) -> None:  # noqa: ARG002  # for tasks that have phases
        """Choose what is trained in this step; also called before a checkpoint is loaded."""
        return

    def watch(self, step: int) -> dict[str, float]:  # noqa: ARG002  # for tasks that have it
        """Check the networks after `step` steps, where a check is due; changes no later step.

        A `FloatingPointError` says what is not finite.
        """
        return {}

    def pictures(self) -> Mapping[str, Picture]:
        """Pictures of the newest `watch`, for TensorBoard; called on rank 0 alone."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """Small values that a checkpoint holds beside networks and optimizer; all ranks call it."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load what `state_dict` returned; networks and optimizer are loaded already."""

    def kept_names(self, step: int) -> list[str]:  # noqa: ARG002  # for tasks that have it
        """File names under which the checkpoint after `step` steps is kept; for most steps none."""
        return []

    def keys(self, batch: int) -> list[str]:  # noqa: ARG002  # for tasks that have it
        """The first keys of a recent batch, for messages."""
        return []

    def speed(self, per_second: float) -> dict[str, float]:
        """What TensorBoard shows of the speed, given the units done in a second."""
        return {f"{self.unit}_per_second": per_second}

    def loaded(
        self, dataset: Dataset[Batch], numbers: range | None, workers: int | None = None
    ) -> Generator[Batch]:
        """Batches of a data set, made ahead by worker processes; see `data.loader.batches`."""
        workers = num_workers(self.runtime, self.device) if workers is None else workers
        return batches(dataset, numbers, workers, pin_memory=self.device.type == "cuda")

    def autocast(self) -> torch.autocast:
        """The precision that networks compute in."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16)

    @functools.cached_property
    def device_name(self) -> str:
        """The device and its kernels, for records."""
        return device_name(self.device, self.world, self.linear)


def fit(task: Task[Any], folder: Path, progress: Progress = silent) -> None:
    """Take all steps that are left: from the checkpoint in `folder`, or from the beginning.

    The folder gets `checkpoints/last.pt`, `metrics.jsonl` and `tensorboard/`.

    Raises:
        StoppedError: a signal asked for it; the state is saved.
        IjepaError: loss, gradients, weights or a health check are not finite, the loss exploded, or
            a checkpoint is damaged.
    """
    run = _Run(task, folder, progress)
    with (
        contextlib.closing(run),
        computing(task.device, linear=task.linear, shapes_vary=task.shapes_vary),
        stop_requests() as asked,
    ):
        if run.steps_done < task.total_steps:
            run.take_steps(asked)


class _Run:
    """The state of one call of `fit`; all ranks call its methods alike."""

    def __init__(self, task: Task[Any], folder: Path, progress: Progress) -> None:
        self.task, self.folder, self.progress, self.world = task, folder, progress, task.world
        self.last = folder / LAST
        self.steps_done, self.first_loss = 0, math.nan
        self.pending: list[dict[str, Any]] = []  # records with numbers still on the device
        self.clock_began, self.clock_step = time.monotonic(), 0  # since when speed is measured
        self.shown: dict[str, float] = {}
        self.metrics: MetricsLog | None = None  # of rank 0
        self.saved_at, self.saving_seconds = time.monotonic(), 0.0  # of the newest checkpoint
        self.resume()

    def resume(self) -> None:
        """Load the last checkpoint, if there is one, and cut the metrics to its length."""
        metrics_bytes, world = 0, self.world
        if self.last.exists():
            networks = self.task.model, self.task.optimizer
            body = load_full_state(*networks, self.last, self.task.set_phase)
            self.steps_done, facts = body["step"], body["facts"]
            self.first_loss, metrics_bytes = facts["first_loss"], facts["metrics_bytes"]
            self.task.load_state_dict(facts)
            if world.is_rank_0:
                log.info("continuing after step %d of %d", self.steps_done, self.task.total_steps)
            if world.is_rank_0 and facts["world_size"] != world.size:
                log.warning(
                    "the run began with %d processes and goes on with %d: images, crops and masks "
                    "of each step stay the same, but sums are rounded differently.",
                    facts["world_size"], world.size,
                )  # fmt: skip
        if world.is_rank_0:
            kind, config = self.task.runtime.track, self.task.config.model_dump(mode="json")
            tracker = None if kind == "none" else Tracker(kind, self.folder, config)
            self.metrics = MetricsLog(self.folder, metrics_bytes, self.steps_done, tracker)

    def take_steps(self, asked: StopRequest) -> None:
        """Take steps until the end, a signal or a broken number."""
        task, first = self.task, self.steps_done
        self.report()
        if first == 0 and (numbers := self.watch()) and self.metrics:
            self.metrics.append({"step": 0, **numbers})
            self.shown |= {n: v for n, v in numbers.items() if n in task.shown}
        todo = range(self.steps_done, task.total_steps)
        made = prepared(task.batches(todo), task.prepare, task.device)
        with contextlib.closing(made):  # else worker processes outlive an error
            for inputs in made:
                if self.steps_done == first:
                    self.report()  # what came before the first step is no measure of speed
                    self.clock_began, self.clock_step = time.monotonic(), first
                record = {"step": self.steps_done + 1, **task.step(self.steps_done, inputs)}
                self.steps_done += 1
                self.pending.append(record | self.watch())
                taken = self.steps_done - first
                # One process alone may stop at any step, several only when they all check.
                stops_now = self.world.size == 1 and bool(asked)
                if taken % FETCH_STEPS == 0 or self.is_milestone() or stops_now:
                    self.catch_up(asked)
                elif taken <= SHOWN_AT_ONCE:
                    self.fetch()
                    self.report()

    def is_milestone(self) -> bool:
        """Whether this step is saved whatever the time: the last one, or one that is kept."""
        is_last = self.steps_done == self.task.total_steps
        return is_last or bool(self.task.kept_names(self.steps_done))

    def catch_up(self, asked: StopRequest) -> None:
        """Write the records, save if it is due, stop if it is asked for, and show the speed."""
        task = self.task
        self.fetch()
        units = (self.steps_done - self.clock_step) * task.units_per_step
        speed = task.speed(units / (time.monotonic() - self.clock_began))
        stop = any_rank(bool(asked), task.device, self.world)
        least = max(task.runtime.checkpoint_seconds, self.saving_seconds / MOST_OF_TIME)
        is_due = self.world.is_rank_0 and time.monotonic() - self.saved_at > least
        due = any_rank(is_due, task.device, self.world)
        if stop or due or self.is_milestone():
            self.save()
        if stop and self.steps_done < task.total_steps:
            raise StoppedError(
                f"Stopped by {asked.signal_name or 'a signal to another process'} after step "
                f"{self.steps_done:,} of {task.total_steps:,}, which is saved.",
                asked.signal_name,
            )
        if self.metrics:
            self.metrics.show(self.steps_done, speed)
        self.shown |= {n: v for n, v in speed.items() if not n.endswith("_per_second")}
        self.report()
        self.clock_began, self.clock_step = time.monotonic(), self.steps_done

    def report(self) -> None:
        """Tell how many units are done, and the newest numbers."""
        task, size = self.task, self.task.units_per_step
        done, total = self.steps_done * size, task.total_steps * size
        self.progress(f"{task.name} {task.unit}", done, total, dict(self.shown))

    def watch(self) -> dict[str, float]:
        try:
            numbers = self.task.watch(self.steps_done)
        except FloatingPointError as error:
            raise self.broken(str(error), self.steps_done) from error
        if numbers and self.metrics:
            self.metrics.show_pictures(self.steps_done, self.task.pictures())
        return numbers

    def fetch(self) -> None:
        """Fetch what is on the device, refuse a broken number, and write the records."""
        waiting = [(r, n) for r in self.pending for n, value in r.items() if torch.is_tensor(value)]
        sums = sum_over_ranks(torch.stack([r[n] for r, n in waiting]), self.world)
        for (record, name), number in zip(waiting, (sums / self.world.size).tolist(), strict=True):
            record[name] = number
        for record in self.pending:
            step, loss, grad_norm = record["step"], record["loss"], record.get("grad_norm", 0.0)
            if not math.isfinite(loss):
                raise self.broken(f"The loss is {loss}", step)
            if not math.isfinite(grad_norm):
                raise self.broken(f"The gradient norm is {grad_norm}", step)
            if math.isnan(self.first_loss):  # about a sane run's largest
                self.first_loss = loss
            if loss > self.task.loss_limit * self.first_loss:
                grown = f"to {loss:.4g}, from {self.first_loss:.4g} at the start"
                raise self.broken(f"The loss exploded {grown}", step)
            if self.metrics:
                self.metrics.append(record)
            self.shown |= {n: v for n, v in record.items() if n in ("loss", "lr", *self.task.shown)}
        self.pending = []

    def broken(self, what: str, step: int) -> IjepaError | SharedError:
        """The error that ends a run whose numbers are not what they should be."""
        keys = ", ".join(self.task.keys(max(step - 1, 0)))
        last = f"the last good state is {self.last}"
        message = (
            f"{what} at step {step}{f' (images {keys}, ...)' if keys else ''}; "
            f"{last if self.last.exists() else 'there is no earlier state'}. {self.task.advice}"
        )
        return (IjepaError if self.world.is_rank_0 else SharedError)(message)

    def save(self) -> None:
        """Write a checkpoint, once for all of its names; refuse weights that are not finite.

        Most steps do not measure the gradient's norm, so these may be the first to show it. An
        `OSError`, such as a full disk, leaves what was there.
        """
        task = self.task
        trained = [p for group in task.optimizer.param_groups for p in group["params"]]
        if not math.isfinite(float(torch.nn.utils.get_total_norm(trained))):
            raise self.broken("The weights are no longer finite", self.steps_done)
        began = time.monotonic()
        weights = get_model_state_dict(task.model, options=ON_CPU)
        optimizer = get_optimizer_state_dict(task.model, task.optimizer, options=ON_CPU)
        facts = task.state_dict()
        if not self.metrics:
            return
        body = {
            "step": self.steps_done,
            "config": task.config.model_dump(mode="json"),
            "model": weights,
            "optimizer": optimizer,
            "facts": {
                **facts,
                "metrics_bytes": self.metrics.flush(),
                "first_loss": self.first_loss,
                "world_size": self.world.size,
                "total_steps": task.total_steps,
            },
        }
        kept = task.kept_names(self.steps_done)
        paths = [*(self.last.with_name(name) for name in kept), self.last]
        self.last.parent.mkdir(exist_ok=True)
        save_state(paths[0], body)
        for path in paths[1:]:
            link_or_copy(paths[0], path)
        self.saved_at = time.monotonic()
        self.saving_seconds = self.saved_at - began

    def close(self) -> None:
        """Put the metrics on disk, and end the tracked run, also of a run that fails."""
        if self.metrics:
            self.metrics.close()


def load_full_state(
    model: nn.Module, optimizer: Optimizer, path: Path, set_phase: Callable[[int], None]
) -> dict[str, Any]:
    """Load a checkpoint into networks and optimizer, exactly or not at all; returns all of it.

    `set_phase` gets the checkpoint's last step before the optimizer's state is loaded, for it may
    decide which parameters have one. An `IjepaError` refuses a file that is damaged, of other
    networks, or of weights alone.
    """
    body = load_checkpoint(path)
    if not body["optimizer"]:
        raise IjepaError(
            f"{path} holds weights alone, without the optimizer's state: a run cannot go on from "
            f"it. Remove it to start anew; `ijepa extract` and `finetune` take it as an encoder."
        )
    load_weights(model, body["model"], path)
    set_phase(body["step"] - 1)
    try:
        set_optimizer_state_dict(model, optimizer, body["optimizer"], options=ON_CPU)
    except (KeyError, RuntimeError, ValueError) as error:
        raise IjepaError(f"{path} holds no optimizer state of these networks.") from error
    return body
