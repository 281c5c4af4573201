"""Makes a feature store, without a kill or a full disk costing more than the last batch.

An HDF5 file that is killed while it grows can be damaged as a whole, and the HDF5 library does not
survive a full disk. So the writer keeps each batch in a small file of its own, whole or absent, and
assembles the store once, when all rows are there and the disk is known to have room.
"""

import io
import json
import os
import shutil
import tempfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from ijepa.errors import IjepaError
from ijepa.stores.features import (
    BLOCK_ROWS,
    SCHEMA,
    Array,
    FeatureHeader,
    check_columns,
    first_bad,
    is_finite,
    open_features,
)
from ijepa.stores.stage import write_bytes

CHUNK_ROWS = 512  # of labels and keys
OVERHEAD_BYTES, KEY_BYTES = 2**20, 64  # what HDF5 adds, at most: once, and for every key


class FeatureWriter:
    """Adds rows, durably, and assembles the store when all are there.

    Opened again on the same path after a kill, it knows what it `holds`. Several processes may each
    open a writer on the same path and add other rows; one that is opened afterwards has them all.
    """

    def __init__(self, path: Path, header: FeatureHeader, dtype: str) -> None:
        """Begin, or take up, the store at `path` with numbers of `dtype`."""
        self.path, self.header, self.dtype = path, header, np.dtype(dtype)
        self._parts = _Parts(path.with_name(path.name + ".parts"))
        self._assembled_rows = open_features(path).shape[0] if path.exists() else None

    @property
    def rows_done(self) -> int:
        """How many rows no kill can take away."""
        return self._parts.rows if self._assembled_rows is None else self._assembled_rows

    def holds(self, first: int) -> bool:
        """Is there a batch that begins with this row?"""
        return self._parts.holds(first) or first < (self._assembled_rows or 0)

    def append(
        self,
        features: Array,
        labels: Mapping[str, Array],
        keys: Sequence[str],
        views: Array | None = None,
        first: int | None = None,
    ) -> None:
        """Add a batch, and put it on disk.

        Args:
            features: (n, layers, dim), finite, also as `dtype`.
            labels: (n,) integers by label, one for each of the header's.
            keys: n of them.
            views: (n,) numbers of augmented views, where an image is stored more than once.
            first: number of its first row; None for the one after all rows so far.

        Raises:
            IjepaError: a number that is not finite, or too large for `dtype`.
        """
        assert {len(features), *map(len, labels.values())} == {len(keys)}
        assert set(labels) == set(self.header.class_names)
        with np.errstate(over="ignore"):  # an overflow is found below
            numbers = features.astype(self.dtype, copy=False)
        if not is_finite(numbers):
            raise IjepaError(
                f"Features of {first_bad(numbers, keys)} are not finite as {self.dtype}; extract "
                f"with --dtype float32, and if that fails, too, the encoder is broken."
            )
        arrays = {f"label:{name}": np.asarray(values, np.int64) for name, values in labels.items()}
        if views is not None:
            arrays["view"] = np.asarray(views, np.int16)
        text = json.dumps(list(keys)).encode()
        first = self._parts.rows if first is None else first
        self._parts.add(
            first, len(keys), {"features": numbers, "keys": np.frombuffer(text, np.uint8)} | arrays
        )

    def finish(self) -> None:
        """Assemble the HDF5 file in bounded memory, check it, and mark it complete.

        Raises:
            IjepaError: a key (with the same view) was appended twice.
            OSError: the disk is too full; what was appended stays.
        """
        if self._assembled_rows is None:
            draft = self.path.with_name(self.path.name + ".draft")
            room = self._parts.num_bytes + self._parts.rows * KEY_BYTES + OVERHEAD_BYTES
            _require_space(draft.parent, room)
            with h5py.File(draft, "w") as store:
                self._assemble(store)
                check_columns(self.path, store)
                store.attrs["complete"] = True
            with draft.open("rb") as file:
                os.fsync(file.fileno())
            draft.replace(self.path)
            self._assembled_rows = self._parts.rows
        self._parts.remove()

    def _assemble(self, store: h5py.File) -> None:
        rows = self._parts.rows
        first_part = next(iter(self._parts.read()), (0, {}))[1]
        shape = first_part["features"].shape[1:] if first_part else (len(self.header.layers), 0)
        store.attrs["schema"] = SCHEMA
        store.attrs["header"] = self.header.model_dump_json()
        store.create_dataset("features", (rows, *shape), self.dtype)
        checksums = _Checksums()
        self._create(store, "keys", (rows,), h5py.string_dtype())
        for name in self.header.class_names:
            self._create(store, f"labels/{name}", (rows,), np.dtype(np.int64))
        if "view" in first_part:
            self._create(store, "view", (rows,), np.dtype(np.int16))
        for first, part in self._parts.read():
            checksums.add(part["features"])
            for name, values in part.items():
                place = name.replace("label:", "labels/", 1) if name.startswith("label:") else name
                store[place][first : first + len(values)] = values
        store.create_dataset("checksums", data=np.array(checksums.finished(), np.uint32))

    @staticmethod
    def _create(store: h5py.File, name: str, shape: tuple[int, ...], dtype: Any) -> None:  # noqa: ANN401
        """A column in chunks of some rows, with checksums except for strings."""
        chunks = (min(shape[0], CHUNK_ROWS),) if shape[0] else None
        checked = bool(chunks) and dtype != h5py.string_dtype()
        store.create_dataset(name, shape, dtype, chunks=chunks, fletcher32=checked)


class _Checksums:
    """crc32 of every `BLOCK_ROWS` rows, which come in batches of any size."""

    def __init__(self) -> None:
        self._whole: list[int] = []
        self._open, self._rows = 0, 0

    def add(self, numbers: Array) -> None:
        while len(numbers):
            some, numbers = np.split(numbers, [BLOCK_ROWS - self._rows])
            self._open = zlib.crc32(some.tobytes(), self._open)
            self._rows += len(some)
            if self._rows == BLOCK_ROWS:
                self._whole.append(self._open)
                self._open, self._rows = 0, 0

    def finished(self) -> list[int]:
        return [*self._whole, self._open] if self._rows else self._whole


class _Parts:
    """Batches of rows, each in a file that is whole or absent and named by its rows."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.rows, self.num_bytes = 0, 0
        self._files: dict[int, Path] = {}
        for path in folder.glob("*.npz"):
            self._count(path)

    def holds(self, first: int) -> bool:
        return first in self._files

    def add(self, first: int, num_rows: int, arrays: Mapping[str, Array]) -> None:
        buffer = io.BytesIO()
        np.savez(buffer, **dict(arrays))  # type: ignore[arg-type]  # numpy's stub knows no **arrays
        self._folder.mkdir(exist_ok=True)
        path = self._folder / f"{first:012d}-{first + num_rows:012d}.npz"
        write_bytes(path, buffer.getbuffer())
        self._count(path)

    def read(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """Number of each part's first row, and its arrays, in their order; keys are strings."""
        rows = 0
        for first, path in sorted(self._files.items()):
            assert first == rows, f"{path}: {rows} rows stand before it"
            with np.load(path, allow_pickle=False) as stored:
                arrays: dict[str, Any] = dict(stored)
            keys = json.loads(arrays["keys"].tobytes())
            rows += len(keys)
            yield first, arrays | {"keys": keys}

    def remove(self) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)

    def _count(self, path: Path) -> None:
        first, end = map(int, path.stem.split("-"))
        self._files[first] = path
        self.rows += end - first
        self.num_bytes += path.stat().st_size


def _require_space(folder: Path, num_bytes: int) -> None:
    """Fail now, cleanly, if the disk or the quota does not take `num_bytes` more."""
    if hasattr(os, "posix_fallocate"):  # Linux; elsewhere the risk stays
        with tempfile.TemporaryFile(dir=folder) as file:
            os.posix_fallocate(file.fileno(), 0, num_bytes)
