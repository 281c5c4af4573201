"""Processes that write whole shards; which of them writes what leaves the bytes as they are."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import wait as wait_for_end
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ijepa.config import Config
from ijepa.errors import IjepaError
from ijepa.stores.sharding.intake import take_in
from ijepa.stores.sharding.plan import PlannedImage, PlannedShard, ShardPlan
from ijepa.stores.sharding.writer import ShardWriter
from ijepa.stores.shards import ShardIndex
from ijepa.stores.stage import read_json, write_json

REPORT_SECONDS = 0.25
SIDECARS = (".npy", ".json")  # beside a tar until the set is published
COUNT_EVERY = 64  # images between two looks at what the processes share


class BadImage(Config):
    """An image that was left out, and why."""

    key: str
    path: str
    reason: str


class ShardReport(Config):
    """A finished shard; stands beside its tar until the set is published."""

    index: ShardIndex
    bad: list[BadImage]


class ShardTask(NamedTuple):
    """A shard to write, and where to."""

    plan: Path
    shard: PlannedShard
    folder: Path
    resize_px: int | None

    @property
    def tar(self) -> Path:
        """The shard itself."""
        return self.folder / self.shard.name

    @property
    def rows(self) -> Path:
        """Offsets of its samples."""
        return self.folder / f"{self.shard.name}.npy"

    @property
    def report(self) -> Path:
        """Written last: if it is there, so is all else."""
        return self.folder / f"{self.shard.name}.json"


class Stopped(Exception):  # noqa: N818  # no error: another shard failed, or the user stopped
    """The work is to end at once."""


def finished(task: ShardTask) -> ShardReport | None:
    """What an earlier process, perhaps a killed one, has done already."""
    if not (task.report.exists() and task.tar.exists() and task.rows.exists()):
        return None
    return ShardReport.model_validate(read_json(task.report))


def write_shards(
    tasks: list[ShardTask], workers: int, count: Callable[[int], None]
) -> Iterator[ShardReport]:
    """Write shards, each by one process; `count` hears now and then of how many images are done.

    Raises:
        IjepaError: a process was killed.
    """
    if workers < 2 or len(tasks) < 2:
        for task in tasks:
            yield write_shard(task, count)
        return
    context = multiprocessing.get_context("spawn")  # fork is not safe beside threads
    done, stop = context.Value("q", 0), context.Event()
    pool = ProcessPoolExecutor(min(workers, len(tasks)), context, _begin, (done, stop))
    counted = 0
    try:
        waiting = {pool.submit(_write_shared, task) for task in tasks}
        while waiting:
            ended, waiting = wait(waiting, REPORT_SECONDS, FIRST_COMPLETED)
            now = done.value
            count(now - counted)
            counted = now
            for future in ended:
                yield future.result()
    except BrokenProcessPool as error:
        raise IjepaError(
            "A process that wrote shards was killed, most likely for want of memory; the same "
            "command goes on from here, with --workers 1 it needs the least."
        ) from error
    finally:
        stop.set()
        pool.shutdown(cancel_futures=True)


def write_shard(task: ShardTask, count: Callable[[int], None]) -> ShardReport:
    """Write one shard, then its offsets, then its report."""
    bad, uncounted = [], 0
    with ShardWriter(task.tar, task.shard.number) as writer:
        for image in ShardPlan(task.plan).images(task.shard):
            try:
                content, extension = take_in(_read(image), task.resize_px)
            except IjepaError as error:
                path = image.metadata["file"]
                bad.append(BadImage(key=image.key, path=path, reason=str(error)))
            else:
                writer.add(image.key, content, extension, image.labels, image.metadata)
            uncounted += 1
            if uncounted == COUNT_EVERY:
                count(uncounted)
                uncounted = 0
        index, rows = writer.close()
    count(uncounted)
    np.save(task.rows, rows)
    report = ShardReport(index=index, bad=bad)
    write_json(task.report, report.model_dump())
    return report


def _read(image: PlannedImage) -> bytes:
    try:
        descriptor = os.open(image.file, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise IjepaError("no such file") from error
    try:
        return os.pread(descriptor, image.size_bytes, image.offset)
    finally:
        os.close(descriptor)


class _Shared(NamedTuple):
    """What the processes of a pool share: images done, and whether to stop."""

    done: Any
    stop: Any


_shared: _Shared | None = None  # of a pool's process; processes have no other way to hand it on


def _begin(done: object, stop: object) -> None:
    """In a new process: leave Ctrl-C to the parent, and end when it ends, even by kill -9."""
    global _shared
    _shared = _Shared(done, stop)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait_for_end([parent.sentinel])
    os._exit(1)


def _write_shared(task: ShardTask) -> ShardReport:
    return write_shard(task, _count_shared)


def _count_shared(images: int) -> None:
    assert _shared is not None
    if _shared.stop.is_set():
        raise Stopped
    with _shared.done.get_lock():
        _shared.done.value += images
