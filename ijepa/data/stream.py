"""Batches from remote shards: read from start to end, shuffled, resumable.

An address is anything that fsspec opens (`s3://`, `https://`, `gs://`, ...), with the credentials
that fsspec finds (environment, `~/.aws`, `~/.config/fsspec`), or `pipe:COMMAND`, whose output is
the file.

Shards are dealt to lanes, as cards are to players, in an order drawn by (seed, epoch) and without
end: no lane runs dry, however few shards there are, and each shard is read once an epoch. Each lane
shuffles its samples a buffer at a time, and makes every n-th batch. A batch is a function of (seed,
step): worker processes only divide the lanes among them, and resuming rereads at most one buffer.
"""

import hashlib
import itertools
import logging
import re
import shlex
import sys
import tarfile
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import IO, Any

import fsspec
import torch
from torch.utils.data import IterableDataset, get_worker_info
from webdataset.gopen import gopen
from webdataset.tariterators import group_by_keys

from ijepa.config import validated
from ijepa.data.loader import Batch, StepPlan, random_crop
from ijepa.data.shards import INDEX, SCHEMA, Sample, SetIndex, expanded
from ijepa.errors import IjepaError
from ijepa.files import parse_json
from ijepa.jepa.rng import BUFFERS, SHARDS, stream

IMAGE_SUFFIXES = ("jpg", "jpeg", "png", "webp")
RETRY_SECONDS = (1, 4, 16, 64)  # before each new try to go on with a shard that broke off
BLOCK_BYTES = 8 * 2**20  # asked for at once
FOR_GOOD = (FileNotFoundError, PermissionError, NotADirectoryError, IsADirectoryError)
FOREIGN_BREAKS = (
    ("aiohttp", "ClientError"),
    ("botocore.exceptions", "BotoCoreError"),
    ("botocore.exceptions", "ClientError"),
)
MOST_INDEX_BYTES = 256 * 2**20  # a million shards have less
MOST_TARS = 1_000_000
MOST_MEMBER_BYTES = 2**30  # of one file in a tar
META = re.compile(r"__[^/]*__($|/)")  # names of webdataset's own notes
FIRST_SHARDS = 32  # that are looked into, at most

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RemoteSplit:
    """The shards of one split, elsewhere.

    Attributes:
        urls: of the shards, in the order of the samples.
        counts: samples of each; a guess if not `counted`.
        counted: does an index say how many samples each shard has?
        label_names: as `SplitReader` has them; empty without an index.
        fingerprint: of the contents, as the index tells it; of the addresses without an index.
    """

    urls: tuple[str, ...]
    counts: tuple[int, ...]
    counted: bool
    label_names: dict[str, list[str]]
    fingerprint: str

    def __len__(self) -> int:
        return sum(self.counts)

    def read_shard(self, number: int, skip: int = 0) -> Iterator[Sample]:
        """Samples of a shard from the `skip`-th on; taken up again where a connection breaks.

        Raises:
            IjepaError: not there, not allowed, not a tar of images, or broken again and again.
        """
        url, waits = self.urls[number], iter(RETRY_SECONDS)
        expected = self.counts[number] if self.counted else None
        while True:
            try:
                samples = _read_tar(url, labels=tuple(self.label_names))
                for sample in itertools.islice(samples, skip, None):
                    yield sample
                    skip += 1
                if expected is not None and skip < expected:
                    raise EOFError(f"it ends after {skip:,} of {expected:,} samples")
                if skip == 0:  # streams go round for ever, and would never find one
                    raise EOFError("it holds no sample")
            except _breaks() as error:
                wait = None if _is_for_good(error) else next(waits, None)
                if wait is None:
                    raise IjepaError(f"{url} cannot be read: {_in_words(error)}.") from error
                log.warning("%s broke off (%s); going on in %d s", url, _in_words(error), wait)
                time.sleep(wait)
            else:
                return

    def first_samples(self, count: int) -> list[Sample]:
        """About equally many from the start of several shards, at most `count`."""
        shards = range(0, len(self.urls), -(-len(self.urls) // FIRST_SHARDS))
        each = -(-count // len(shards))
        starts = (itertools.islice(self.read_shard(shard), each) for shard in shards)
        return list(itertools.islice(itertools.chain.from_iterable(starts), count))


def open_remote(data: str, split: str, epoch_images: int | None) -> RemoteSplit:
    """Find the shards of a split; reads the index, no sample.

    Args:
        data: address of a shard set of `ijepa shard`, for `pipe:` with `{}` in place of a file's
            name; or of tars, with braces as in `train-{000000..000146}.tar`.
        split: of the shard set; of no meaning for tars.
        epoch_images: for tars, how many images they hold together.

    Raises:
        IjepaError: no index there, no such split, or tars without `epoch_images`.
    """
    if ".tar" in data:
        return _tars(data, epoch_images)
    url = _within(data, INDEX)
    try:
        with closing(_open(url)) as file:
            text = file.read(MOST_INDEX_BYTES + 1)
        body = parse_json(text) if len(text) <= MOST_INDEX_BYTES else None
    except ValueError as error:
        raise IjepaError(f"{url} is not the index of a shard set: {error}.") from error
    except _breaks() as error:
        raise IjepaError(f"{url} cannot be read: {_in_words(error)}.") from error
    if not isinstance(body, dict) or body.get("schema_version") != SCHEMA:
        raise IjepaError(f"{url} is not an index of schema {SCHEMA}; shard again.")
    index = validated(SetIndex, body, url)
    if split not in index.splits:
        raise IjepaError(
            f"{data} has no split {split!r}; its splits are {', '.join(sorted(index.splits))}."
        )
    found = index.splits[split]
    return RemoteSplit(
        urls=tuple(_within(data, shard.name) for shard in found.shards),
        counts=tuple(shard.samples for shard in found.shards),
        counted=True,
        label_names=found.labels,
        fingerprint=index.fingerprint,
    )


class Lanes:
    """Streams of samples that together make the batches of one process."""

    def __init__(self, split: RemoteSplit, seed: int, buffer: int, mine: range, total: int) -> None:
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


def _tars(data: str, epoch_images: int | None) -> RemoteSplit:
    urls = expanded(data, MOST_TARS)
    if epoch_images is None:
        raise IjepaError(
            f"{data} has no index that tells how many images these {len(urls):,} tars hold; say it "
            f"with --set stream.epoch_images=N."
        )
    share, rest = divmod(epoch_images, len(urls))
    if share == 0:
        raise IjepaError(f"stream.epoch_images is {epoch_images:,}, less than {len(urls):,} tars.")
    counts = tuple(share + (number < rest) for number in range(len(urls)))
    digest = hashlib.sha256("\n".join(urls).encode()).hexdigest()
    return RemoteSplit(urls, counts, counted=False, label_names={}, fingerprint=digest)


def _within(data: str, name: str) -> str:
    """Address of a file of a shard set."""
    if data.startswith("pipe:"):
        if "{}" not in data:
            raise IjepaError(
                f"{data!r} names no tar, and has no {{}} to put the names of a shard set's files "
                f"in; write it as 'pipe:curl -sSf https://host/set/{{}}'."
            )
        return data.replace("{}", shlex.quote(name))
    return f"{data.rstrip('/')}/{name}"


def _read_tar(url: str, labels: Sequence[str]) -> Iterator[Sample]:
    with closing(_open(url)) as file:
        try:
            for members in group_by_keys(_files(url, file)):
                yield _sample(url, members, labels)
        except ValueError as error:  # a name that stands there twice
            raise IjepaError(f"{url} is not a tar of samples: {error.args[0]}.") from error


def _files(url: str, stream: IO[bytes]) -> Iterator[dict[str, Any]]:
    """Plain files of a tar as webdataset has them, none so large that it fills the memory."""
    with tarfile.open(fileobj=stream, mode="r|*") as tar:
        for member in tar:
            content = tar.extractfile(member) if member.isreg() else None
            tar.members = []  # type: ignore[attr-defined]  # or it would remember them all
            if content is None or META.match(member.name):
                continue
            if member.size > MOST_MEMBER_BYTES:
                raise IjepaError(
                    f"{url}: {member.name} has {member.size:,} bytes, more than "
                    f"{MOST_MEMBER_BYTES:,}; it is no image."
                )
            yield {"fname": member.name, "data": content.read(), "__url__": url}
    yield {}  # samples end with their tar


def _sample(url: str, members: dict[str, Any], labels: Sequence[str]) -> Sample:
    """Image, key and labels of the members of one sample.

    The JSON of others is ignored, unless an index promises `labels`.

    Raises:
        IjepaError: there is no image, or one of `labels` is not there as a class number.
    """
    name = members["__key__"]
    image = next((members[suffix] for suffix in IMAGE_SUFFIXES if suffix in members), None)
    if image is None:
        found = ", ".join(sorted(name for name in members if not name.startswith("__")))
        raise IjepaError(
            f"{url}: sample {name!r} has no image ({found}); expected one of "
            f"{', '.join(IMAGE_SUFFIXES)}."
        )
    try:
        notes = parse_json(members.get("json", b"{}"))
    except ValueError:
        notes = {}
    notes = notes if isinstance(notes, dict) else {}
    known = notes["labels"] if isinstance(notes.get("labels"), dict) else {}
    known = {label: number for label, number in known.items() if _is_class(number)}
    missing = [label for label in labels if label not in known]
    if missing:
        raise IjepaError(
            f"{url}: the .json of sample {name!r} has no class number as label {missing[0]!r}, "
            f"which the index promises; shard this set again."
        )
    key = notes.get("key")
    return Sample(key if isinstance(key, str) else name, image, known)


def _is_class(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63


def _open(url: str) -> IO[bytes]:
    if url.startswith("pipe:"):
        piped: IO[bytes] = gopen(url)
        return piped
    # Plain HTTP is read in one go: not every server answers requests for parts of a file.
    block_bytes = 0 if url.startswith(("http://", "https://")) else BLOCK_BYTES
    try:
        system, path = fsspec.url_to_fs(url)
        opened: IO[bytes] = system.open(path, "rb", block_size=block_bytes)
    except ImportError as error:
        raise IjepaError(f"{url}: {error} (pip install s3fs aiohttp).") from error
    except ValueError as error:  # no such protocol
        raise IjepaError(f"{url}: {error}.") from error
    return opened


def _breaks() -> tuple[type[Exception], ...]:
    """What a broken connection raises; the libraries below fsspec have errors of their own."""
    found = [_class(module, name) for module, name in FOREIGN_BREAKS]
    return (OSError, EOFError, tarfile.TarError, *filter(None, found))


def _is_for_good(error: Exception) -> bool:
    """Would another try be useless?"""
    if type(error).__name__ == "NoCredentialsError":  # of botocore
        return True
    return isinstance(error, FOR_GOOD) and _reason(error) is error


def _reason(error: Exception) -> BaseException:
    """The cause, if it is aiohttp's: fsspec calls a file missing whose host does not answer."""
    unanswered, cause = _class("aiohttp", "ClientConnectionError"), error.__cause__
    return cause if cause and unanswered and isinstance(cause, unanswered) else error


def _class(module: str, name: str) -> type[Exception] | None:
    """An exception of a library; None if the library is not imported."""
    return getattr(sys.modules.get(module), name, None)


def _in_words(error: Exception) -> str:
    reason = _reason(error)
    text = str(reason).strip().splitlines()[0].rstrip(".") if str(reason).strip() else ""
    return f"{type(reason).__name__}: {text}" if text else type(reason).__name__
