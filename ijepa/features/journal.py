"""Which batches of a growing feature store are there, with all of them but their numbers.

Each writer adds lines to a file of its own. A line that a kill cut short is no line, and a batch
whose numbers never reached the disk does not agree with its checksum: both are simply made again.
"""

import json
import os
import shutil
import tempfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

Array = np.ndarray[tuple[int, ...], np.dtype[Any]]


class Batch(NamedTuple):
    """Some rows that follow each other.

    Attributes:
        first: number of the first one.
        shape: (rows, layers, dim).
        checksum: crc32 of their numbers.
        columns: `keys`, `image_id`, `view` where there are any, and `labels/NAME`, each a list.
    """

    first: int
    shape: tuple[int, int, int]
    checksum: int
    columns: Mapping[str, list[Any]]


class _Line(NamedTuple):
    """Where a batch stands in the journal."""

    path: Path
    start: int
    shape: tuple[int, int, int]


class Journal:
    """Batches by the number of their first row; columns are read when they are asked for."""

    def __init__(self, folder: Path, numbers: Path, dtype: "np.dtype[Any]", start: int) -> None:
        """Take up what stands in `folder` and agrees with the numbers.

        Args:
            folder: of the journal; made by the first batch.
            numbers: the file of all rows' numbers.
            dtype: of these.
            start: place of row 0 in that file.
        """
        self._folder, self._own = folder, None
        self._lines: dict[int, _Line] = {}
        self.rows, self.key_bytes = 0, 1
        found = [item for path in sorted(folder.glob("*.jsonl")) for item in _read(path)]
        if not found or not numbers.exists():
            return
        with numbers.open("rb") as file:
            for line, batch in found:
                row_bytes = batch.shape[1] * batch.shape[2] * dtype.itemsize
                file.seek(start + batch.first * row_bytes)
                if zlib.crc32(file.read(batch.shape[0] * row_bytes)) == batch.checksum:
                    self._count(batch, line)

    _own: Path | None

    def holds(self, first: int) -> bool:
        """Is there a batch that begins with this row?"""
        return first in self._lines

    def add(self, batch: Batch) -> None:
        """Note a batch whose numbers are written."""
        if self._own is None:
            self._folder.mkdir(exist_ok=True)
            handle, name = tempfile.mkstemp(suffix=".jsonl", dir=self._folder)
            os.close(handle)
            self._own = Path(name)
        with self._own.open("ab") as file:
            start = file.tell()
            file.write(json.dumps(batch._asdict(), ensure_ascii=False).encode() + b"\n")
        self._count(batch, _Line(self._own, start, batch.shape))

    def batches(self) -> Iterator[Batch]:
        """All of them in the order of their rows."""
        rows = 0
        for first, line in sorted(self._lines.items()):
            assert first == rows, f"{self._folder}: {rows} rows stand before row {first}"
            rows += line.shape[0]
            with line.path.open("rb") as file:
                file.seek(line.start)
                yield _batch(file.readline())

    def row_shape(self) -> tuple[int, int] | None:
        """(layers, dim), once there is a batch."""
        return next((line.shape[1:] for line in self._lines.values()), None)

    def remove(self) -> None:
        """Throw the journal away."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def _count(self, batch: Batch, line: _Line) -> None:
        if batch.first not in self._lines:
            self.rows += line.shape[0]
        self._lines[batch.first] = line
        self.key_bytes = max(
            [self.key_bytes, *(len(key.encode()) for key in batch.columns["keys"])]
        )


def _read(path: Path) -> Iterator[tuple[_Line, Batch]]:
    start = 0
    for text in path.read_bytes().splitlines(keepends=True):
        try:
            batch = _batch(text)
        except (ValueError, TypeError):
            return  # cut short: nothing stands behind it
        yield _Line(path, start, batch.shape), batch
        start += len(text)


def _batch(text: bytes) -> Batch:
    body = json.loads(text)
    rows, layers, dim = body.pop("shape")
    return Batch(shape=(rows, layers, dim), **body)
