"""Write a feature file: created in full size by h5py, then filled in place by any processes.

All but the features is known before the first image is encoded. Each batch has a checksum.
"""

import contextlib
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import h5py
import numpy as np

from ijepa.arrays import Array
from ijepa.config import height_width
from ijepa.errors import IjepaError
from ijepa.features.store import DAMAGED, SCHEMA, FeatureHeader, checksum_of, wrong_batches

CHUNK_ROWS = 512  # of labels and keys, which have HDF5's checksums
OVERHEAD_BYTES = 2**20  # what HDF5 adds, at most, to the numbers and twice the columns


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

    `shape` is (rows, layers, dim), `dtype` `float16` or `float32`, also of patch tokens, where the
    header has their shape; there is one key a row, and one integer for each label of the header.
    With several views, the rows of an image's views stand one behind the other, the evaluation view
    first, and share its key. What was begun for another header or shape is begun anew: rows
    computed in different precisions must not be mixed.

    An `OSError` if the disk has no room for all rows.
    """
    rows, batches = shape[0], -(-shape[0] // batch_rows)
    assert set(labels) == set(header.class_names)
    assert {rows} == {len(keys), *map(len, labels.values())}
    with contextlib.suppress(*DAMAGED), h5py.File(path, "r") as store:  # killed while it was made
        numbers = store["features"]
        same = str(store.attrs["header"]) == header.model_dump_json()
        if same and numbers.shape == shape and numbers.dtype == dtype:
            return
    encoded = [key.encode() for key in keys]
    key_bytes = max(1, *map(len, encoded)) if encoded else 1
    columns: dict[str, Array] = {"keys": np.array(encoded, h5py.string_dtype("utf-8", key_bytes))}
    columns |= {f"labels/{name}": np.asarray(values, np.int64) for name, values in labels.items()}
    if header.num_views:
        each = 1 + header.num_views
        columns["view"] = np.tile(np.arange(each, dtype=np.int16), rows // each)
    sizes = _sizes(header, shape, dtype, batches)
    held = sum(int(np.prod(size)) * np.dtype(kind).itemsize for size, kind in sizes.values())
    held += rows * 2 * (key_bytes + 8 * len(labels) + 10)
    if hasattr(os, "posix_fallocate"):  # on Linux, fail now, cleanly: HDF5 does not survive it
        with tempfile.TemporaryFile(dir=path.parent) as file:
            os.posix_fallocate(file.fileno(), 0, held + OVERHEAD_BYTES)
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
        for name, (size, kind) in sizes.items():
            store.create_dataset(name, size, kind, dcpl=settings)


def _sizes(
    header: FeatureHeader, shape: tuple[int, int, int], dtype: str, batches: int
) -> dict[str, tuple[tuple[int, ...], str]]:
    """Shape and type of each data set that is written batch by batch."""
    rows = shape[0]
    sizes: dict[str, tuple[tuple[int, ...], str]] = {
        "checksums": ((batches,), "uint32"), "image_id": ((rows,), "uint64"),
        "features": (shape, dtype),
    }  # fmt: skip
    if header.tokens:
        height, width, dim = header.tokens
        sizes["token_checksums"] = (batches,), "uint32"
        sizes["tokens"] = (rows, height * width, dim), dtype
    for name, one in sorted(header.dense.items()):
        sizes[f"dense/{name}"] = (rows, *height_width(header.image_px)), one.dtype
    return sizes


class FeatureWriter:
    """Puts batches of numbers in their place in a file that `create_features` made.

    Several processes may each have a writer of one file and add other batches. A batch that a kill
    or a power failure took does not agree with its checksum: its number is in `missing`.
    """

    def __init__(self, path: Path) -> None:
        """Take up a file, with the batches that are whole."""
        self.path = path
        with h5py.File(path, "r") as store:
            header = FeatureHeader.model_validate_json(str(store.attrs["header"]))
            self._batch_rows, self._dtype = int(store.attrs["batch_rows"]), store["features"].dtype
            names = [name for sums, group in header.numbers.items() for name in (*group, sums)]
            self._starts = [store[name].id.get_offset() for name in names]  # in the file
            self.missing = sorted({*wrong_batches(path, store, header, header.numbers)})

    def write(
        self,
        batch: int,
        features: Array,
        image_ids: Array,
        tokens: Array | None = None,
        maps: Sequence[Array] = (),
    ) -> None:
        """Add a batch, which is rows `batch * batch_rows` and on.

        (n, layers, dim) features, (n,) uint64 of `SplitReader.image_ids`, and (n, patches,
        token dim) patch tokens, if the header has their shape; with (n, height, width) maps of its
        dense labels, in the order of their names.

        An `IjepaError` if a number is not finite, or too large for the type of the store.
        """
        assert image_ids.dtype == np.uint64, image_ids.dtype  # as floats they would be rounded
        groups = [[self._finite(batch, features), np.ascontiguousarray(image_ids)]]
        if tokens is not None:
            groups.append([self._finite(batch, tokens), *maps])
        added: list[tuple[int, Array]] = []
        for numbers in groups:
            added += [(batch * self._batch_rows, one) for one in numbers]
            added.append((batch, np.array([checksum_of(*numbers)], np.uint32)))
        with self.path.open("r+b") as file:
            for start, (place, values) in zip(self._starts, added, strict=True):
                file.seek(start + place * values[0].nbytes)
                file.write(values.data)

    def finish(self) -> None:
        """Mark the file complete, with the batches of all processes."""
        with h5py.File(self.path, "r+") as store:
            assert all(store[name][:].all() for name in store if name.endswith("checksums"))
            store.attrs["complete"] = True

    def _finite(self, batch: int, features: Array) -> Array:
        """The numbers as they are stored, if they can be."""
        with np.errstate(over="ignore"):
            numbers = np.ascontiguousarray(features, self._dtype)
        # Infinities and NaN have an exponent of ones; np.isfinite is slow on float16.
        bits = numbers.view(f"u{numbers.itemsize}")
        exponent = np.array(np.inf, numbers.dtype).view(bits.dtype)
        finite = (bits & exponent != exponent).reshape(len(numbers), -1).all(axis=1)
        if not finite.all():
            bad = np.argmin(finite)
            with h5py.File(self.path, "r") as store:
                key = store["keys"][batch * self._batch_rows + bad].decode()
            raise IjepaError(
                f"Features of {key} are not finite as {self._dtype}; extract with --dtype float32, "
                f"and if that fails, too, the encoder is broken."
            )
        return numbers
