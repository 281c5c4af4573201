"""Where a run's batches come from: shards of this machine at random access, or streams of others.

Both answer for one process, whatever processes there are beside it.
"""

import logging
from collections.abc import Iterator
from typing import TYPE_CHECKING, Protocol

import torch

from ijepa.config import PretrainConfig, Runtime
from ijepa.data.cache import CachedCropBatches, DecodedImages
from ijepa.data.loader import Batch, RandomCropBatches, StepPlan, batches
from ijepa.data.shards import Sample, SplitReader
from ijepa.data.stream import Lanes, StreamedCropBatches, workers_for
from ijepa.distributed import num_workers
from ijepa.errors import IjepaError
from ijepa.jepa.rng import SHUFFLE, stream
from ijepa.progress import Progress
from ijepa.world import World

if TYPE_CHECKING:
    from ijepa.data.stream import RemoteSplit

SHOWN_KEYS = 3  # of a batch whose loss is broken
REMEMBERED = 100  # batches of a stream; losses are looked at a few steps later

log = logging.getLogger(__name__)


class Feed(Protocol):
    """Batches of one run."""

    def batches(self, todo: range, progress: Progress) -> Iterator[Batch]:
        """The batch of each step of `todo`, in order."""

    def keys(self, step: int) -> list[str]:
        """The first keys of the batch of a step, one of the newest that `batches` gave."""

    def watched(self) -> list[Sample]:
        """Samples that are always the same for the same configuration."""


def open_feed(
    images: "SplitReader | RemoteSplit",
    config: PretrainConfig,
    runtime: Runtime,
    device: torch.device,
    world: World,
) -> Feed:
    """Choose by what there is to read.

    Raises:
        IjepaError: a cache is asked for, but the images are elsewhere.
    """
    part = world.share(config.data.batch_size)
    repeat_every = config.masks.group_size if config.shared_draws else None
    plan = StepPlan(len(images), config.data, config.seed, part, repeat_every)
    if isinstance(images, SplitReader):
        return LocalFeed(images, config, runtime, device, plan)
    if runtime.cache != "none":
        raise IjepaError(
            f"--cache {runtime.cache} needs a shard set on this machine; copy it here, or leave "
            f"--cache away."
        )
    return StreamFeed(images, config, runtime, device, world, plan)


class LocalFeed:
    """Exact epochs, perfectly shuffled."""

    def __init__(
        self,
        images: SplitReader,
        config: PretrainConfig,
        runtime: Runtime,
        device: torch.device,
        plan: StepPlan,
    ) -> None:
        self._images, self._config, self._runtime = images, config, runtime
        self._device, self._plan = device, plan
        self._decoded: DecodedImages | None = None

    def batches(self, todo: range, progress: Progress) -> Iterator[Batch]:
        """See `Feed`."""
        workers = num_workers(self._runtime, self._device)
        if self._runtime.cache == "none":
            on_gpu = self._device.type == "cuda"
            crops = RandomCropBatches(self._images, self._plan)
            yield from batches(crops, todo, workers, pin_memory=on_gpu)
            return
        if self._decoded is None:  # a run that goes back begins its batches again
            self._decoded = DecodedImages(self._images, self._device, workers, progress)
        cached = CachedCropBatches(self._decoded, self._plan)
        yield from (cached[step] for step in todo)

    def keys(self, step: int) -> list[str]:
        """See `Feed`; of the images of all processes."""
        numbers = self._plan.numbers(step)[:SHOWN_KEYS]
        return self._images.keys(numbers)

    def watched(self) -> list[Sample]:
        """See `Feed`; drawn from the whole split."""
        order = stream(self._config.seed, SHUFFLE, 2**31).permutation(len(self._images))
        chosen = order[: self._config.watch.num_images]
        return [self._images.read_sample(int(number)) for number in chosen]


class StreamFeed:
    """Shards read from start to end, shuffled a buffer at a time."""

    def __init__(
        self,
        images: "RemoteSplit",
        config: PretrainConfig,
        runtime: Runtime,
        device: torch.device,
        world: World,
        plan: StepPlan,
    ) -> None:
        self._images, self._config, self._plan = images, config, plan
        self._on_gpu = device.type == "cuda"
        count = config.stream.lanes
        mine = range(world.rank * count, (world.rank + 1) * count)
        self._lanes = Lanes(images, config.seed, config.stream.buffer, mine, world.size * count)
        self._workers = workers_for(count, num_workers(runtime, device))
        self._keys: dict[int, list[str]] = {}
        self._leads = world.leads

    def batches(self, todo: range, progress: Progress) -> Iterator[Batch]:  # noqa: ARG002  # as the other feed
        """See `Feed`."""
        if todo.start and not self._images.counted and self._leads:
            log.warning(
                "no index says how many images each tar holds, so the images go on about where "
                "they stopped, not exactly there."
            )
        dataset = StreamedCropBatches(self._lanes, self._plan, todo)
        for batch in batches(dataset, None, self._workers, pin_memory=self._on_gpu):
            self._keys[batch.step] = list(batch.keys[:SHOWN_KEYS])
            self._keys.pop(batch.step - REMEMBERED, None)
            yield batch

    def keys(self, step: int) -> list[str]:
        """See `Feed`; of the images of this process."""
        return self._keys.get(step, [])

    def watched(self) -> list[Sample]:
        """See `Feed`; from the starts of shards, so that few bytes are read."""
        return self._images.first_samples(self._config.watch.num_images)
