"""Pretraining as a task: batches and masks, the optimizer step, health checks."""

import contextlib
import itertools
import logging
from collections.abc import Callable, Generator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ijepa.arrays import Ints
from ijepa.compute import pick_linear
from ijepa.config import PretrainConfig, Runtime
from ijepa.data.loader import Batch, CachedCropBatches, RandomCropBatches, StepPlan
from ijepa.data.shards import SplitReader
from ijepa.data.stream import Lanes, RemoteSplit, StreamedCropBatches, workers_for
from ijepa.distributed import from_all, from_rank_0, in_parallel, moved, num_workers
from ijepa.errors import IjepaError
from ijepa.files import BEST
from ijepa.jepa.augment import normalise
from ijepa.jepa.flops import step_flops, utilisation
from ijepa.jepa.masks import Masks, batch_masks, check_masks, mask_statistics, part_of
from ijepa.jepa.model import IJepa, build_ijepa, compile_blocks
from ijepa.jepa.monitor import loss_vs_mean_target
from ijepa.jepa.rng import SHUFFLE, stream
from ijepa.jepa.schedules import steps_per_epoch
from ijepa.jepa.step import Outcome, Trainer
from ijepa.jepa.verdict import Health
from ijepa.jepa.vit import adapt_channels, adaptation
from ijepa.progress import Progress, silent
from ijepa.train.loop import Task
from ijepa.train.metrics import Picture
from ijepa.train.watch import CheckedImages, Watch
from ijepa.weights import load_weights
from ijepa.world import World

SAMPLED = 50  # batches whose masks are drawn to count their shapes
FEW_SHAPES = 16  # of masks; with more, planning a kernel for each shape costs more than it gains
POSITIONS = ("pos_embed", "predictor_pos_embed")  # fixed tables, which belong to the run's grid
SHOWN_KEYS = 3  # of a batch whose loss is broken
REMEMBERED = 100  # batches of a stream; losses are fetched a few steps later

Parts = Mapping[str, Mapping[str, Any]]  # state dicts by network
# Normalised images (B, C, height, width) of this process and their masks, on the device; the masks
# of all processes, on the CPU.
Inputs = tuple[Tensor, list[Masks], list[Masks]]

log = logging.getLogger(__name__)


class PretrainTask(Task[Inputs]):
    """The three networks of a run, their optimizer, and the images that they learn from."""

    config: PretrainConfig
    model: IJepa
    name = "pretrain"
    unit = "images"
    shown = (*Health._fields, "neighbour_accuracy")
    advice = "Lower optimization.lr or lengthen the warm-up."
    render: Callable[[CheckedImages], Mapping[str, Picture]] | None = None  # of a health check

    def __init__(
        self,
        config: PretrainConfig,
        images: SplitReader | RemoteSplit,
        runtime: Runtime,
        world: World = World(),  # noqa: B008  # a constant
        init: tuple[str, Parts] | None = None,
        progress: Progress = silent,
    ) -> None:
        """Make the networks, on the device and ready to train.

        A split on this machine gives exact epochs; a remote one is streamed. `init` is the name and
        the weights to start from, see `load_initial_weights`. `progress` counts the images that are
        decoded for a cache.
        """
        super().__init__(config, runtime, world)
        check_masks(config.grid, config.masks)
        if isinstance(images, RemoteSplit) and runtime.cache != "none":
            raise IjepaError(
                f"--cache {runtime.cache} needs a shard set on this machine; copy it here, or "
                f"leave --cache away."
            )
        self._images, self._progress = images, progress
        self._batch_size = self.units_per_step = config.data.batch_size
        self._streamed_keys: dict[int, list[str]] = {}  # of recent batches, by number
        self._bad = set[str]()  # samples of a stream without an image: keys and faults
        count = config.watch.num_images  # of a health check; always the same
        taken: int | Ints = len(images)
        if isinstance(images, RemoteSplit):
            if config.watch.held_out:
                raise IjepaError(
                    "watch.held_out needs a shard set on this machine; copy it here, or set "
                    "watch.held_out=false."
                )
            watched = images.first_samples(count)  # from the starts of shards: few bytes are read
            if not watched:
                raise IjepaError(
                    f"{images.urls[0]} and the shards after it hold no image that decodes; see "
                    f"stream.member, which names one, and `ijepa shard` without stream.max_bad."
                )
        else:
            checked, taken = chosen_images(config, len(images))
            watched = [images.read_sample(int(number)) for number in checked]
        share = world.share(self._batch_size)
        repeat_every = config.masks.group_size if config.shared_draws else None
        self._plan = StepPlan(taken, config.data, config.seed, share, repeat_every)
        self._per_epoch = steps_per_epoch(len(images), config)
        self._make_networks(init)
        self._watch = Watch(config, watched, self.device, world)
        self._best: dict[str, float] = {}  # step and accuracy of the best health check
        self._outcome: Outcome | None = None  # of a step after which the encoders are checked
        self._lengths = (0.0, 0.0)  # patches of a context and of a target, in the newest step
        on_gpu = self.device.type == "cuda"
        self.shapes_vary = on_gpu and len(mask_statistics(config, SAMPLED).shapes) > FEW_SHAPES
        self.loss_limit = config.watch.loss_limit

    def _make_networks(self, init: tuple[str, Parts] | None) -> None:
        config, runtime, world = self.config, self.runtime, self.world
        self.model = model = build_ijepa(config)
        if init:
            load_initial_weights(model, *init)
        model.to(self.device)
        self._trainer = Trainer(model, config.optimization, self._per_epoch, runtime.micro_batch)
        self.optimizer = self._trainer.optimizer
        self.total_steps = self._trainer.schedules.total_steps
        if runtime.recompute:
            model.encoder.grad_checkpointing = model.predictor.grad_checkpointing = True
        if runtime.compile:  # the compiler has its own matrix products
            compile_blocks((model.encoder, model.teacher), model.predictor)
        else:
            images = runtime.micro_batch or self._batch_size // world.size
            tokens, dim = images * config.grid[0] * config.grid[1], model.encoder.embed_dim
            self.linear = from_rank_0(world, lambda: pick_linear(self.device, tokens, dim))
        self._trainer.forward = in_parallel(model, self.device, world)

    def batches(self, numbers: range) -> Generator[Batch]:
        """Random crops of the images of this process."""
        images, plan = self._images, self._plan
        workers = num_workers(self.runtime, self.device)
        if not isinstance(images, RemoteSplit):
            if self.runtime.cache == "none":
                yield from self.loaded(RandomCropBatches(images, plan), numbers)
            else:
                cached = CachedCropBatches(images, plan, self.device, workers, self._progress)
                yield from map(cached.__getitem__, numbers)
            return
        # Shards read from start to end, shuffled a buffer at a time.
        if numbers.start and not images.counted and self.world.is_rank_0:
            log.warning(
                "no index says how many images each tar holds, so the images go on about where "
                "they stopped, not exactly there."
            )
        config, count, (rank, size) = self.config, self.config.stream.lanes, self.world[:2]
        mine = range(rank * count, (rank + 1) * count)
        lanes = Lanes(images, config.seed, config.stream.buffer, mine, size * count)
        dataset = StreamedCropBatches(lanes, plan, numbers)
        for batch in self.loaded(dataset, None, workers_for(count, workers)):
            self._streamed_keys[batch.step] = list(batch.keys[:SHOWN_KEYS])
            self._streamed_keys.pop(batch.step - REMEMBERED, None)
            self._bad.update(batch.bad)
            if len(self._bad) > config.stream.max_bad:
                raise IjepaError(
                    f"At least {len(self._bad):,} samples have no image that decodes, "
                    f"{config.stream.max_bad:,} are allowed ({min(self._bad)}); mend them, or "
                    f"allow more with --set stream.max_bad=N."
                )
            yield batch

    def bad_samples(self) -> dict[str, int]:
        """The number of samples of a stream without an image, if any; all processes call it."""
        bad = set().union(*from_all(self.world, self._bad))
        if bad and self.world.is_rank_0:
            log.warning(
                "%d samples have no image that decodes (%s); others of their batches took their "
                "place.", len(bad), min(bad),
            )  # fmt: skip
        return {"bad_samples": len(bad)} if bad else {}

    def keys(self, batch: int) -> list[str]:
        """Keys of the first images of a batch; of a stream, only this process's."""
        if isinstance(self._images, RemoteSplit):
            return self._streamed_keys.get(batch, [])
        return self._images.keys(self._plan.numbers(batch)[:SHOWN_KEYS])

    def prepare(self, batch: Batch) -> Inputs:
        """Draw the batch's masks, and bring both to the device."""
        groups = batch_masks(self.config, batch.step)
        masks = masks_on(
            part_of(groups, self.world.share(self._batch_size), self._batch_size), self.device
        )
        pixels = moved(batch.images, self.device)
        data = self.config.data
        return normalise(pixels, data.mean, data.std), masks, groups

    def step(self, step: int, inputs: Inputs) -> dict[str, Any]:
        """Predict targets from contexts; AdamW on the encoder and predictor, EMA on the target."""
        images, masks, groups = inputs
        done, schedules = step + 1, self._trainer.schedules
        with_norm = step == 0 or done % self.config.watch.grad_norm_steps == 0
        outcome = self._trainer.step(step, images, masks, with_norm=with_norm)
        self._outcome = outcome if self._is_watched(done) else None
        context_patches = sum(group.context.numel() for group in groups)
        draws = self.config.masks.draws_per_image
        of_draws = groups[:: len(groups) // draws]  # targets have one size in a draw
        target_patches = sum(group.targets.shape[2] for group in of_draws)
        self._lengths = (
            context_patches / (self._batch_size * draws),
            target_patches / draws if draws > 1 else target_patches,
        )
        norm = {} if outcome.grad_norm is None else {"grad_norm": outcome.grad_norm}
        return {
            "epoch": done / self._per_epoch,
            "images": done * self._batch_size,
            "loss": outcome.loss,
            "lr": schedules.lr(step),
            "weight_decay": schedules.weight_decay(step),
            "ema": schedules.ema(step),
            "context_patches": self._lengths[0],
            "target_patches": self._lengths[1],
            **norm,
        }

    def watch(self, step: int) -> dict[str, float]:
        """Health of the encoders, and how much better than the mean target the step predicted."""
        if not self._is_watched(step):
            return {}
        with contextlib.ExitStack() as uncompiled:
            if self.runtime.compile:  # shapes and precision of a check would be compiled for it
                uncompiled.enter_context(torch.compiler.set_stance("force_eager"))
            numbers = self._watch.check(self.model, step, with_pictures=self.render is not None)
        if newest := self._outcome:
            numbers["loss_vs_mean_target"] = loss_vs_mean_target(
                newest.predictions, newest.targets, self.config.targets.loss
            )
        accuracy = numbers.get("neighbour_accuracy", -1.0)
        if step and accuracy > self._best.get("neighbour_accuracy", -1.0):
            self._best = {"step": step, "neighbour_accuracy": accuracy}
        return numbers

    def pictures(self) -> Mapping[str, Picture]:
        """What `render` makes of the newest health check."""
        checked = self._watch.checked
        return self.render(checked) if self.render and checked else {}

    def state_dict(self) -> dict[str, Any]:
        """Health at the start, with which later checks are compared, and the best check so far."""
        state = {"first_health": list(self._watch.first or ()), "best": self._best}
        bad = (
            from_all(self.world, sorted(self._bad)) if isinstance(self._images, RemoteSplit) else []
        )
        return state | ({"bad_samples": bad} if any(bad) else {})  # one list a process

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Also renews the bfloat16 copy of the target encoder from the loaded weights."""
        self._watch.first = Health(*state["first_health"])
        self._best = state.get("best") or {}
        bad, (rank, size) = state.get("bad_samples", []), self.world[:2]
        if len(bad) != size:  # each process has other lanes now
            every = sorted(set(itertools.chain(*bad)))
            bad = [every[number::size] for number in range(size)]
        self._bad = set(bad[rank])
        self.model.renew_teacher()

    def kept_names(self, step: int) -> list[str]:
        """A checkpoint is kept every `checkpoint_epochs`, and of the best health check."""
        epochs, rest = divmod(step, self._per_epoch)
        names = []
        if rest == 0 and epochs % self.config.checkpoint_epochs == 0:
            names.append(f"epoch-{epochs:04d}.pt")
        if self.config.watch.keep_best and self._best.get("step") == step:
            names.append(BEST.name)
        return names

    def speed(self, per_second: float) -> dict[str, float]:
        """Adds achieved TFLOP/s of one process, and its share of what the device could do."""
        flops = sum(step_flops(self.config, *self._lengths))
        tflops = flops * per_second / self.world.size / 1e12
        share = utilisation(tflops, self.device_name)
        numbers = super().speed(per_second) | {"tflops": tflops}
        return numbers | ({} if share is None else {"flops_utilisation": share})

    def _is_watched(self, step: int) -> bool:
        return step % self.config.watch.every_steps == 0 or step == self.total_steps


def chosen_images(config: PretrainConfig, num_images: int) -> tuple[Ints, int | Ints]:
    """Of a split, the images of health checks, always the same, and those to train on."""
    order = stream(config.seed, SHUFFLE, 2**31).permutation(num_images)
    checked, others = np.split(order, [config.watch.num_images])
    return checked, np.sort(others) if config.watch.held_out else num_images


def adapted_parts(parts: Parts, channels: int) -> tuple[Parts, str | None]:
    """Weights for images of so many channels, and in words how RGB weights were adapted, if so."""
    name = "patch_embed.proj.weight"
    widths = {weights[name].shape[1] for weights in parts.values() if name in weights}
    if channels in widths or not widths:
        return parts, None
    if widths != {3}:
        raise IjepaError(
            f"These weights are for images of {min(widths)} channels, and data.channels is "
            f"{channels}; only RGB weights can be adapted to other channels."
        )
    adapted = {part: dict(weights) for part, weights in parts.items()}
    for weights in adapted.values():
        if name in weights:
            weights[name] = adapt_channels(weights[name].float(), channels)
    return adapted, adaptation(channels)


def load_initial_weights(model: IJepa, source: str, parts: Parts) -> None:
    """Load the weights of `source` into the networks, except their position tables.

    `parts` are state dicts of `encoder`, `target_encoder` (one of them is enough) and `predictor`,
    which keeps its random weights if that part is missing or of another size.
    """

    def load(module: nn.Module, weights: Mapping[str, Any], name: str) -> None:
        own = {name: value for name, value in module.state_dict().items() if name in POSITIONS}
        load_weights(module, {**weights, **own}, f"{source} ({name})")

    context, target = parts.get("encoder"), parts.get("target_encoder")
    load(model.encoder, context or target or {}, "encoder")
    load(model.target_encoder, target or context or {}, "target encoder")
    try:
        load(model.predictor, parts.get("predictor", {}), "predictor")
    except IjepaError as error:
        reason = str(error) if "predictor" in parts else f"{source} holds none"
        log.warning("The predictor starts from random weights: %s", reason)


def masks_on(groups: list[Masks], device: torch.device) -> list[Masks]:
    """Several groups of masks on the device, all in one copy."""
    tensors = [tensor for masks in groups for tensor in masks]
    packed = moved(torch.cat([tensor.flatten() for tensor in tensors]), device)
    parts = torch.split(packed, [t.numel() for t in tensors])
    shaped = iter([part.view(like.shape) for part, like in zip(parts, tensors, strict=True)])
    return [Masks(*pair) for pair in zip(shaped, shaped, strict=True)]
