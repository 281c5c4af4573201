"""Batches from remote shards: read from start to end, shuffled, resumable.

An address is anything that fsspec opens (`s3://`, `https://`, `gs://`, ...), with the credentials
that fsspec finds (environment, `~/.aws`, `~/.config/fsspec`), or `pipe:COMMAND`, whose output is
the file.

Shards are dealt to lanes, as cards are to players, in an order drawn by (seed, epoch) and without
end: no lane runs dry, however few shards there are, and each shard is read once an epoch. Each lane
shuffles its samples a buffer at a time, and makes every n-th batch. A batch is a function of (seed,
step): worker processes only divide the lanes among them, and resuming rereads at most one buffer.
"""

import contextlib
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
from functools import partial
from typing import IO

import fsspec
import torch
from fsspec.utils import get_protocol
from torch.utils.data import IterableDataset, get_worker_info
from webdataset.gopen import gopen
from webdataset.tariterators import base_plus_ext

from ijepa.arrays import Pixels
from ijepa.config import PixelStats
from ijepa.data.decode import decode_image
from ijepa.data.index import INDEX, parsed_index, split_of
from ijepa.data.loader import Batch, StepPlan, random_crop
from ijepa.data.shards import Sample
from ijepa.data.sources.names import expanded
from ijepa.data.sources.trees import StrictHeader
from ijepa.errors import IjepaError
from ijepa.files import parse_json
from ijepa.jepa.rng import BUFFERS, SHARDS, stream

IMAGE_SUFFIXES = ("jpg", "jpeg", "png", "webp", "npy")
RETRY_SECONDS = (1, 4, 16, 64)  # before each new try to go on with a shard that broke off
ON_THIS_MACHINE = ("file", "local")  # protocols, whose files do not break off
BLOCK_BYTES = 8 * 2**20  # asked for at once
FOR_GOOD: tuple[type[Exception], ...] = (
    FileNotFoundError, PermissionError, NotADirectoryError, IsADirectoryError, ValueError,
)  # fmt: skip
META = re.compile(r"__[^/]*__($|/)")  # names of webdataset's own notes
FIRST_SHARDS = 32  # that are looked into, at most

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RemoteSplit:
    """The shards of one split, elsewhere, in the order of the samples."""

    urls: tuple[str, ...]
    counts: tuple[int, ...]  # samples of each
    counted: bool  # does an index tell `counts`, or are they a guess?
    label_names: dict[str, list[str]]  # as `SplitReader` has them; empty without an index
    fingerprint: str  # of the contents, as the index tells it; of the addresses without an index
    pixels: PixelStats | None = None  # of images that are not 8-bit RGB
    member: str | None = None  # which image of a sample, see `StreamConfig`
    max_bad: int = 0  # samples that may be without an image that decodes

    def __len__(self) -> int:
        return sum(self.counts)

    def read_shard(self, number: int, skip: int = 0) -> Iterator[Sample]:
        """Samples of a shard from the `skip`-th on; `RETRY_SECONDS` are for broken connections."""
        url = self.urls[number]
        is_here = not url.startswith("pipe:") and get_protocol(url) in ON_THIS_MACHINE
        waits = iter(() if is_here else RETRY_SECONDS)
        while True:
            try:
                for sample in self._read_once(number, skip):
                    yield sample
                    skip += 1
            except _breaks() as error:
                words, is_for_good = _explained(error)
                wait = None if is_for_good else next(waits, None)
                if wait is None:
                    raise IjepaError(f"{url} cannot be read: {words}.") from error
                log.warning(
                    "the connection to %s broke (%s); trying again in %d s", url, words, wait
                )
                time.sleep(wait)
            else:
                return

    def _read_once(self, number: int, skip: int) -> Iterator[Sample]:
        """The same through one connection; an error where their number is not that of the index."""
        url, expected = self.urls[number], self.counts[number] if self.counted else None
        samples = _read_tar(url, tuple(self.label_names), self.member, self.max_bad > 0)
        for sample in itertools.islice(samples, skip, None):
            if skip == expected:  # else a resumed run would read other samples
                raise IjepaError(f"{url} holds more than the {skip:,} samples of its index.")
            yield sample
            skip += 1
        if expected is not None and skip < expected:
            raise EOFError(f"it ends after {skip:,} of {expected:,} samples")
        if expected is None and skip == 0:  # streams would look for one for ever
            raise IjepaError(f"{url} cannot be read: it holds no sample.")

    def first_samples(self, count: int) -> list[Sample]:
        """About equally many from the start of several shards, at most `count`.

        Where samples may be bad, those that do not decode are passed over.
        """
        shards = range(0, len(self.urls), -(-len(self.urls) // FIRST_SHARDS))
        each = -(-count // len(shards))
        read = (filter(self._is_taken, self.read_shard(shard)) for shard in shards)
        starts = (itertools.islice(samples, each) for samples in read)
        return list(itertools.islice(itertools.chain.from_iterable(starts), count))

    def _is_taken(self, sample: Sample) -> bool:
        return self.max_bad == 0 or not isinstance(_decoded(sample), str)


def open_remote(
    data: str, split: str, epoch_images: int | None, member: str | None = None, max_bad: int = 0
) -> RemoteSplit:
    """Find the shards of a split; reads the index, no sample.

    `data` is the address of a shard set, for `pipe:` with `{}` in place of a file's name; or of
    tars, with braces as in `train-{000000..000146}.tar`, which hold `epoch_images` together.
    `member` and `max_bad` are as in `RemoteSplit`.

    Raises:
        IjepaError: no index there, no such split, or tars without `epoch_images`.
    """
    if re.search(r"\.tar(?![a-z])", data):
        urls = expanded(data)
        if epoch_images is None:
            raise IjepaError(
                f"{data} has no index that tells how many images these {len(urls):,} tars hold; "
                f"say it with --set stream.epoch_images=N."
            )
        share, rest = divmod(epoch_images, len(urls))
        if share == 0:
            few = f"less than {len(urls):,} tars"
            raise IjepaError(f"stream.epoch_images is {epoch_images:,}, {few}.")
        counts = tuple(share + (number < rest) for number in range(len(urls)))
        digest = hashlib.sha256("\n".join(urls).encode()).hexdigest()
        return RemoteSplit(urls, counts, False, {}, digest, None, member, max_bad)
    url = _within(data, INDEX)
    try:
        with closing(_open(url)) as file:
            index = parsed_index(parse_json(file.read()), url)
    except _breaks() as error:
        raise IjepaError(
            f"{url} cannot be read: {_explained(error)[0]}. Shard sets can be streamed, by the "
            f"address of their folder, and tars, as in train-{{000000..000146}}.tar."
        ) from error
    found = split_of(index.splits, split, data)
    urls = tuple(_within(data, shard.name) for shard in found.shards)
    counts = tuple(shard.samples for shard in found.shards)
    pixels = index.pixels
    return RemoteSplit(urls, counts, True, found.labels, index.fingerprint, pixels, member, max_bad)


class Lanes:
    """Streams of samples that together make the batches of one process.

    `mine` are numbers of this process's lanes among the `total` of all; `buffer` samples of each
    are shuffled together.
    """

    def __init__(self, split: RemoteSplit, seed: int, buffer: int, mine: range, total: int) -> None:
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
    """The random-resized crops of each step of `steps`, which must be consecutive.

    In place of a sample without an image that decodes stands another crop of one of its batch, so
    that a batch is a function of (seed, step) whatever is bad; `Batch.bad` names it.
    """

    def __init__(self, lanes: Lanes, plan: StepPlan, steps: range) -> None:
        self._lanes, self._plan, self._steps = lanes, plan, steps

    def __iter__(self) -> Iterator[Batch]:
        worker = get_worker_info()
        number, workers = (worker.id, worker.num_workers) if worker else (0, 1)
        px = self._plan.config.image_px
        open_lanes: dict[int, Iterator[Sample]] = {}
        for step in self._steps[number::workers]:
            turn, lane = divmod(step, len(self._lanes.mine))
            places, draws = self._plan.crops(step)
            if lane not in open_lanes:
                open_lanes[lane] = self._lanes.samples(lane, turn * len(places))
            samples = list(itertools.islice(open_lanes[lane], len(places)))
            found = [_decoded(sample) for sample in samples]
            good = [one for one in found if not isinstance(one, str)]
            pairs = zip(samples, found, strict=True)
            bad = [f"{sample.key}: {one}" for sample, one in pairs if isinstance(one, str)]
            if not good:
                raise IjepaError(f"No sample of batch {step} has an image that decodes: {bad[0]}.")
            crops = [
                random_crop(good[n % len(good)] if isinstance(one, str) else one, draws, place, px)
                for n, (one, place) in enumerate(zip(found, places.tolist(), strict=True))
            ]
            keys = tuple(sample.key for sample in samples)
            unknown = torch.full((len(places),), -1)
            yield Batch(step, torch.cat(crops), unknown, keys, bad)


def _decoded(sample: Sample) -> Pixels | str:
    """The pixels of a sample, or why there are none."""
    try:
        return sample.fault or decode_image(sample.image)
    except IjepaError as error:
        return str(error)


def workers_for(lanes: int, workers: int) -> int:
    """The most processes, up to `workers`, that share the lanes evenly."""
    return next((count for count in range(workers, 0, -1) if lanes % count == 0), 0)


def _within(data: str, name: str) -> str:
    """Address of a file of a shard set."""
    if not data.startswith("pipe:"):
        return f"{data.rstrip('/')}/{name}"
    if "{}" not in data:
        raise IjepaError(
            f"{data!r} names no tar, and has no {{}} to put the names of a shard set's files in; "
            f"write it as 'pipe:curl -sSf https://host/set/{{}}'."
        )
    return data.replace("{}", shlex.quote(name))


def _read_tar(
    url: str, labels: Sequence[str], member: str | None, lenient: bool
) -> Iterator[Sample]:
    """Samples as WebDataset groups them: neighbours whose names agree up to the first dot.

    With `lenient`, one without an image has a `fault`.
    """
    opened = partial(tarfile.open, mode="r|*", tarinfo=StrictHeader)
    with closing(_open(url)) as file, opened(fileobj=file) as tar:
        members = _members(tar, (*IMAGE_SUFFIXES, "json", *([member.lower()] if member else [])))
        for key, group in itertools.groupby(members, lambda one: one[0]):
            try:
                sample = _sample(url, key, [one[1:] for one in group], labels, member)
            except IjepaError as error:
                if not lenient:
                    raise
                sample = Sample(key, b"", dict.fromkeys(labels, -1), str(error))
            yield sample


def _members(tar: tarfile.TarFile, read: Sequence[str]) -> Iterator[tuple[str, str, bytes]]:
    """Key, suffix and content of plain files; content only where the suffix is one of `read`."""
    for member in tar:
        tar.members = []  # type: ignore[attr-defined]  # or it would remember them all
        key, suffix = base_plus_ext(member.name)
        file = tar.extractfile(member) if member.isreg() else None
        if file is None or key is None or META.match(member.name):
            continue
        yield key, suffix.lower(), file.read() if suffix.lower() in read else b""


def _sample(
    url: str,
    name: str,
    members: Sequence[tuple[str, bytes]],
    labels: Sequence[str],
    member: str | None,
) -> Sample:
    """A sample of its files, each with its suffix; or an `IjepaError` that says what is wrong.

    The JSON of others is ignored, unless an index promises `labels`.
    """
    files = dict(members)
    if len(files) < len(members):
        raise IjepaError(f"{url}: sample {name!r} has two files of the same suffix.")
    images = [s for s in files if (s == member.lower() if member else s in IMAGE_SUFFIXES)]
    if len(images) != 1:
        number = f"{len(images)} images" if images else "no image"
        expected = member or f"one of {', '.join(IMAGE_SUFFIXES)}"
        raise IjepaError(
            f"{url}: sample {name!r} has {number} ({', '.join(sorted(files))}); expected "
            f"{expected}. Choose one with --set stream.member=NAME, or allow N such samples with "
            f"stream.max_bad=N."
        )
    notes, known = None, dict[str, int]()
    with contextlib.suppress(ValueError):
        notes = parse_json(files.get("json", b"{}"))
    if isinstance(notes, dict) and isinstance(notes.get("labels"), dict):
        classes = notes["labels"].items()
        known = {label: n for label, n in classes if type(n) is int and abs(n) < 2**63}
    missing = [label for label in labels if label not in known]
    if missing:
        raise IjepaError(
            f"{url}: the .json of sample {name!r} has no class number as label {missing[0]!r}, "
            f"which the index promises; shard this set again."
        )
    return Sample(name, files[images[0]], known)


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
    """What a broken connection or tar raises; the libraries below fsspec have own errors."""
    foreign = _foreign("botocore.exceptions", "BotoCoreError", "ClientError")
    foreign += _foreign("aiohttp", "ClientError")
    foreign += _foreign("gcsfs.retry", "HttpError", "ChecksumError")
    foreign += _foreign("google.auth.exceptions", "GoogleAuthError")
    return OSError, EOFError, ValueError, tarfile.TarError, *foreign


def _foreign(module: str, *names: str) -> tuple[type[Exception], ...]:
    """Exceptions of a library; none if it is not imported."""
    found = sys.modules.get(module)
    return tuple(getattr(found, name) for name in names) if found else ()


def _explained(error: Exception) -> tuple[str, bool]:
    """An error in words; and would another try be useless?"""
    # fsspec calls a file missing whose host does not answer.
    is_unanswered = isinstance(error.__cause__, _foreign("aiohttp", "ClientConnectionError"))
    reason = error.__cause__ if is_unanswered else error
    lines, name = str(reason).strip().splitlines(), type(reason).__name__
    for_good = (*FOR_GOOD, *_foreign("botocore.exceptions", "NoCredentialsError"))
    return f"{name}: {lines[0].rstrip('.')}" if lines else name, isinstance(reason, for_good)
