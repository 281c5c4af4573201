"""Makes a feature store, without a kill or a full disk costing more than the last batch.

An HDF5 file that is killed while it grows can be damaged as a whole, and the HDF5 library does not
survive a full disk. So numbers are written once, to where they will stand in the store, while a
journal keeps the rest; the HDF5 library puts its own around them when all rows are there and the
disk is known to have room. No batch waits for the disk: the journal knows what is lost.
"""

import os
import tempfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from ijepa.errors import IjepaError
from ijepa.features.draft import Draft
from ijepa.features.journal import Batch, Journal
from ijepa.features.store import (
    SCHEMA,
    Array,
    FeatureHeader,
    check_columns,
    first_bad,
    is_finite,
    open_features,
    seal,
)

CHUNK_ROWS = 512  # of labels and keys
COLUMN_ROWS = 2**16  # of labels and keys, handed to HDF5 at once
HEAD_BYTES = 2048  # what HDF5 puts before the first contiguous numbers of a file
OVERHEAD_BYTES = 2**20  # what HDF5 adds, at most, to the numbers and twice the columns


class FeatureWriter:
    """Adds rows, and makes the store of them when all are there.

    Opened again on the same path after a kill, it knows what it `holds`. Several processes may each
    open a writer on the same path and add other rows; one that is opened afterwards has them all.
    """

    def __init__(self, path: Path, header: FeatureHeader, dtype: str) -> None:
        """Begin, or take up, the store at `path` with numbers of `dtype`."""
        self.path, self.header, self.dtype = path, header, np.dtype(dtype)
        # By precision: started on a GPU and again on a CPU, the rows of one file must not be mixed.
        self._draft = Draft(path.with_name(f"{path.name}.{header.precision}.draft"))
        folder = path.with_name(f"{path.name}.{header.precision}.journal")
        self._journal = Journal(folder, self._draft.path, self.dtype, HEAD_BYTES)
        self._finished_rows = open_features(path).shape[0] if path.exists() else None
        self._aside = ThreadPoolExecutor(1)  # adds up a batch while it is written

    @property
    def rows_done(self) -> int:
        """How many rows no kill can take away."""
        return self._journal.rows if self._finished_rows is None else self._finished_rows

    def holds(self, first: int) -> bool:
        """Is there a batch that begins with this row?"""
        return self._journal.holds(first) or first < (self._finished_rows or 0)

    def append(
        self,
        features: Array,
        labels: Mapping[str, Array],
        keys: Sequence[str],
        image_ids: Array,
        views: Array | None = None,
        first: int | None = None,
    ) -> None:
        """Add a batch.

        Args:
            features: (n, layers, dim), finite, also as `dtype`.
            labels: (n,) integers by label, one for each of the header's.
            keys: n of them.
            image_ids: (n,) uint64, see `ijepa.data.shards.image_ids`.
            views: (n,) numbers of augmented views, where an image is stored more than once.
            first: number of its first row; None for the one after all rows so far.

        Raises:
            IjepaError: a number that is not finite, or too large for `dtype`.
        """
        assert {len(features), len(image_ids), *map(len, labels.values())} == {len(keys)}
        assert set(labels) == set(self.header.class_names)
        assert image_ids.dtype == np.uint64, image_ids.dtype  # as floats they would be rounded
        with np.errstate(over="ignore"):  # an overflow is found below
            numbers = np.ascontiguousarray(features, self.dtype)
        if not is_finite(numbers):
            raise IjepaError(
                f"Features of {first_bad(numbers, keys)} are not finite as {self.dtype}; extract "
                f"with --dtype float32, and if that fails, too, the encoder is broken."
            )
        columns: dict[str, list[Any]] = {"keys": list(keys)}
        columns["image_id"] = image_ids.tolist()
        columns |= {f"labels/{name}": _integers(values) for name, values in labels.items()}
        columns |= {} if views is None else {"view": _integers(views)}
        first = self._journal.rows if first is None else first
        checksum = self._aside.submit(zlib.crc32, numbers.data)
        self._draft.write(HEAD_BYTES + first * numbers[0:1].nbytes, numbers.data)
        shape = (len(numbers), numbers.shape[1], numbers.shape[2])
        self._journal.add(Batch(first, shape, checksum.result(), columns))

    def flush(self) -> None:
        """Return when the disk has the numbers of all rows, or raise OSError."""
        self._draft.flush()

    def finish(self) -> None:
        """Make the draft an HDF5 file in bounded memory, check it, and mark it complete.

        Raises:
            IjepaError: a key (with the same view) was appended twice.
            OSError: the disk is too full; what was appended stays.
        """
        if self._finished_rows is None:
            rows, num_labels = self._journal.rows, len(self.header.class_names)
            room = OVERHEAD_BYTES + 2 * rows * (self._journal.key_bytes + 8 * num_labels + 10)
            _require_space(self._draft.path.parent, room)
            self._begin_store()
            with h5py.File(self._draft.path, "r+") as store:
                self._add_columns(store)
                check_columns(self.path, store)
                store.attrs["seal"] = seal(store)
                store.attrs["complete"] = True
            self._draft.flush()
            self._draft.path.replace(self.path)
            self._finished_rows = rows
        self._aside.shutdown()
        self._draft.close()
        self._journal.remove()

    def _begin_store(self) -> None:
        """Put before the numbers what makes them HDF5's; forget what another try put after them."""
        layers, dim = self._journal.row_shape() or (len(self.header.layers), 0)
        shape = (self._journal.rows, layers, dim)
        num_bytes = int(np.prod(shape)) * self.dtype.itemsize
        head = _head(shape, self.dtype, num_bytes, self._draft.path.parent)
        self._draft.write(0, head)
        self._draft.truncate(len(head) + num_bytes)

    def _add_columns(self, store: h5py.File) -> None:
        rows = self._journal.rows
        store.attrs["schema"] = SCHEMA
        store.attrs["header"] = self.header.model_dump_json()
        types: dict[str, Any] = {"keys": h5py.string_dtype("utf-8", self._journal.key_bytes)}
        types["image_id"] = np.dtype(np.uint64)
        types |= {f"labels/{name}": np.dtype(np.int64) for name in self.header.class_names}
        ends, checksums = [], []
        for batches in _together(self._journal.batches()):
            first = batches[0].first
            if not first:
                types |= {"view": np.dtype(np.int16)} if "view" in batches[0].columns else {}
                _create(store, types, rows)
            ends += [batch.first + batch.shape[0] for batch in batches]
            checksums += [batch.checksum for batch in batches]
            for name in types:
                values = [value for batch in batches for value in batch.columns[name]]
                store[name][first : ends[-1]] = values
        if not rows:
            _create(store, types, rows)
        store.create_dataset("checksums", data=np.array(checksums, np.uint32))
        store.create_dataset("checksum_ends", data=np.array(ends, np.int64))


def _together(batches: Iterable[Batch]) -> Iterator[list[Batch]]:
    """Batches in turn, in lists of `COLUMN_ROWS` rows or little more."""
    found: list[Batch] = []
    for batch in batches:
        found.append(batch)
        if batch.first + batch.shape[0] - found[0].first >= COLUMN_ROWS:
            yield found
            found = []
    if found:
        yield found


def _integers(values: Iterable[Any]) -> list[int]:
    return np.asarray(values, np.int64).tolist()  # type: ignore[no-any-return]  # a list of ints


def _create(store: h5py.File, types: Mapping[str, Any], rows: int) -> None:
    """Columns in chunks of some rows, with checksums."""
    for name, dtype in types.items():
        chunks = (min(rows, CHUNK_ROWS),) if rows else None
        store.create_dataset(name, (rows,), dtype, chunks=chunks, fletcher32=bool(chunks))


def _head(
    shape: tuple[int, int, int], dtype: "np.dtype[Any]", num_bytes: int, folder: Path
) -> bytes:
    """What an HDF5 file that holds nothing but `features` has before their numbers."""
    settings = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    settings.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    settings.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    settings.set_obj_track_times(False)
    with tempfile.NamedTemporaryFile(dir=folder) as file:
        with h5py.File(file.name, "w") as store:
            space, kind = h5py.h5s.create_simple(shape), h5py.h5t.py_create(dtype)
            data = h5py.h5d.create(store.id, b"features", kind, space, settings)
            assert data.get_offset() == (HEAD_BYTES if num_bytes else None)
        return file.read(Path(file.name).stat().st_size - num_bytes)  # sparse: numbers take no room


def _require_space(folder: Path, num_bytes: int) -> None:
    """Fail now, cleanly, if the disk or the quota does not take `num_bytes` more."""
    if hasattr(os, "posix_fallocate"):  # Linux; elsewhere the risk stays
        with tempfile.TemporaryFile(dir=folder) as file:
            os.posix_fallocate(file.fileno(), 0, num_bytes)
