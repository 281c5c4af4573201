"""The feature store: frozen features of a split in one HDF5 file, with labels, keys and origin.

A writer keeps plain append-only files beside the store and assembles the HDF5 file at the end: an
HDF5 file that is killed while it is being written can be damaged as a whole, appended bytes cannot.
"""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from pydantic import ValidationError

from ijepa.config import Config
from ijepa.errors import IjepaError
from ijepa.stores.stage import read_json, write_json

SCHEMA = 1
CHUNK_ROWS = 512

Array = np.ndarray[tuple[int, ...], np.dtype[Any]]


class FeatureHeader(Config):
    """Where features come from; what must agree before two files are compared.

    Attributes:
        encoder: its name, for people.
        weights_sha256: its weights, for machines.
        which: `target` or `context`.
        layers: block numbers, ascending.
        pooling: how patch tokens became one vector.
        image_px: side of the evaluated square.
        transform: from image file to square.
        data_fingerprint: of the shard set.
        split: of the shard set.
        class_names: by label; None for plain integers.
        fingerprint: of the stage that made it.
    """

    encoder: str
    weights_sha256: str
    which: str
    layers: tuple[int, ...]
    pooling: str
    image_px: int
    transform: str
    data_fingerprint: str
    split: str
    class_names: dict[str, list[str] | None]
    fingerprint: str


class FeatureWriter:
    """Appends rows, durably, and assembles the store when all are there.

    Opened again on the same path after a kill, it goes on at `rows_done`.
    """

    def __init__(self, path: Path, header: FeatureHeader, dtype: str) -> None:
        """Begin, or take up, the store at `path` with numbers of `dtype`."""
        self.path, self.header, self.dtype = path, header, np.dtype(dtype)
        self._parts = path.with_name(path.name + ".parts")
        self._parts.mkdir(exist_ok=True)
        self._state = self._parts / "committed.json"
        self._committed: dict[str, Any] = {"rows": 0, "shape": None, "bytes": {}}
        if self._state.exists():
            self._committed = read_json(self._state)

    @property
    def rows_done(self) -> int:
        """Rows that no kill can take away."""
        return int(self._committed["rows"])

    def append(self, features: Array, labels: Mapping[str, Array], keys: Sequence[str]) -> None:
        """Add a batch, and put it on disk.

        Args:
            features: (n, layers, dim), finite.
            labels: (n,) integers by label.
            keys: n of them.
        """
        assert {len(features), len(keys), *map(len, labels.values())} == {len(keys)}
        shape = self._committed["shape"] or list(features.shape[1:])
        assert list(features.shape[1:]) == shape
        sizes = {"features": self._write("features", features.astype(self.dtype, copy=False))}
        for name, values in labels.items():
            part = f"label-{name}"
            sizes[part] = self._write(part, np.asarray(values, dtype=np.int64))
        lines = "".join(json.dumps(key) + "\n" for key in keys).encode()
        sizes["keys"] = self._write("keys", np.frombuffer(lines, dtype=np.uint8))
        self._committed = {"rows": self.rows_done + len(keys), "shape": shape, "bytes": sizes}
        write_json(self._state, self._committed)

    def finish(self) -> None:
        """Assemble the HDF5 file, in bounded memory, and mark it complete."""
        rows, shape = (
            self.rows_done,
            tuple(self._committed["shape"] or (len(self.header.layers), 0)),
        )
        with h5py.File(self.path, "w") as store:
            features = store.create_dataset(
                "features",
                (rows, *shape),
                dtype=self.dtype,
                chunks=(min(rows, CHUNK_ROWS) or 1, *shape) if rows else None,
            )
            raw = self._read("features", self.dtype).reshape(rows, *shape)
            for first in range(0, rows, CHUNK_ROWS):
                features[first : first + CHUNK_ROWS] = raw[first : first + CHUNK_ROWS]
            for name in self.header.class_names:
                values = self._read(f"label-{name}", np.dtype(np.int64))
                store.create_dataset(f"labels/{name}", data=values)
            keys = store.create_dataset("keys", (rows,), dtype=h5py.string_dtype())
            for first, block in self._key_blocks():
                keys[first : first + len(block)] = block
            store.attrs["schema"] = SCHEMA
            store.attrs["header"] = self.header.model_dump_json()
            store.attrs["complete"] = True
        for part in self._parts.iterdir():
            part.unlink()
        self._parts.rmdir()

    def _write(self, part: str, values: Array) -> int:
        """Append after what is committed; bytes of an interrupted append are overwritten."""
        start = int(self._committed["bytes"].get(part, 0))
        path = self._parts / part
        with path.open("r+b" if path.exists() else "w+b") as file:
            file.truncate(start)
            file.seek(start)
            file.write(np.ascontiguousarray(values).tobytes())
            file.flush()
            os.fsync(file.fileno())
            return file.tell()

    def _read(self, part: str, dtype: np.dtype[Any]) -> Array:
        if not self.rows_done:
            return np.empty(0, dtype=dtype)
        return np.memmap(self._parts / part, dtype=dtype, mode="r")

    def _key_blocks(self) -> Iterator[tuple[int, list[str]]]:
        if not self.rows_done:
            return
        first, block = 0, []
        with (self._parts / "keys").open() as lines:
            for line in lines:
                block.append(json.loads(line))
                if len(block) == CHUNK_ROWS:
                    yield first, block
                    first, block = first + len(block), []
        yield first, block


class Features:
    """A store opened for reading; numbers are read when they are asked for."""

    def __init__(self, path: Path, store: h5py.File, header: FeatureHeader) -> None:
        """Take over an open file that `open_features` has checked."""
        self.path, self.header, self._store = path, header, store

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
        """One a row."""
        return [key.decode() for key in self._store["keys"][:]]

    def last(self, layers: int = 1) -> Array:
        """(rows, layers * dim) float32: the last layers side by side."""
        values = self._store["features"][:, -layers:].astype(np.float32)
        side_by_side: Array = values.reshape(len(values), -1)
        return side_by_side


def open_features(path: Path) -> Features:
    """Open a store after checking that it is whole and sane.

    Raises:
        IjepaError: not there, not HDF5, incomplete, unequal lengths, repeated keys, or numbers
            that are not finite.
    """
    if not path.is_file():
        raise IjepaError(f"There is no feature file {path}; make one with `ijepa extract`.")
    try:
        store = h5py.File(path, "r")
    except OSError as error:
        raise IjepaError(
            f"{path} is not a whole HDF5 file; delete it and run `ijepa extract` again."
        ) from error
    if not store.attrs.get("complete") or store.attrs.get("schema") != SCHEMA:
        raise IjepaError(
            f"{path} is not a complete feature file of schema {SCHEMA}; "
            f"delete it and run `ijepa extract` again."
        )
    try:
        header = FeatureHeader.model_validate_json(store.attrs["header"])
    except ValidationError as error:
        raise IjepaError(f"{path} has a header that this version does not know.") from error
    features = Features(path, store, header)
    _check(features, store)
    return features


def _check(features: Features, store: h5py.File) -> None:
    rows = features.shape[0]
    lengths = {"keys": len(store["keys"])}
    lengths |= {f"labels/{name}": len(values) for name, values in features.labels.items()}
    for name, length in lengths.items():
        if length != rows:
            raise IjepaError(
                f"{features.path} holds {rows:,} features but {length:,} {name}; "
                f"delete it and run `ijepa extract` again."
            )
    if len(set(features.keys)) != rows:
        raise IjepaError(f"{features.path} holds a key more than once; run `ijepa extract` again.")
    for first in range(0, rows, CHUNK_ROWS):
        if not np.isfinite(store["features"][first : first + CHUNK_ROWS]).all():
            raise IjepaError(
                f"{features.path} holds numbers that are not finite from row {first:,} on; "
                f"extract again with --dtype float32, or look at the encoder."
            )
