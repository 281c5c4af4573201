"""Makes a feature store, without a kill or a full disk costing more than the last batch.

How many rows there will be, and their keys and labels, is known before the first image is encoded.
So h5py makes the whole file first, and batches of numbers are put in their final place through a
memory map, by one process or several. A small progress file beside it has the checksum of each
batch that is there; in the end they go into the store, for its readers to check.
"""

import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import h5py
import numpy as np

from ijepa.errors import IjepaError
from ijepa.features.store import (
    DAMAGED,
    SCHEMA,
    Array,
    FeatureHeader,
    batch_checksum,
    first_bad,
    is_finite,
    mapped,
    refuse_repeats,
)

CHUNK_ROWS = 512  # of labels and keys, which have HDF5's checksums
OVERHEAD_BYTES = 2**20  # what HDF5 adds, at most, to the numbers and twice the columns
PROGRESS = np.dtype([("done", "u1"), ("checksum", "<u4")])  # of one batch


def create_features(
    path: Path,
    header: FeatureHeader,
    shape: tuple[int, int, int],
    dtype: str,
    *,
    keys: Sequence[str],
    labels: Mapping[str, Array],
    batch_rows: int,
) -> None:
    """Make a file for `FeatureWriter` with all but its numbers, unless it is there already.

    With several views, the rows of an image's views stand one behind the other, the evaluation view
    first, and share its key. What was begun for another header or shape is begun anew: rows that
    were computed in different precisions must not be mixed.

    Args:
        path: to make.
        header: where the features come from.
        shape: (rows, layers, dim).
        dtype: `float16` or `float32`.
        keys: one a row.
        labels: (rows,) integers by label, one for each of the header's.
        batch_rows: rows of a batch, but for the last one.

    Raises:
        IjepaError: a key (with the same view) stands there twice.
        OSError: the disk has no room for all rows.
    """
    assert set(labels) == set(header.class_names)
    assert {shape[0]} == {len(keys), *map(len, labels.values())}
    if _is_begun(path, header, shape, dtype):
        return
    path.unlink(missing_ok=True)
    key_bytes = max((len(key.encode()) for key in keys), default=1)
    row_bytes = int(np.prod(shape[1:])) * np.dtype(dtype).itemsize
    columns_bytes = 2 * (key_bytes + 8 * len(labels) + 10)
    _require_room(path.parent, shape[0] * (row_bytes + columns_bytes) + OVERHEAD_BYTES)
    rows, encoded = shape[0], [key.encode() for key in keys]
    key_type = h5py.string_dtype("utf-8", max(1, key_bytes))
    columns: dict[str, Array] = {"keys": np.array(encoded, key_type)}
    columns |= {f"labels/{name}": np.asarray(values, np.int64) for name, values in labels.items()}
    if header.num_views:
        each = 1 + header.num_views
        columns["view"] = np.tile(np.arange(each, dtype=np.int16), rows // each)
    refuse_repeats(path, columns["keys"], columns.get("view"))
    batches = -(-rows // batch_rows)
    with h5py.File(path, "w") as store:
        store.attrs["schema"] = SCHEMA
        store.attrs["header"] = header.model_dump_json()
        store.attrs["batch_rows"] = batch_rows
        for name, values in columns.items():
            chunks = (min(rows, CHUNK_ROWS),) if rows else None
            store.create_dataset(name, data=values, chunks=chunks, fletcher32=bool(rows))
        settings = h5py.h5p.create(h5py.h5p.DATASET_CREATE)  # in one piece that has its place now
        settings.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
        settings.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
        settings.set_obj_track_times(False)
        for name, size, kind in (
            ("checksums", (batches,), "uint32"),
            ("image_id", (rows,), "uint64"),
            ("features", shape, dtype),
        ):
            space = h5py.h5s.create_simple(size)
            h5py.h5d.create(
                store.id, name.encode(), h5py.h5t.py_create(np.dtype(kind)), space, settings
            )
    _take_room(path)
    if rows:
        np.zeros(batches, PROGRESS).tofile(_progress_path(path))


def write_features(
    path: Path,
    header: FeatureHeader,
    features: Array,
    *,
    keys: Sequence[str],
    labels: Mapping[str, Array],
    image_ids: Array,
) -> None:
    """Make a whole store of features that are in memory, in their own type.

    Args:
        path: to make.
        header: where the features come from.
        features: (rows, layers, dim) float16 or float32.
        keys: one a row; see `create_features`.
        labels: (rows,) by label, likewise.
        image_ids: (rows,) uint64, see `ijepa.data.shards.image_ids`.
    """
    rows, layers, dim = features.shape
    shape, batch_rows = (rows, layers, dim), max(1, min(rows, CHUNK_ROWS))
    create_features(
        path, header, shape, features.dtype.name, keys=keys, labels=labels, batch_rows=batch_rows
    )
    writer = FeatureWriter(path)
    for batch, first in enumerate(range(0, rows, batch_rows)):
        some = slice(first, first + batch_rows)
        writer.write(batch, features[some], image_ids[some])
    writer.finish()


def _is_begun(path: Path, header: FeatureHeader, shape: tuple[int, int, int], dtype: str) -> bool:
    if not (path.exists() and (_progress_path(path).exists() or not shape[0])):
        return False
    try:
        with h5py.File(path, "r") as store:
            numbers = store["features"]
            same = str(store.attrs["header"]) == header.model_dump_json()
            return bool(same and numbers.shape == shape and numbers.dtype == dtype)
    except DAMAGED:  # killed while it was made
        return False


def _require_room(folder: Path, num_bytes: int) -> None:
    """Fail now, cleanly, if the disk has no room: the HDF5 library does not survive a full one."""
    if hasattr(os, "posix_fallocate"):  # Linux; elsewhere the risk stays
        with tempfile.TemporaryFile(dir=folder) as file:
            os.posix_fallocate(file.fileno(), 0, num_bytes)


def _take_room(path: Path) -> None:
    """Have the disk hold all of a sparse file: later, a full one would end the process."""
    if hasattr(os, "posix_fallocate"):
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
            os.fsync(file.fileno())


def _progress_path(path: Path) -> Path:
    return path.with_name(f"{path.name}.progress")


class FeatureWriter:
    """Puts batches of numbers in their place in a file that `create_features` made.

    Several processes may each have a writer of one file and add other batches. A batch that a kill
    or a power failure took does not agree with its checksum, and is not there.
    """

    def __init__(self, path: Path) -> None:
        """Take up a file, with the batches that are whole."""
        self.path = path
        with h5py.File(path, "r") as store:
            numbers, ids = store["features"], store["image_id"]
            self._batch_rows = int(store.attrs["batch_rows"])
            self._numbers = mapped(path, numbers, "r+")
            self._ids = mapped(path, ids, "r+")
        self._progress = np.memmap(_progress_path(path), PROGRESS, "r+") if len(self._ids) else None
        self._whole = {n for n in range(self.num_batches) if self._is_whole(n)}

    @property
    def num_batches(self) -> int:
        """How many batches the whole file has."""
        return -(-len(self._ids) // self._batch_rows)

    @property
    def rows_done(self) -> int:
        """Rows of the batches that are there."""
        return sum(len(self._ids[self._rows(number)]) for number in self._whole)

    def holds(self, batch: int) -> bool:
        """Is the batch of this number there, whole?"""
        return batch in self._whole

    def write(self, batch: int, features: Array, image_ids: Array) -> None:
        """Add a batch: rows `batch * batch_rows` and on.

        Args:
            batch: its number.
            features: (n, layers, dim), finite, also as the type of the store.
            image_ids: (n,) uint64, see `ijepa.data.shards.image_ids`.

        Raises:
            IjepaError: a number that is not finite, or too large for the type of the store.
        """
        rows, dtype = self._rows(batch), self._numbers.dtype
        assert image_ids.dtype == np.uint64, image_ids.dtype  # as floats they would be rounded
        with np.errstate(over="ignore"):
            numbers = np.ascontiguousarray(features, dtype)
        if not is_finite(numbers):
            with h5py.File(self.path, "r") as store:
                keys = [key.decode() for key in store["keys"][rows]]
            raise IjepaError(
                f"Features of {first_bad(numbers, keys)} are not finite as {dtype}; extract "
                f"with --dtype float32, and if that fails, too, the encoder is broken."
            )
        self._numbers[rows], self._ids[rows] = numbers, image_ids
        assert self._progress is not None
        self._progress[batch] = 1, batch_checksum(numbers, image_ids)
        self._whole.add(batch)

    def finish(self) -> None:
        """Mark the file complete, with the batches of all processes, once they are on disk."""
        self.flush()
        checksums = np.zeros(0, np.uint32) if self._progress is None else self._progress["checksum"]
        assert self._progress is None or self._progress["done"].all()
        with h5py.File(self.path, "r+") as store:
            store["checksums"][:] = checksums
            store.attrs["complete"] = True
        with self.path.open("rb") as file:
            os.fsync(file.fileno())
        _progress_path(self.path).unlink(missing_ok=True)

    def flush(self) -> None:
        """Return when the disk has all batches of this process."""
        for array in (self._numbers, self._ids, self._progress):
            if isinstance(array, np.memmap):
                array.flush()

    def _rows(self, batch: int) -> slice:
        return slice(batch * self._batch_rows, (batch + 1) * self._batch_rows)

    def _is_whole(self, batch: int) -> bool:
        assert self._progress is not None
        done, checksum = self._progress[batch].item()
        rows = self._rows(batch)
        return bool(done) and batch_checksum(self._numbers[rows], self._ids[rows]) == checksum
