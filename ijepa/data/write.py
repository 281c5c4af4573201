"""Write the shards of a plan in a pool of processes; the bytes do not depend on the number."""

import ctypes
import hashlib
import json
import os
import tarfile
import warnings
import zlib
from collections import Counter
from collections.abc import Callable, Generator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.sharedctypes import RawArray
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from ijepa.config import Config, ShardConfig
from ijepa.data.decode import take_in
from ijepa.data.plan import PlannedShard, ShardPlan
from ijepa.data.processes import end_with_parent, processes
from ijepa.data.shards import Rows, ShardIndex, row_type, rows_path
from ijepa.errors import IjepaError
from ijepa.files import read_json, whole_file, write_json

SIDECARS = (".npy", ".json")  # beside a tar until the set is published
MAX_BYTES = 2**30  # of an image file
COUNT_EVERY = 64  # images between two reports of progress
POLL_SECONDS = 0.1
BLOCK = tarfile.BLOCKSIZE
_MODE_OWNER = b"0000644\0" + b"0000000\0" * 2
_REST = b"0" + bytes(100) + b"ustar\00000" + bytes(64 + 16 + 167)
_REST_SUM = sum(_REST) + 8 * ord(" ")  # the checksum counts itself as spaces


class BadImage(Config):
    """An image that was left out, and why."""

    key: str
    path: str
    reason: str


class ShardReport(Config):
    """A finished shard; lies beside its tar until the set is published.

    Attributes:
        index: what the index says of it.
        bad: images that were left out.
        changes: numbers of images that were changed or lost something, by what.
    """

    index: ShardIndex
    bad: list[BadImage]
    changes: dict[str, int]


class ShardTask(NamedTuple):
    """A shard to write."""

    plan: Path
    shard: PlannedShard
    labels: tuple[str, ...]
    folder: Path
    config: ShardConfig

    @property
    def tar(self) -> Path:
        """The shard itself; its index and its report have this name and a suffix more."""
        return self.folder / self.shard.name


def finished(task: ShardTask) -> ShardReport | None:
    """The report of a shard that an earlier run has finished; None if it did not."""
    rows, report = (task.tar.with_name(task.tar.name + suffix) for suffix in SIDECARS)
    if not (report.exists() and task.tar.exists() and rows.exists()):
        return None
    found = ShardReport.model_validate(read_json(report))
    return found if task.tar.stat().st_size == found.index.bytes else None


def write_shards(
    tasks: list[ShardTask], workers: int, count: Callable[[int], None]
) -> Generator[ShardReport]:
    """Write shards, each by one process; all have ended when the generator is closed.

    The processes are forked, so they hold the lock of the output until they end.

    Args:
        tasks: what to write.
        workers: processes.
        count: called with the number of further images that are done.

    Raises:
        IjepaError: a process was killed.
        OSError: a file could not be read or written.
    """
    if workers < 2 or len(tasks) < 2:
        for task in tasks:
            yield _write_shard(task, count)
        return
    # Without locks, which a killed process might hold for ever: each number has one writer.
    done, stop, told = RawArray(ctypes.c_int64, len(tasks)), RawArray(ctypes.c_bool, 1), 0
    pool = ProcessPoolExecutor(
        min(workers, len(tasks)), processes(), initializer=_begin, initargs=(done, stop)
    )
    try:
        left: set[Future[ShardReport]] = {
            pool.submit(_write_in_pool, number, task) for number, task in enumerate(tasks)
        }
        while left:
            ended, left = wait(left, POLL_SECONDS, FIRST_COMPLETED)
            count(sum(done) - told)
            told = sum(done)
            yield from (future.result() for future in ended)
    except BrokenProcessPool as error:
        raise IjepaError(
            "A process that wrote shards was killed, most likely for want of memory; the same "
            "command goes on from here, and with --workers 1 needs the least."
        ) from error
    finally:
        stop[0] = True
        pool.shutdown(cancel_futures=True)


def join_rows(folder: Path, split: str, labels: tuple[str, ...], shards: list[ShardIndex]) -> int:
    """Make the index of a split of those of its shards, without holding it in memory.

    Returns:
        CRC-32 of its rows.
    """
    count = sum(shard.samples for shard in shards)
    if not count:
        raise IjepaError(f"No image of split {split} decodes; {folder} tells why.")
    paths = [folder / f"{shard.name}.npy" for shard in shards]
    key_bytes = max(np.load(path, mmap_mode="r").dtype["key"].itemsize for path in paths)
    kind = row_type(labels, key_bytes)
    rows = np.lib.format.open_memmap(rows_path(folder, split), "w+", kind, (count,))
    first = 0
    for path, shard in zip(paths, shards, strict=True):
        rows[first : first + shard.samples] = np.load(path)
        first += shard.samples
    rows.flush()
    return zlib.crc32(rows.data)


class ShardWriter:
    """Samples of one shard, in the order they are added: a plain tar, hashed as it is written."""

    def __init__(self, file: BinaryIO, place: int, labels: tuple[str, ...]) -> None:
        """Write to `file` the shard at `place` in its split."""
        self._file, self._place, self._labels = file, place, sorted(labels)
        self._sha256 = hashlib.sha256()
        self._bytes = self._key_bytes = 0
        self._rows: list[tuple[int | bytes, ...]] = []

    def add(
        self,
        key: str,
        image: bytes,
        extension: str,
        labels: Mapping[str, int],
        metadata: Mapping[str, Any],
    ) -> None:
        """Write `key`'s image, its `.cls` if one label is the class, and a `.json` of all labels.

        A class number of -1, which is not known, gets no `.cls`.
        """
        only = next(iter(labels.values())) if len(labels) == 1 else None
        number = labels.get("class", only)
        body = json.dumps({"key": key, "labels": dict(labels), **metadata}).encode()
        before = (
            _member(f"{key}.cls", b"%d" % number) if number is not None and number >= 0 else b""
        )
        before += tar_header(f"{key}.{extension}", len(image))
        offset, name = self._bytes + len(before), key.encode()
        place = (self._place, offset, len(image), zlib.crc32(image))
        self._rows.append((*place, *(labels[label] for label in self._labels), name))
        self._key_bytes = max(self._key_bytes, len(name))
        self._write(before + image + bytes(-len(image) % BLOCK) + _member(f"{key}.json", body))

    def finish(self, name: str) -> tuple[ShardIndex, Rows]:
        """Write the end of the tar, and return what the index says of the shard `name`."""
        self._write(bytes(2 * BLOCK))
        digest, samples = self._sha256.hexdigest(), len(self._rows)
        index = ShardIndex(name=name, samples=samples, bytes=self._bytes, sha256=digest)
        return index, np.array(self._rows, dtype=row_type(self._labels, self._key_bytes))

    def _write(self, content: bytes) -> None:
        self._file.write(content)
        self._sha256.update(content)
        self._bytes += len(content)


def _member(name: str, content: bytes) -> bytes:
    return tar_header(name, len(content)) + content + bytes(-len(content) % BLOCK)


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


_shared: dict[str, Any] = {}  # in a process of the pool: what its parent reads and writes, too


def _begin(done: "ctypes.Array[ctypes.c_int64]", stop: "ctypes.Array[ctypes.c_bool]") -> None:
    _shared.update(done=done, stop=stop)
    end_with_parent()


def _write_in_pool(number: int, task: ShardTask) -> ShardReport:
    def count(images: int) -> None:
        _shared["done"][number] += images
        if _shared["stop"][0]:
            raise InterruptedError

    return _write_shard(task, count)


def _write_shard(task: ShardTask, count: Callable[[int], None]) -> ShardReport:
    """Write one shard, then its rows of the index, then its report."""
    bad, uncounted, changes = [], 0, Counter[str]()
    with whole_file(task.tar) as tar, warnings.catch_warnings():
        writer = ShardWriter(tar, task.shard.number, task.labels)
        warnings.simplefilter("ignore")  # Pillow has something to say about many a whole image
        for key, file, *place, labels, metadata in ShardPlan(task.plan).images(task.shard):
            try:
                taken = take_in(_read(file, *place), task.config)
            except IjepaError as error:
                bad.append(BadImage(key=key, path=metadata["file"], reason=str(error)))
            else:
                changes.update(taken.changes)
                writer.add(key, taken.content, taken.extension, labels, metadata)
            uncounted += 1
            if uncounted == COUNT_EVERY:
                count(uncounted)
                uncounted = 0
        index, rows = writer.finish(task.tar.name)
    count(uncounted)
    np.save(task.tar.with_name(task.tar.name + ".npy"), rows)
    report = ShardReport(index=index, bad=bad, changes=changes)
    write_json(task.tar.with_name(task.tar.name + ".json"), report.model_dump())
    return report


def _read(path: str, offset: int, size_bytes: int) -> bytes:
    if size_bytes > MAX_BYTES:
        raise IjepaError(f"{size_bytes:,} bytes, more than {MAX_BYTES:,}; no image is so large")
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            return os.pread(descriptor, size_bytes, offset)
        finally:
            os.close(descriptor)
    except FileNotFoundError as error:
        if size_bytes:
            raise
        raise IjepaError("a symbolic link to nothing") from error
    except OSError as error:
        error.filename = error.filename or path  # a failed read does not name its file
        raise
    except MemoryError as error:
        raise IjepaError("file does not fit into memory") from error
