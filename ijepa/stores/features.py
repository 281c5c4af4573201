"""The feature store: frozen features of a split in one HDF5 file, with labels, keys and origin.

An HDF5 file that is killed while it grows can be damaged as a whole, and the HDF5 library does not
survive a full disk. So the writer keeps each batch in a small file of its own, whole or absent, and
assembles the store once, when all rows are there and the disk is known to have room.
"""

import contextlib
import io
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import h5py
import numpy as np
from pydantic import ValidationError

from ijepa.config import Config
from ijepa.errors import IjepaError
from ijepa.stores.lineage import UNKNOWN, Lineage
from ijepa.stores.stage import write_bytes

SCHEMA = 1
CHUNK_ROWS = 512
OVERHEAD_BYTES, KEY_BYTES = 2**20, 64  # what HDF5 adds, at most: once, and for every key
HALF_EXPONENT = np.uint16(0x7C00)  # all ones only in infinities and NaN

Array = np.ndarray[tuple[int, ...], np.dtype[Any]]


class FeatureHeader(Config):
    """Where features come from; what must agree before two files are compared.

    Attributes:
        encoder: its name, for people.
        weights_sha256: its weights, for machines.
        which: `target` or `context`.
        layers: block numbers, ascending.
        pooling: how patch tokens became one vector.
        image_px: side of the evaluated square, or (height, width).
        transform: from image file to square.
        data_fingerprint: of the shard set.
        split: of the shard set.
        class_names: by label; None for plain integers.
        fingerprint: of the stage that made it.
        source: what the shard set was made from, as the user typed it.
        lineage: where the encoder comes from.
        num_views: augmented views of each image, beside the evaluation view.
        augment: how they were made: `none`, `flip` or `rrc-flip`.
    """

    encoder: str
    weights_sha256: str
    which: str
    layers: tuple[int, ...]
    pooling: str
    image_px: int | tuple[int, int]
    transform: str
    data_fingerprint: str
    split: str
    class_names: dict[str, list[str] | None]
    fingerprint: str
    source: str = ""
    lineage: Lineage = UNKNOWN
    num_views: int = 0
    augment: str = "none"


class FeatureWriter:
    """Appends rows, durably, and assembles the store when all are there.

    Opened again on the same path after a kill, it goes on at `rows_done`.
    """

    def __init__(self, path: Path, header: FeatureHeader, dtype: str) -> None:
        """Begin, or take up, the store at `path` with numbers of `dtype`."""
        self.path, self.header, self.dtype = path, header, np.dtype(dtype)
        self._parts = _Parts(path.with_name(path.name + ".parts"))
        self._assembled_rows = open_features(path).shape[0] if path.exists() else None

    @property
    def rows_done(self) -> int:
        """Rows that no kill can take away."""
        return self._parts.rows if self._assembled_rows is None else self._assembled_rows

    def append(
        self,
        features: Array,
        labels: Mapping[str, Array],
        keys: Sequence[str],
        views: Array | None = None,
    ) -> None:
        """Add a batch, and put it on disk.

        Args:
            features: (n, layers, dim), finite, also as `dtype`.
            labels: (n,) integers by label, one for each of the header's.
            keys: n of them.
            views: (n,) numbers of augmented views, where an image is stored more than once.

        Raises:
            IjepaError: a number that is not finite, or too large for `dtype`.
        """
        assert {len(features), *map(len, labels.values())} == {len(keys)}
        assert set(labels) == set(self.header.class_names)
        with np.errstate(over="ignore"):  # an overflow is found below
            numbers = features.astype(self.dtype, copy=False)
        if not _is_finite(numbers):
            raise IjepaError(
                f"Features of {_first_bad(numbers, keys)} are not finite as {self.dtype}; extract "
                f"with --dtype float32, and if that fails, too, the encoder is broken."
            )
        arrays = {f"label:{name}": np.asarray(values, np.int64) for name, values in labels.items()}
        if views is not None:
            arrays["view"] = np.asarray(views, np.int16)
        text = json.dumps(list(keys)).encode()
        self._parts.add(
            len(keys), {"features": numbers, "keys": np.frombuffer(text, np.uint8)} | arrays
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
                _check(self.path, store)
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
        self._create(store, "features", (rows, *shape), self.dtype)
        self._create(store, "keys", (rows,), h5py.string_dtype())
        for name in self.header.class_names:
            self._create(store, f"labels/{name}", (rows,), np.dtype(np.int64))
        if "view" in first_part:
            self._create(store, "view", (rows,), np.dtype(np.int16))
        for first, part in self._parts.read():
            for name, values in part.items():
                place = name.replace("label:", "labels/", 1) if name.startswith("label:") else name
                store[place][first : first + len(values)] = values

    @staticmethod
    def _create(store: h5py.File, name: str, shape: tuple[int, ...], dtype: Any) -> None:  # noqa: ANN401
        """A data set in chunks of some rows of one layer, with checksums except for strings."""
        layer = (1, *shape[2:]) if shape[2:] else ()
        chunks = (min(shape[0], CHUNK_ROWS), *layer) if all(shape) else None
        checked = bool(chunks) and dtype != h5py.string_dtype()
        store.create_dataset(name, shape, dtype, chunks=chunks, fletcher32=checked)


class _Parts:
    """Batches of rows, each in a file that is whole or absent and named by its rows."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.rows, self.num_bytes = 0, 0
        self._files: list[tuple[int, Path]] = []
        for path in sorted(folder.glob("*.npz")):
            self._count(path)

    def add(self, num_rows: int, arrays: Mapping[str, Array]) -> None:
        buffer = io.BytesIO()
        np.savez(buffer, **dict(arrays))  # type: ignore[arg-type]  # numpy's stub knows no **arrays
        self._folder.mkdir(exist_ok=True)
        path = self._folder / f"{self.rows:012d}-{self.rows + num_rows:012d}.npz"
        write_bytes(path, buffer.getbuffer())
        self._count(path)

    def read(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """Number of each part's first row, and its arrays; keys are strings."""
        for first, path in self._files:
            with np.load(path, allow_pickle=False) as stored:
                arrays: dict[str, Any] = dict(stored)
            yield first, arrays | {"keys": json.loads(arrays["keys"].tobytes())}

    def remove(self) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)

    def _count(self, path: Path) -> None:
        first, end = map(int, path.stem.split("-"))
        assert first == self.rows, f"{path}: {self.rows} rows stand before it"
        self._files.append((first, path))
        self.rows = end
        self.num_bytes += path.stat().st_size


class Features:
    """A store opened for reading; numbers are read when they are asked for."""

    def __init__(self, path: Path, store: h5py.File, header: FeatureHeader) -> None:
        """Take over an open file that `open_features` has checked."""
        self.path, self.header, self._store = path, header, store

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the file."""
        self._store.close()

    @property
    def shape(self) -> tuple[int, int, int]:
        """(rows, layers, dim)."""
        rows, layers, dim = self._store["features"].shape
        return rows, layers, dim

    @property
    def labels(self) -> dict[str, Array]:
        """(rows,) int64 by label."""
        group = self._store.get("labels", {})
        return {name: group[name][:] for name in group}

    @property
    def keys(self) -> list[str]:
        """One a row; a key that stands in several rows has another view in each."""
        with _readable(self.path):
            return _keys(self._store)

    @property
    def views(self) -> Array | None:
        """(rows,) int16; None where each image is stored once."""
        return self._store["view"][:] if "view" in self._store else None

    def layer(self, number: int) -> Array:
        """(rows, dim) float32: one stored layer, counted as in a list; -1 is the last."""
        _, layers, _ = self.shape
        return self._read(slice(range(layers)[number], range(layers)[number] + 1))

    def last(self, layers: int = 1) -> Array:
        """(rows, layers * dim) float32: the last layers side by side, all if fewer are stored."""
        return self._read(slice(max(self.shape[1] - layers, 0), None))

    def read(self, rows: Array, layers: int) -> Array:
        """(n, layers, dim) as stored: the last `layers` layers of some rows, in their order."""
        wanted, places = np.unique(rows, return_inverse=True)
        with _readable(self.path):
            found: Array = self._store["features"][wanted, self.shape[1] - layers :]
        return found[places]

    def _read(self, layers: slice) -> Array:
        """Block by block, so that no second copy of the numbers stands in memory."""
        rows, _, dim = self.shape
        found = np.empty((rows, len(range(self.shape[1])[layers]), dim), dtype=np.float32)
        with _readable(self.path):
            for first in range(0, rows, CHUNK_ROWS):
                block = slice(first, first + CHUNK_ROWS)
                found[block] = self._store["features"][block, layers]
        return found.reshape(rows, -1)


def open_features(path: Path, *, check_numbers: bool = True) -> Features:
    """Open a store after checking that it is whole and sane.

    Args:
        path: of `ijepa extract`.
        check_numbers: read all numbers once, to see that they are finite and undamaged.

    Raises:
        IjepaError: not there, not HDF5, damaged, incomplete, unequal lengths, a repeated key (with
            the same view), or numbers that are not finite.
    """
    if not path.is_file():
        raise IjepaError(f"There is no feature file {path}; make one with `ijepa extract`.")
    with contextlib.ExitStack() as undo, _readable(path):
        store = undo.enter_context(h5py.File(path, "r"))
        if store.attrs.get("complete") is None or store.attrs.get("schema") != SCHEMA:
            raise IjepaError(
                f"{path} is not a complete feature file of schema {SCHEMA}; "
                f"delete it and run `ijepa extract` again."
            )
        header = _header(path, str(store.attrs["header"]))
        _check(path, store)
        if check_numbers:
            _check_numbers(path, store)
        undo.pop_all()
    return Features(path, store, header)


@contextlib.contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Whatever HDF5 finds damaged becomes one line."""
    try:
        yield
    except PermissionError:
        raise
    except (OSError, KeyError, RuntimeError, ValueError, TypeError, AttributeError) as error:
        raise IjepaError(
            f"{path} is not a whole feature file ({' '.join(str(error).split())}); "
            f"delete it and run `ijepa extract` again."
        ) from error


def _header(path: Path, text: str) -> FeatureHeader:
    try:
        return FeatureHeader.model_validate_json(text)
    except ValidationError as error:
        raise IjepaError(
            f"{path} has a header that this version does not know; extract again."
        ) from error


def _check(path: Path, store: h5py.File) -> None:
    """Do all columns have the rows of `features`, and does each row have a name of its own?"""
    rows = len(store["features"])
    columns = ["keys", *(f"labels/{name}" for name in store.get("labels", {}))]
    columns += ["view"] if "view" in store else []
    for name in columns:
        if len(store[name]) != rows:
            raise IjepaError(
                f"{path} holds {rows:,} features but {len(store[name]):,} {name}; "
                f"delete it and run `ijepa extract` again."
            )
    views = store["view"][:].tolist() if "view" in store else [0] * rows
    seen = set()
    for key, view in zip(_keys(store), views, strict=True):
        if (key, view) in seen:
            raise IjepaError(f"{path} holds key {key} more than once; shard and extract again.")
        seen.add((key, view))


def _keys(store: h5py.File) -> list[str]:
    return [key.decode() for key in store["keys"][:]]


def _check_numbers(path: Path, store: h5py.File) -> None:
    features = store["features"]
    for first in range(0, len(features), CHUNK_ROWS):
        block = features[first : first + CHUNK_ROWS]
        if not _is_finite(block):
            where = _first_bad(block, _keys(store)[first:])
            raise IjepaError(
                f"{path} holds numbers that are not finite, first for {where}; "
                f"extract again with --dtype float32, or look at the encoder."
            )


def _is_finite(numbers: Array) -> bool:
    if numbers.dtype == np.float16:  # twice as fast as numpy's isfinite
        bits = np.ascontiguousarray(numbers).view(np.uint16)
        return bool(((bits & HALF_EXPONENT) != HALF_EXPONENT).all())
    return bool(np.isfinite(numbers).all())


def _first_bad(numbers: Array, keys: Sequence[str]) -> str:
    finite = np.isfinite(numbers).reshape(len(numbers), -1).all(axis=1)
    return keys[int(np.argmin(finite))]


def _require_space(folder: Path, num_bytes: int) -> None:
    """Fail now, cleanly, if the disk or the quota does not take `num_bytes` more."""
    if hasattr(os, "posix_fallocate"):  # Linux; elsewhere the risk stays
        with tempfile.TemporaryFile(dir=folder) as file:
            os.posix_fallocate(file.fileno(), 0, num_bytes)
