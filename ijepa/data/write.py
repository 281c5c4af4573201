"""Write planned shards in a pool of processes; the bytes do not depend on the number."""

import contextlib
import hashlib
import itertools
import json
import tarfile
import warnings
import zlib
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from concurrent.futures import as_completed
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, BinaryIO

import numpy as np

from ijepa.config import Config, ShardConfig
from ijepa.data.decode import DenseLabel, image_size
from ijepa.data.index import (
    MOST_HEADER,
    Rows,
    ShardIndex,
    row_type,
    rows_path,
    sha256_start,
)
from ijepa.data.plan import PlannedShard
from ijepa.data.prepare import (
    PixelSums,
    ReadyImage,
    merged_sums,
    pixel_sums,
    prepare_channels,
    prepare_image,
    prepare_map,
)
from ijepa.data.sources.items import FAULT, Item
from ijepa.data.sources.names import readable
from ijepa.data.sources.tables import RowReader, in_table
from ijepa.data.sources.trees import Entry
from ijepa.errors import IjepaError
from ijepa.files import read_json, sibling, whole_file, write_json
from ijepa.progress import Progress
from ijepa.world import process_pool

ROWS, REPORT = ".npy", ".json"  # beside a tar until the set is published
SHOWN_BAD = 5  # in an error
MAX_BYTES = 2**30  # of an image file
COUNT_EVERY = 64  # images between two reports of progress
_MODE_OWNER = b"0000644\0" + b"0000000\0" * 2
_REST = b"0" + bytes(100) + b"ustar\00000" + bytes(64 + 16 + 167)
_REST_SUM = sum(_REST) + 8 * ord(" ")  # the checksum counts itself as spaces


class BadImage(Config):
    """An image that was left out, and why."""

    key: str
    path: str
    reason: str


class ShardReport(Config):
    """A finished shard."""

    index: ShardIndex
    bad: list[BadImage]
    changes: dict[str, int]  # numbers of images that were changed or lost something, by what
    classes: dict[str, int]  # of each dense label, the largest class number that occurs, + 1
    pixels: PixelSums | None = None  # of images with `ShardConfig.channels`


def write_shards(
    shards: Sequence[PlannedShard],
    config: ShardConfig,
    workers: int,
    progress: Progress,
    dense: Mapping[str, DenseLabel],
) -> list[ShardReport]:
    """Write shards, each by one of `workers` processes; a report of each.

    `dense` are the dense labels of their images. Shards of an earlier run are kept.

    Raises:
        IjepaError: a process was killed, or too many images do not decode.
        OSError: a file could not be read or written.
    """
    reports = {}
    for shard in shards:
        path = sibling(shard.tar, REPORT)
        if path.exists() and shard.tar.exists() and sibling(shard.tar, ROWS).exists():
            report = ShardReport.model_validate(read_json(path))
            if shard.tar.stat().st_size == report.index.bytes:  # an earlier run has finished it
                reports[shard] = report
    left = [shard for shard in shards if shard not in reports]
    done, total = (sum(one.num_images for one in some) for some in (reports, shards))
    bad = [image for report in reports.values() for image in report.bad]

    def count(images: int) -> None:
        nonlocal done
        done += images
        progress("shard images", done, total, {"bad": len(bad)} if bad else None)

    count(0)
    write = partial(_write_shard, config=config, dense=dense)
    with contextlib.closing(_written(left, write, workers, count)) as written:
        for shard, report in written:
            reports[shard] = report
            bad += report.bad
            check_bad(bad, config.max_bad)
            merged_sums([one.pixels for one in reports.values() if one.pixels])  # refuses two types
    return [reports[shard] for shard in shards]


def check_bad(bad: Sequence[BadImage], max_bad: int) -> None:
    """Refuse more than `max_bad` images that do not decode, or whose labels cannot be read."""
    if len(bad) <= max_bad:
        return
    shown = "; ".join(f"{image.path}: {image.reason}" for image in bad[:SHOWN_BAD])
    more = f"; and {len(bad) - SHOWN_BAD:,} more" if len(bad) > SHOWN_BAD else ""
    raise IjepaError(
        f"At least {len(bad):,} images do not decode, {max_bad:,} are allowed ({shown}{more}); "
        f"mend them, or leave them out with --max-bad."
    )


def _written(
    shards: Sequence[PlannedShard],
    write: Callable[..., ShardReport],
    workers: int,
    count: Callable[[int], None],
) -> Generator[tuple[PlannedShard, ShardReport]]:
    if workers < 2 or len(shards) < 2:
        yield from ((shard, write(shard, count=count)) for shard in shards)
        return
    with process_pool(min(workers, len(shards))) as pool:
        futures = {pool.submit(write, shard): shard for shard in shards}
        for future in as_completed(futures):
            report = future.result()
            count(futures[future].num_images)
            yield futures[future], report


def _write_shard(
    shard: PlannedShard,
    config: ShardConfig,
    dense: Mapping[str, DenseLabel],
    count: Callable[[int], None] = lambda _: None,
) -> ShardReport:
    """Write one shard, then its rows of the index, then its report."""
    bad, changes, classes = list[BadImage](), Counter[str](), dict.fromkeys(dense, 0)
    tables = RowReader(config.member)
    pixels, take = None, prepare_channels if config.channels else prepare_image
    with whole_file(shard.tar) as tar, warnings.catch_warnings():
        writer = ShardWriter(tar, shard.number)
        warnings.simplefilter("ignore")  # Pillow has something to say about many a whole image
        for done, (key, item) in enumerate(shard.images(), start=1):
            path = readable(item.path)
            row = tables.read(item.file, item.offset) if in_table(item) else None
            try:
                if reason := item.metadata.get(FAULT):
                    raise IjepaError(reason)
                content = _read(item.file, item.offset, item.size_bytes) if row is None else row
                taken = take(content, config)
                maps = _prepare_maps(item, dense, taken, config)
            except IjepaError as error:
                bad.append(BadImage(key=key, path=path, reason=str(error)))
            else:
                changes.update(taken.changes)
                if taken.pixels is not None:
                    now = pixel_sums(taken.pixels, path)
                    pixels = merged_sums([pixels, now] if pixels else [now])  # refuses two types
                facts = {"file": path, **item.metadata}
                files = {f"{name}.{end}": one for name, (one, end, _) in maps.items()}
                writer.add(key, taken.content, taken.extension, item.labels, facts, files)
                classes = {name: max(n, maps[name][2]) for name, n in classes.items()}
            if done % COUNT_EVERY == 0:
                count(COUNT_EVERY)
        index, rows = writer.finish(shard.tar.name)
        np.save(sibling(shard.tar, ROWS), rows)
    count(shard.num_images % COUNT_EVERY)
    report = ShardReport(index=index, bad=bad, changes=changes, classes=classes, pixels=pixels)
    write_json(sibling(shard.tar, REPORT), report.model_dump())
    return report


def _prepare_maps(
    item: Item, dense: Mapping[str, DenseLabel], image: ReadyImage, config: ShardConfig
) -> dict[str, tuple[bytes, str, int]]:
    """Of each dense label of an image that was taken in: its file, and as `prepare_map`."""
    maps = {}
    for name, label in dense.items():
        path, _, size_bytes = item.dense[name]
        if not size_bytes:
            raise IjepaError(f"there is no {name} {readable(path)}")
        content, size = _read(*item.dense[name]), image_size(image.content)
        try:
            kind = prepare_map(content, label, size, resized=config.resize_px is not None)
        except IjepaError as error:
            raise IjepaError(f"its {name} {readable(path)} is refused: {error}") from error
        maps[name] = content, *kind
    return maps


def _read(path: str, offset: int, size_bytes: int) -> bytes:
    if size_bytes > MAX_BYTES:
        raise IjepaError(f"{size_bytes:,} bytes, more than {MAX_BYTES:,}; no image is so large")
    if not size_bytes and not Path(path).exists():
        what = "a symbolic link to nothing" if Path(path).is_symlink() else "no such file"
        raise IjepaError(what)
    return Entry("", path, offset, size_bytes).read()


class ShardWriter:
    """Samples of one shard, in the order they are added: a plain tar, hashed as it is written."""

    def __init__(self, file: BinaryIO, number: int) -> None:
        """Write to `file` the shard of this number in its split."""
        self._file, self._number = file, number
        self._sha256, self._bytes = hashlib.sha256(), 0
        self._labels: list[str] = []
        self._dense: list[str] = []
        self._rows: list[tuple[Any, ...]] = []

    def add(
        self,
        key: str,
        image: bytes,
        extension: str,
        labels: Mapping[str, int],
        metadata: Mapping[str, Any],
        maps: Mapping[str, bytes] = MappingProxyType({}),
    ) -> None:
        """Write `key`'s image, its `.cls` if one label is the class, and a `.json` of all labels.

        A class number of -1, which is not known, gets no `.cls`. `maps` are files of dense labels
        by suffix, such as `seg.png`.
        """
        only = next(iter(labels.values())) if len(labels) == 1 else -1
        number = labels.get("class", only)
        if number >= 0:
            self._add_file(f"{key}.cls", b"%d" % number)
        place = self._add_file(f"{key}.{extension}", image)
        self._labels = sorted(labels)  # those of every image of a split
        self._dense = sorted(suffix.rpartition(".")[0] for suffix in maps)
        known = (labels[label] for label in self._labels)
        added = (self._add_file(f"{key}.{suffix}", maps[suffix]) for suffix in sorted(maps))
        found = itertools.chain.from_iterable(added)
        self._rows.append((self._number, *place, *known, *found, key.encode()))
        body = json.dumps({"key": key, "labels": dict(labels), **metadata}).encode()
        self._add_file(f"{key}.json", body)

    def finish(self, name: str) -> tuple[ShardIndex, Rows]:
        """Write the end of the tar, and return what the index says of the shard `name`."""
        self._write(bytes(2 * tarfile.BLOCKSIZE))
        digest, samples = self._sha256.hexdigest(), len(self._rows)
        index = ShardIndex(name=name, samples=samples, bytes=self._bytes, sha256=digest)
        key_bytes = max((len(row[-1]) for row in self._rows), default=0)
        return index, np.array(self._rows, dtype=row_type(self._labels, key_bytes, self._dense))

    def _add_file(self, name: str, content: bytes) -> tuple[int, int, int]:
        """Write a file; where its content lies in the tar, its size, and its `sha256_start`."""
        header = tar_header(name, len(content))
        start = self._bytes + len(header)
        self._write(header + content + bytes(-len(content) % tarfile.BLOCKSIZE))
        return start, len(content), sha256_start(content)

    def _write(self, content: bytes) -> None:
        self._file.write(content)
        self._sha256.update(content)
        self._bytes += len(content)


def tar_header(name: str, size_bytes: int) -> bytes:
    """The header of a plain file, owner, group and time 0: as tarfile's, several times faster.

    On images of 2 kB, tarfile alone would halve the speed of the whole stage. A name that is long
    or not ASCII gets a PAX header before it, which tarfile writes.
    """
    if len(name) > tarfile.LENGTH_NAME or not name.isascii():
        member = tarfile.TarInfo(name)
        member.size = size_bytes
        return member.tobuf(tarfile.PAX_FORMAT)
    before = name.encode().ljust(tarfile.LENGTH_NAME, b"\0") + _MODE_OWNER
    before += b"%011o\0%011o\0" % (size_bytes, 0)
    return before + b"%06o\0 " % (sum(before) + _REST_SUM) + _REST


def join_rows(
    folder: Path,
    split: str,
    labels: Sequence[str],
    shards: list[ShardIndex],
    dense: Iterable[str] = (),
) -> int:
    """Make the index of a split of those of its shards, on disk; CRC-32 of its rows."""
    count = sum(shard.samples for shard in shards)
    if not count:
        raise IjepaError(f"No image of split {split} decodes; {folder} tells why.")
    parts = [(folder / f"{shard.name}{ROWS}", shard.samples) for shard in shards if shard.samples]
    read = partial(np.load, mmap_mode="r", max_header_size=MOST_HEADER)
    key_bytes = max(read(path).dtype["key"].itemsize for path, _ in parts)
    kind = row_type(labels, key_bytes, dense)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # NumPy before 1.17 reads no names that are not Latin
        rows = np.lib.format.open_memmap(rows_path(folder, split), "w+", kind, (count,))
    first = 0
    for path, samples in parts:
        rows[first : first + samples] = read(path)
        first += samples
    rows.flush()
    return zlib.crc32(rows.data)
