"""Write one shard from its plan, and remember that it is whole."""

import os
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np

from ijepa.config import Config, ShardConfig
from ijepa.data.intake import take_in
from ijepa.data.plan import PlannedImage, PlannedShard, ShardPlan
from ijepa.data.shards import ShardIndex
from ijepa.data.writer import ShardWriter
from ijepa.errors import IjepaError
from ijepa.stage import naming, read_json, write_json

SIDECARS = (".npy", ".json")  # beside a tar until the set is published
MAX_BYTES = 2**30  # of an image file
COUNT_EVERY = 64  # images between two reports of progress


class BadImage(Config):
    """An image that was left out, and why."""

    key: str
    path: str
    reason: str


class ShardReport(Config):
    """A finished shard; stands beside its tar until the set is published.

    Attributes:
        index: what the index says of it.
        bad: images that were left out.
        changes: numbers of images that were changed or lost something, by what.
    """

    index: ShardIndex
    bad: list[BadImage]
    changes: dict[str, int]


class ShardTask(Config):
    """A shard to write, and where to."""

    plan: Path
    shard: PlannedShard
    folder: Path
    config: ShardConfig

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


def finished(task: ShardTask) -> ShardReport | None:
    """What an earlier process, perhaps a killed one, has done already."""
    if not (task.report.exists() and task.tar.exists() and task.rows.exists()):
        return None
    report = ShardReport.model_validate(read_json(task.report))
    return report if task.tar.stat().st_size == report.index.bytes else None


def write_shard(task: ShardTask, count: Callable[[int], None]) -> ShardReport:
    """Write one shard, then its offsets, then its report."""
    bad, uncounted, changes = [], 0, Counter[str]()
    with ShardWriter(task.tar, task.shard.number) as writer, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow has something to say about many a whole image
        for image in ShardPlan(task.plan).images(task.shard):
            try:
                taken = take_in(_read(image), task.config)
            except IjepaError as error:
                path = image.metadata["file"]
                bad.append(BadImage(key=image.key, path=path, reason=str(error)))
            else:
                changes.update(taken.changes)
                writer.add(image.key, taken.content, taken.extension, image.labels, image.metadata)
            uncounted += 1
            if uncounted == COUNT_EVERY:
                count(uncounted)
                uncounted = 0
        index, rows = writer.close()
    count(uncounted)
    np.save(task.rows, rows)
    report = ShardReport(index=index, bad=bad, changes=changes)
    write_json(task.report, report.model_dump())
    return report


def _read(image: PlannedImage) -> bytes:
    if image.size_bytes > MAX_BYTES:
        raise IjepaError(
            f"{image.size_bytes:,} bytes, more than {MAX_BYTES:,}; no image is so large"
        )
    try:
        descriptor = os.open(image.file, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError as error:
        if image.size_bytes:
            raise
        raise IjepaError("a symbolic link to nothing") from error
    try:
        with naming(Path(image.file)):
            return os.pread(descriptor, image.size_bytes, image.offset)
    except MemoryError as error:
        raise IjepaError("file does not fit into memory") from error
    finally:
        os.close(descriptor)
