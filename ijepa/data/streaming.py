"""Batches of shards that are read from start to end, as remote ones are: shuffled, resumable.

Shards are dealt in an order drawn by (seed, epoch) to lanes, as cards are to players, without end;
so no lane ever runs dry, however few shards there are, and each shard is read once an epoch. Each
lane shuffles its samples a buffer at a time, and makes every n-th batch. All of it is a function of
(seed, step): worker processes only share out the lanes, and resuming reads no further back than one
buffer.
"""

import itertools
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch.utils.data import IterableDataset, get_worker_info

from ijepa.data.loader import Batch, StepPlan, random_crop
from ijepa.data.shards import Sample
from ijepa.jepa.rng import BUFFERS, SHARDS, stream

if TYPE_CHECKING:
    from ijepa.data.remote import RemoteSplit


class Lanes:
    """Streams of samples that together make the batches of one process."""

    def __init__(
        self, split: "RemoteSplit", seed: int, buffer: int, mine: range, total: int
    ) -> None:
        """Remember how to deal.

        Args:
            split: what to read.
            seed: of the order of shards and samples.
            buffer: samples that are shuffled together.
            mine: numbers of the lanes of this process.
            total: of all processes.
        """
        self.mine = mine
        self._split, self._seed, self._buffer, self._total = split, seed, buffer, total

    def samples(self, lane: int, first: int) -> Iterator[Sample]:
        """Samples of one of `mine` from its `first` on, without end."""
        lane = self.mine[lane]
        start, skip = divmod(first, self._buffer)
        source = self._in_order(lane, start * self._buffer)
        for chunk in itertools.count(start):
            held = list(itertools.islice(source, self._buffer))
            rng = stream(self._seed, BUFFERS, chunk * self._total + lane)
            yield from (held[place] for place in rng.permutation(len(held))[skip:])
            skip = 0
            del held  # before the next ones are read

    def shards(self, lane: int) -> Iterator[int]:
        """Numbers of the shards that are dealt to a lane of any process, without end."""
        count = len(self._split.urls)
        for epoch, place in (divmod(turn, count) for turn in itertools.count(lane, self._total)):
            yield int(stream(self._seed, SHARDS, epoch).permutation(count)[place])

    def _in_order(self, lane: int, first: int) -> Iterator[Sample]:
        """Samples of a lane from its `first` on, as they stand in its shards."""
        for shard in self.shards(lane):
            count = self._split.counts[shard]
            if first < count:
                yield from self._split.read_shard(shard, skip=first)
            first = max(0, first - count)


class StreamedCropBatches(IterableDataset[Batch]):
    """The random-resized crops of each step of `steps`, which must be consecutive."""

    def __init__(self, lanes: Lanes, plan: StepPlan, steps: range) -> None:
        self._lanes, self._plan, self._steps = lanes, plan, steps

    def __iter__(self) -> Iterator[Batch]:
        worker = get_worker_info()
        number, workers = (worker.id, worker.num_workers) if worker else (0, 1)
        count = len(self._lanes.mine)
        open_lanes: dict[int, Iterator[Sample]] = {}
        for step in self._steps[number::workers]:
            turn, lane = divmod(step, count)
            places, draws = self._plan.crops(step)
            if lane not in open_lanes:
                open_lanes[lane] = self._lanes.samples(lane, turn * len(places))
            samples = list(itertools.islice(open_lanes[lane], len(places)))
            pairs = zip(samples, places.tolist(), strict=True)
            image_px = self._plan.config.image_px
            crops = [random_crop(sample.image, draws, place, image_px) for sample, place in pairs]
            keys = tuple(sample.key for sample in samples)
            yield Batch(step, torch.cat(crops), torch.full((len(places),), -1), keys)


def workers_for(lanes: int, workers: int) -> int:
    """The most processes, up to `workers`, that share the lanes evenly."""
    return next((count for count in range(workers, 0, -1) if lanes % count == 0), 0)
