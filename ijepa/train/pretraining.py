"""Pretraining as a task: batches and masks, the optimizer step, health checks."""

import contextlib
import logging
from collections.abc import Generator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

from ijepa.compute import pick_linear
from ijepa.config import PretrainConfig, Runtime
from ijepa.data.cache import CachedCropBatches, DecodedImages
from ijepa.data.loader import Batch, RandomCropBatches, StepPlan, batches
from ijepa.data.shards import Sample, SplitReader
from ijepa.data.stream import Lanes, RemoteSplit, StreamedCropBatches, workers_for
from ijepa.distributed import device_name, in_parallel, lead, num_workers, pick_device
from ijepa.errors import IjepaError
from ijepa.jepa.augment import normalise
from ijepa.jepa.flops import step_flops, utilisation
from ijepa.jepa.masks import (
    Masks,
    batch_masks,
    check_masks,
    context_patches,
    mask_shapes,
    part_of,
)
from ijepa.jepa.model import IJepa, build_ijepa
from ijepa.jepa.monitor import Health, loss_vs_mean_target
from ijepa.jepa.rng import SHUFFLE, stream
from ijepa.jepa.step import Outcome, Trainer
from ijepa.jepa.vit import compile_blocks, save_memory
from ijepa.progress import Progress
from ijepa.train.loop import Task
from ijepa.train.watch import Watch
from ijepa.weights import check_weights
from ijepa.world import World

FEW_SHAPES = 16  # of masks; with more, kernels that are planned for each shape cost more than gain
POSITIONS = ("pos_embed", "predictor_pos_embed")  # fixed tables, which belong to the run's grid
SHOWN_KEYS = 3  # of a batch whose loss is broken
REMEMBERED = 100  # batches of a stream; losses are fetched a few steps later

Parts = Mapping[str, Mapping[str, Any]]  # state dicts by network

log = logging.getLogger(__name__)


class StepInputs(NamedTuple):
    """Images and masks of one step.

    Attributes:
        images: (B, 3, height, width) float, normalised, on the device; of this process.
        masks: of these images, on the device.
        groups: masks of all processes, on the CPU.
    """

    images: Tensor
    masks: list[Masks]
    groups: list[Masks]


class PretrainTask(Task[StepInputs]):
    """The three networks of a run, their optimizer and schedules."""

    config: PretrainConfig
    model: IJepa
    unit = "pretrain images"
    shown = (*Health._fields, "neighbour_accuracy")
    advice = "Lower optimization.lr or lengthen the warm-up."

    def __init__(
        self,
        config: PretrainConfig,
        feed: "LocalFeed | StreamFeed",
        runtime: Runtime,
        world: World = World(),  # noqa: B008  # a constant
        init: tuple[str, Parts] | None = None,
    ) -> None:
        """Make the networks, on the device and ready to train.

        Args:
            config: of the run.
            feed: where its batches come from.
            runtime: device, micro-batches, compiling, sharding.
            world: this process among all.
            init: name and weights to start from, see `load_initial_weights`; None: random ones.

        Raises:
            IjepaError: masks or weights that do not fit.
        """
        check_masks(config.grid, config.masks)
        self.config, self._runtime, self._world = config, runtime, world
        self.device = device = pick_device(runtime.device)
        self.model = build_ijepa(config)
        if init:
            load_initial_weights(self.model, *init)
        self.model.to(device)
        shards_weights = runtime.parallel == "fsdp" and world.size > 1
        if shards_weights:
            shard_weights(self.model, device, world)
        self._feed, self.size = feed, config.data.batch_size
        self._per_epoch = feed.num_images // self.size
        self._trainer = Trainer(
            self.model, config.optimization, self._per_epoch, runtime.micro_batch
        )
        self.optimizer = self._trainer.optimizer
        self.total_steps = self._trainer.schedules.total_steps
        self._watch = Watch(config, feed.watched(), device, world)
        self._outcome: Outcome | None = None  # of a step after which the encoders are checked
        self._lengths = (0.0, 0.0)  # patches of a context and of a target, in the newest step
        self.shapes_vary = device.type == "cuda" and len(mask_shapes(config)) > FEW_SHAPES
        self.loss_limit, self.rollbacks = config.watch.loss_limit, config.watch.rollbacks
        if runtime.recompute:
            save_memory(self.model.encoder, self.model.predictor)
        if runtime.compile:  # the compiler has its own matrix products
            compile_blocks((self.model.encoder, self.model.teacher), self.model.predictor)
        else:
            images = runtime.micro_batch or self.size // world.size
            tokens = images * config.grid[0] * config.grid[1]
            dim = self.model.encoder.embed_dim
            self.linear = lead(world, lambda: pick_linear(device, tokens, dim))
        if not shards_weights:
            self._trainer.forward = in_parallel(self.model, device, world)

    def batches(self, numbers: range) -> Generator[Batch]:
        """Random crops of each step, in order."""
        return self._feed.batches(numbers)

    def keys(self, batch: int) -> list[str]:
        """The first images of a batch."""
        return self._feed.keys(batch)

    def prepare(self, batch: Batch) -> StepInputs:
        """Draw the batch's masks, and bring both to the device."""
        groups = batch_masks(self.config, batch.step)
        masks = masks_on(part_of(groups, self._world.share(self.size)), self.device)
        pixels = batch.images.to(self.device, non_blocking=True)
        data = self.config.data
        return StepInputs(normalise(pixels, data.mean, data.std), masks, groups)

    def step(self, step: int, inputs: StepInputs) -> dict[str, Any]:
        """Predict targets from contexts; AdamW on the encoder and predictor, EMA on the target."""
        done, schedules = step + 1, self._trainer.schedules
        with_norm = step == 0 or done % self.config.watch.grad_norm_steps == 0
        outcome = self._trainer.step(step, inputs.images, inputs.masks, with_norm=with_norm)
        self._outcome = outcome if self._is_watched(done) else None
        self._lengths = context_patches(inputs.groups), inputs.groups[0].targets.shape[2]
        record = {
            "epoch": done / self._per_epoch,
            "images": done * self.size,
            "loss": outcome.loss,
            "lr": schedules.lr(step),
            "weight_decay": schedules.weight_decay(step),
            "ema": schedules.ema(step),
            "context_patches": self._lengths[0],
            "target_patches": self._lengths[1],
        }
        return record if outcome.grad_norm is None else record | {"grad_norm": outcome.grad_norm}

    def watch(self, step: int) -> dict[str, float]:
        """Health of the encoders, and how much better than the mean target the step predicted."""
        if not self._is_watched(step):
            return {}
        uncompiled = contextlib.nullcontext()
        if self._runtime.compile:  # shapes and precision of a check would be compiled for it alone
            uncompiled = torch.compiler.set_stance("force_eager")
        with uncompiled:
            numbers = self._watch.look(self.model, step)
        if self._outcome:
            predictions, targets = self._outcome.predictions, self._outcome.targets
            numbers["loss_vs_mean_target"] = loss_vs_mean_target(predictions, targets)
        return numbers

    def state(self) -> dict[str, Any]:
        """Health at the start, which later checks are held against."""
        return {"first_health": list(self._watch.first or ())}

    def load_state(self, state: dict[str, Any]) -> None:
        """See `state`; the copy of the target encoder follows the restored one."""
        self._watch.first = Health(*state["first_health"])
        self.model.renew_teacher()

    def kept_name(self, step: int) -> str:
        """A checkpoint is kept every `checkpoint_epochs`."""
        epochs, rest = divmod(step, self._per_epoch)
        is_kept = rest == 0 and epochs % self.config.checkpoint_epochs == 0
        return f"epoch-{epochs:04d}.pt" if is_kept else ""

    def speed(self, per_second: float) -> dict[str, float]:
        """Adds achieved TFLOP/s of one process, and its share of what the device could do."""
        flops = step_flops(self.config, *self._lengths).total
        tflops = flops * per_second / self._world.size / 1e12
        share = utilisation(tflops, device_name(self.device))
        found = super().speed(per_second) | {"tflops": tflops}
        return found | ({} if share is None else {"flops_utilisation": share})

    def _is_watched(self, step: int) -> bool:
        return step % self.config.watch.every_steps == 0 or step == self.total_steps


def load_initial_weights(model: IJepa, source: str, parts: Parts) -> None:
    """Start networks from given weights.

    Args:
        model: changed in place; position tables stay its own.
        source: where the weights come from, for messages.
        parts: state dicts of `encoder`, `target_encoder` (one of them is enough) and `predictor`,
            which starts from random weights where it is missing or of another size.

    Raises:
        IjepaError: an encoder of another architecture.
    """
    context, target = parts.get("encoder"), parts.get("target_encoder")
    _load(model.encoder, context or target or {}, f"{source} (encoder)")
    _load(model.target_encoder, target or context or {}, f"{source} (target encoder)")
    try:
        _load(model.predictor, parts["predictor"], f"{source} (predictor)")
    except (KeyError, IjepaError) as error:
        reason = str(error) if isinstance(error, IjepaError) else f"{source} holds none"
        log.warning("The predictor starts from random weights: %s", reason)


def _load(module: nn.Module, weights: Mapping[str, Any], source: str) -> None:
    own = {name: value for name, value in module.state_dict().items() if name in POSITIONS}
    given = {**weights, **own}
    check_weights(module, given, source)
    module.load_state_dict(given)


def shard_weights(model: IJepa, device: torch.device, world: World) -> None:
    """FSDP2: each process keeps a shard of every weight, and gathers a block to compute it.

    The predictor is gathered at once: its first and last block are not computed as a whole.
    """
    mesh = init_device_mesh(device.type, (world.size,))
    for encoder in (model.encoder, model.target_encoder):
        for block in encoder.blocks:
            fully_shard(block, mesh=mesh)
        fully_shard(encoder, mesh=mesh, reshard_after_forward=True)  # the target has no backward
        for method in ("pooled_layers", "forward_layers"):
            register_fsdp_forward_method(encoder, method)
    fully_shard(model.predictor, mesh=mesh)


def masks_on(groups: list[Masks], device: torch.device) -> list[Masks]:
    """Masks of several groups on the device; for a GPU in one copy from pinned memory."""
    if device.type != "cuda":
        return groups
    tensors = [tensor for masks in groups for tensor in masks]
    packed = torch.cat([tensor.flatten() for tensor in tensors]).pin_memory()
    parts = torch.split(packed.to(device, non_blocking=True), [t.numel() for t in tensors])
    shaped = iter([part.view(like.shape) for part, like in zip(parts, tensors, strict=True)])
    return [Masks(*pair) for pair in zip(shaped, shaped, strict=True)]


def open_feed(
    images: SplitReader | RemoteSplit,
    config: PretrainConfig,
    runtime: Runtime,
    world: World,
    progress: Progress,
) -> "LocalFeed | StreamFeed":
    """Where the batches of a run come from, of this process alone.

    Raises:
        IjepaError: a cache is asked for, but the images are elsewhere.
    """
    if isinstance(images, SplitReader):
        return LocalFeed(images, config, runtime, world, progress)
    if runtime.cache != "none":
        raise IjepaError(
            f"--cache {runtime.cache} needs a shard set on this machine; copy it here, or leave "
            f"--cache away."
        )
    return StreamFeed(images, config, runtime, world)


def _plan(num_images: int, config: PretrainConfig, world: World) -> StepPlan:
    repeat_every = config.masks.group_size if config.shared_draws else None
    share = world.share(config.data.batch_size)
    return StepPlan(num_images, config.data, config.seed, share, repeat_every)


class LocalFeed:
    """Images of this machine: exact epochs, perfectly shuffled."""

    def __init__(
        self,
        images: SplitReader,
        config: PretrainConfig,
        runtime: Runtime,
        world: World,
        progress: Progress,
    ) -> None:
        self._images, self._config, self._runtime = images, config, runtime
        self.num_images, self._progress = len(images), progress
        self._device = pick_device(runtime.device)
        self._plan = _plan(len(images), config, world)
        self._decoded: DecodedImages | None = None

    def batches(self, numbers: range) -> Generator[Batch]:
        """Batches of these numbers, in order."""
        workers = num_workers(self._runtime, self._device)
        if self._runtime.cache == "none":
            crops, on_gpu = RandomCropBatches(self._images, self._plan), self._device.type == "cuda"
            yield from batches(crops, numbers, workers, pin_memory=on_gpu)
            return
        if self._decoded is None:  # a run that goes back begins its batches again
            self._decoded = DecodedImages(self._images, self._device, workers, self._progress)
        cached = CachedCropBatches(self._decoded, self._plan)
        yield from (cached[number] for number in numbers)

    def keys(self, batch: int) -> list[str]:
        """The first keys of a batch of all processes."""
        numbers = self._plan.numbers(batch)[:SHOWN_KEYS]
        return self._images.keys(numbers)

    def watched(self) -> list[Sample]:
        """Samples for health checks, drawn from the whole split; a function of the seed."""
        order = stream(self._config.seed, SHUFFLE, 2**31).permutation(self.num_images)
        chosen = order[: self._config.watch.num_images]
        return [self._images.read_sample(int(number)) for number in chosen]


class StreamFeed:
    """Shards of elsewhere, read from start to end, shuffled a buffer at a time."""

    def __init__(
        self, images: RemoteSplit, config: PretrainConfig, runtime: Runtime, world: World
    ) -> None:
        self._images, self._config, self.num_images = images, config, len(images)
        device, count = pick_device(runtime.device), config.stream.lanes
        mine = range(world.rank * count, (world.rank + 1) * count)
        self._lanes = Lanes(images, config.seed, config.stream.buffer, mine, world.size * count)
        self._workers = workers_for(count, num_workers(runtime, device))
        self._plan = _plan(len(images), config, world)
        self._keys: dict[int, list[str]] = {}
        self._on_gpu, self._leads = device.type == "cuda", world.leads

    def batches(self, numbers: range) -> Generator[Batch]:
        """Batches of these numbers, in order."""
        if numbers.start and not self._images.counted and self._leads:
            log.warning(
                "no index says how many images each tar holds, so the images go on about where "
                "they stopped, not exactly there."
            )
        dataset = StreamedCropBatches(self._lanes, self._plan, numbers)
        for batch in batches(dataset, None, self._workers, pin_memory=self._on_gpu):
            self._keys[batch.step] = list(batch.keys[:SHOWN_KEYS])
            self._keys.pop(batch.step - REMEMBERED, None)
            yield batch

    def keys(self, batch: int) -> list[str]:
        """The first keys of a recent batch of this process."""
        return self._keys.get(batch, [])

    def watched(self) -> list[Sample]:
        """Samples for health checks, from the starts of shards, so that few bytes are read."""
        return self._images.first_samples(self._config.watch.num_images)
