"""Batches of a shard split: exact epochs, shuffled by (seed, epoch), whatever the worker count.

One item of a data set is one whole batch, a pure function of its step. So resuming at a step is
starting there, and processes share no hidden state.
"""

import contextlib
import math
import os
import re
import signal
import traceback
from collections.abc import Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ijepa.arrays import Array, Ints
from ijepa.config import DataConfig, Interpolation, Size, height_width
from ijepa.data.decode import decode_image, image_size
from ijepa.data.shards import SplitReader
from ijepa.distributed import moved
from ijepa.errors import IjepaError
from ijepa.jepa.augment import (
    CropDraws,
    Pixels,
    crop_batch,
    draw_crops,
    evaluation_box,
    evaluation_crop,
    fit_box,
    in_units,
    resize_box,
)
from ijepa.jepa.rng import AUGMENTED, CROPS, SHUFFLE, stream
from ijepa.progress import Progress, silent
from ijepa.world import current_world, processes

# Crops for probes: the default of torchvision's RandomResizedCrop, which VISSL and others keep.
PROBE_CROPS = DataConfig(crop_scale=(0.08, 1.0), flip=True)
OWN_CGROUPS = Path("/proc/self/cgroup")
CGROUPS = Path("/sys/fs/cgroup")
MOST_OF_MEMORY = 0.7  # that decoded images may take; the networks need some, too


class Batch(NamedTuple):
    """Images of one step."""

    step: int
    images: Tensor  # (B, C, height, width), channels last in memory: uint8, or `in_units`' float32
    numbers: Tensor  # (B,) int64, their places in the split; -1 for streams, which know none
    keys: Sequence[str] = ()  # of streams alone
    bad: Sequence[str] = ()  # `key: reason` of each undecodable streamed sample that was replaced
    maps: Sequence[Tensor] = ()  # (B, height, width) of each dense label; of `ViewBatches` alone


class StepPlan:
    """Which images a step has, and what is drawn for their crops: a function of (seed, step).

    `images` is the size of the split, or the numbers of the images to train on. `part` is the slice
    of the batch that this process makes; None makes all of it. Crops repeat after `repeat_every`
    images of a batch, as on the GPUs of the released code.
    """

    def __init__(
        self,
        images: int | Ints,
        config: DataConfig,
        seed: int,
        part: slice | None = None,
        repeat_every: int | None = None,
    ) -> None:
        self.config, self._taken, self._seed = config, images, seed
        self._part = part or slice(0, config.batch_size)
        self._repeat_every = repeat_every or config.batch_size
        num_images = images if isinstance(images, int) else len(images)
        self._steps_per_epoch = num_images // config.batch_size  # full batches only, as published
        self._newest = (-1, np.empty(0, dtype=np.int64))  # an epoch and its order

    def numbers(self, step: int) -> Ints:
        """Places in the split of all images of a step, whatever part of it is made here."""
        epoch, step = divmod(step, self._steps_per_epoch)
        newest = self._newest  # read and replaced whole, for two threads may ask
        if newest[0] != epoch:
            order = stream(self._seed, SHUFFLE, epoch).permutation(self._taken)
            self._newest = newest = (epoch, order)
        size = self.config.batch_size
        return newest[1][step * size : (step + 1) * size]

    def part(self, step: int) -> tuple[Ints, Ints, CropDraws]:
        """Numbers of this part's images, the place of each in the draws, and the batch's draws."""
        return self.numbers(step)[self._part], *self.crops(step)

    def crops(self, step: int) -> tuple[Ints, CropDraws]:
        """The draw that belongs to each image of this part, and all draws."""
        places = np.arange(self._part.start, self._part.stop) % self._repeat_every
        draws = draw_crops(self._repeat_every, self.config, stream(self._seed, CROPS, step))
        return places, draws


class RandomCropBatches(Dataset[Batch]):
    """Step -> the random-resized crops of that step's images."""

    def __init__(self, images: SplitReader, plan: StepPlan) -> None:
        self._images, self._plan = images, plan

    def __getitem__(self, step: int) -> Batch:
        numbers, places, draws = self._plan.part(step)
        image_px = self._plan.config.image_px
        crops = [
            random_crop(decode_image(self._images.read_image(number)), draws, place, image_px)
            for number, place in zip(numbers.tolist(), places.tolist(), strict=True)
        ]
        return Batch(step, torch.cat(crops), torch.from_numpy(numbers))


def random_crop(
    pixels: Pixels,
    draws: CropDraws,
    place: int,
    image_px: int | Size,
    mode: Interpolation = "bilinear",
) -> Tensor:
    """An image cropped as draw number `place` says: (1, C, height, width), see `resize_box`."""
    box = fit_box(draws, place, pixels.shape[0], pixels.shape[1])
    crop = resize_box(pixels, box, image_px, mode=mode)
    return crop.flip(-1) if draws.flip[place] else crop


class CachedCropBatches:
    """Step -> what `RandomCropBatches` makes, of images decoded once, cropped in one call.

    All images stay in the device's memory, each in the upper left corner of a canvas of one size:
    small ones need not wait for the decoder.
    """

    def __init__(
        self,
        images: SplitReader,
        plan: StepPlan,
        device: torch.device,
        workers: int,
        progress: Progress = silent,
    ) -> None:
        """Decode everything; an `IjepaError` if it would not fit into the device's memory."""
        self._plan = plan
        with ThreadPoolExecutor(max(1, workers)) as pool:
            numbers = range(len(images))
            self._sizes = list(pool.map(lambda n: image_size(images.read_image(n)), numbers))
            height, width = (max(side) for side in zip(*self._sizes, strict=True))
            like = torch.from_numpy(in_units(decode_image(images.read_image(0))[:1, :1]))
            shape = len(images), like.shape[-1], height, width
            needed = math.prod(shape) * like.itemsize
            for place, available in _memory_bytes(device).items():
                if needed > MOST_OF_MEMORY * available:
                    raise IjepaError(
                        f"{len(images):,} images on canvases of {height}x{width} pixels need "
                        f"{needed / 1e9:.1f} GB; {place} has {available / 1e9:.1f} GB for "
                        f"everything. Shard them smaller (--resize), or leave --cache away."
                    )
            pixels = torch.zeros(shape, dtype=like.dtype)

            def fill(number: int) -> None:
                image = torch.from_numpy(in_units(decode_image(images.read_image(number))))
                pixels[number, :, : image.shape[0], : image.shape[1]] = image.permute(2, 0, 1)

            for number, _ in enumerate(pool.map(fill, numbers)):
                progress("decode images", number + 1, len(images))
        self._pixels = pixels.to(device)

    def __getitem__(self, step: int) -> Batch:
        numbers, places, draws = self._plan.part(step)
        rows = [
            (number, draws.flip[place], *fit_box(draws, place, *self._sizes[number]))
            for place, number in zip(places.tolist(), numbers.tolist(), strict=True)
        ]
        drawn = moved(torch.tensor(rows), self._pixels.device)
        chosen, flip, boxes = drawn[:, 0], drawn[:, 1].bool(), drawn[:, 2:]
        crops = crop_batch(self._pixels[chosen], boxes, flip, self._plan.config.image_px)
        return Batch(step, crops, torch.from_numpy(numbers))


def _memory_bytes(device: torch.device) -> dict[str, int]:
    """This process's share of the RAM, where images are decoded, and the free memory of a GPU."""
    shares = {"a process": _ram_bytes() // current_world().local_size}
    if device.type == "cuda":
        shares[str(device)] = torch.cuda.mem_get_info(device)[0]
    return shares


def _ram_bytes() -> int:
    """RAM of the machine, or of the container or job with its own limit that this process is in."""
    most = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    groups = OWN_CGROUPS.read_text() if OWN_CGROUPS.exists() else ""  # Linux has it
    for line in groups.splitlines():
        _, kind, path = line.split(":", 2)  # the kind is empty in version 2 of control groups
        own = CGROUPS / kind / path.lstrip("/")
        for group in (own, *own.parents):  # a limit holds for all groups inside
            for name in ("memory.max", "memory.limit_in_bytes"):
                with contextlib.suppress(OSError, ValueError):  # there is none, or it is `max`
                    most = min(most, int((group / name).read_text()))
    return most


class ViewPlan(NamedTuple):
    """Which views of an image are made."""

    image_px: int | Size
    crop_fraction: float | None  # of the short side, for evaluation; None squashes the whole image
    augmented: int = 0  # how many augmented views follow the evaluation view
    augment: str = "none"  # `rrc-flip` or `flip`, see `ijepa.config.ExtractConfig`
    seed: int = 0  # of the augmented views
    interpolation: Interpolation = "bilinear"


class ViewBatches(Dataset[Batch]):
    """Batch number -> all views of `batch_size` consecutive images; the last batch may be short.

    `Batch.images` holds the views of the first image, then those of the second, and so on; what is
    drawn for an image depends on (seed, number of the image) alone. `chosen` are some images of the
    split, which are then numbered from 0; None takes all. `dense` are labels whose maps are read,
    in the evaluation view.
    """

    def __init__(
        self,
        images: SplitReader,
        plan: ViewPlan,
        batch_size: int,
        chosen: Sequence[int] | None = None,
        dense: Sequence[str] = (),
    ) -> None:
        self._images, self._plan, self._batch_size, self._dense = images, plan, batch_size, dense
        self._chosen = range(len(images)) if chosen is None else chosen

    def __len__(self) -> int:
        return -(-len(self._chosen) // self._batch_size)

    def __getitem__(self, batch: int) -> Batch:
        numbers = range(len(self._chosen))[batch * self._batch_size :][: self._batch_size]
        plan, views, maps = self._plan, list[Tensor](), list[Tensor]()
        for number in numbers:
            pixels = decode_image(self._images.read_image(self._chosen[number]))
            whole = evaluation_view(pixels, plan)
            views.append(whole)
            if not plan.augmented:
                continue
            draws = draw_crops(plan.augmented, PROBE_CROPS, stream(plan.seed, AUGMENTED, number))
            for place in range(plan.augmented):
                view = whole.flip(-1) if draws.flip[place] else whole
                if plan.augment == "rrc-flip":
                    view = random_crop(pixels, draws, place, plan.image_px, plan.interpolation)
                views.append(view)
        for label in self._dense:
            read = (self._images.read_map(self._chosen[number], label) for number in numbers)
            maps.append(torch.from_numpy(np.stack([dense_view(one, plan) for one in read])))
        return Batch(batch, torch.cat(views), torch.tensor(numbers), maps=maps)


def evaluation_view(pixels: Pixels, plan: ViewPlan) -> Tensor:
    """The view by which an image is scored: (1, C, height, width), see `evaluation_crop`."""
    return evaluation_crop(pixels, plan.image_px, plan.crop_fraction, plan.interpolation)


def dense_view(values: Array, plan: ViewPlan) -> Array:
    """The part of a map (h, w) that the evaluation view of its image shows: (height, width).

    By nearest neighbours; a map may be smaller or larger than its image.
    """
    (height, width), size = values.shape, height_width(plan.image_px)
    left, top, right, bottom = evaluation_box(height, width, size, plan.crop_fraction)
    down = (top + (np.arange(size[0]) + 0.5) * (bottom - top) / size[0]).astype(np.int64)
    across = (left + (np.arange(size[1]) + 0.5) * (right - left) / size[1]).astype(np.int64)
    view: Array = values[np.ix_(down.clip(0, height - 1), across.clip(0, width - 1))]
    return view


def read_views(images: SplitReader, numbers: Sequence[int], data: DataConfig) -> Tensor:
    """Evaluation views of some images: (n, C, height, width), see `evaluation_crop`."""
    plan = ViewPlan(data.image_px, data.eval_crop_fraction)
    return torch.cat([evaluation_view(decode_image(images.read_image(n)), plan) for n in numbers])


def batches(
    dataset: Dataset[Batch],
    numbers: Sequence[int] | None,
    workers: int,
    *,
    pin_memory: bool = False,
) -> Generator[Batch, None, None]:
    """Items of `dataset` in the order of `numbers`, made ahead by worker processes.

    `numbers` are None for an iterable data set, which knows its order itself. An `IjepaError` or an
    `OSError` of the data set is one line, also where a worker process raised it.
    """
    loader = DataLoader(
        dataset,
        batch_size=None,
        sampler=numbers,
        num_workers=workers,
        pin_memory=pin_memory,
        worker_init_fn=_prepare_worker,
        prefetch_factor=4 if workers else None,
        multiprocessing_context=processes() if workers else None,
    )
    said = ""
    try:
        yield from loader
    except (IjepaError, OSError, RuntimeError) as error:
        if str(error).startswith("DataLoader worker"):
            said = (
                "A process that reads images was killed, most likely for want of memory, or of "
                "shared memory (/dev/shm); run the same command with fewer --workers."
            )
        elif isinstance(error, IjepaError) or getattr(error, "errno", 0) is None:
            # A worker's error is its whole traceback, which ends with its class and what it said.
            said = re.split(r"\n[\w.]+: ", str(error))[-1].strip()
        else:
            raise  # of this process, or a mistake of ours
        traceback.clear_frames(error.__traceback__)  # they hold the loader, and it its processes
    if said:
        raise IjepaError(said)


def _prepare_worker(_: int) -> None:
    """One thread each; signals to the whole job are for the main process to obey.

    That ends its workers by messages, and by a second SIGTERM where that does not help.
    """
    torch.set_num_threads(1)
    signal.signal(signal.SIGTERM, lambda *_: signal.signal(signal.SIGTERM, signal.SIG_DFL))
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends Ctrl-C to all processes
