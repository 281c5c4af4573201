"""The feature store: frozen features of a split in one HDF5 file, with labels, keys and origin.

Numbers stand in one piece, row after row, with a checksum for every batch that was written. So any
HDF5 reader finds them, and rows in any order are read through a memory map: a store may be many
times larger than memory.
"""

import contextlib
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import h5py
import numpy as np
from pydantic import ValidationError

from ijepa.config import Config, StrPath
from ijepa.errors import IjepaError
from ijepa.provenance import UNKNOWN, Provenance

if TYPE_CHECKING:
    import pandas

SCHEMA = 8
COLUMNS = "keys", "image_id", "view"  # beside `labels/NAME`; `view` only where there are several
BLOCK_ROWS = 512  # read at once, where all are
HALF_INFINITY = 0x7C00, 0xFC00  # bits of the positive one and of the negative; NaN stand above
DAMAGED = (  # what h5py and numpy raise for a file that is
    OSError,
    LookupError,
    RuntimeError,
    ValueError,
    TypeError,
    AttributeError,
    ArithmeticError,
    BufferError,
    MemoryError,
    SystemError,
)

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
        provenance: where the encoder comes from.
        num_views: augmented views of each image, beside the evaluation view.
        augment: how they were made: `none`, `flip` or `rrc-flip`.
        precision: what the encoder computed in: `fp32` or `bf16`.
        interpolation: by which images were resized: `bilinear` or `bicubic`.
        crop_fraction: of the short side that the evaluation view keeps; None where the whole image
            was squashed, or where an earlier version did not note it.
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
    provenance: Provenance = UNKNOWN
    num_views: int = 0
    augment: str = "none"
    precision: str = "fp32"  # as all files did that do not say so
    interpolation: str = "bilinear"  # likewise
    crop_fraction: float | None = None


class Features:
    """A store opened for reading; numbers are read when they are asked for."""

    def __init__(self, path: Path, store: h5py.File, header: FeatureHeader) -> None:
        """Take over an open file that `open_features` has checked."""
        self.path, self.header, self._store = path, header, store
        self._numbers: Array = np.asarray(mapped(path, store["features"], "r"))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the file."""
        self._numbers = self._numbers[:0]
        self._store.close()

    @property
    def shape(self) -> tuple[int, int, int]:
        """(rows, layers, dim)."""
        rows, layers, dim = self._store["features"].shape
        return rows, layers, dim

    @property
    def dtype(self) -> str:
        """Of the stored numbers."""
        return str(self._store["features"].dtype)

    @property
    def labels(self) -> dict[str, Array]:
        """(rows,) int64 by label."""
        group = self._store.get("labels", {})
        return {name: group[name][:] for name in group}

    @property
    def keys(self) -> list[str]:
        """One a row; a key that stands in several rows has another view in each."""
        with _readable(self.path):
            return [key.decode() for key in self._store["keys"][:]]

    def to_pandas(self) -> "pandas.DataFrame":
        """A table with a row a stored view: `key`, each label, and `view` where there are several.

        Needs pandas, which ijepa does not install.
        """
        import pandas

        columns = {"key": self.keys, **self.labels}
        views = self.views
        return pandas.DataFrame(columns if views is None else {**columns, "view": views})

    @property
    def image_ids(self) -> Array:
        """(rows,) uint64: equal for image files that are byte for byte the same, see `repeats`."""
        ids: Array = self._store["image_id"][:]
        return ids

    @property
    def views(self) -> Array | None:
        """(rows,) int16: 0 is the evaluation view; None where each image is stored once."""
        return self._store["view"][:] if "view" in self._store else None

    def read(self, rows: Array, layers: int) -> Array:
        """Some rows, in whatever order.

        Args:
            rows: (n,) row numbers.
            layers: how many of the last stored ones.

        Returns:
            (n, layers, dim) as stored.

        Raises:
            IjepaError: a number is not finite.
        """
        rows, first = np.asarray(rows, np.int64), self.shape[1] - layers
        if first == 0 and len(rows) and (np.diff(rows) == 1).all():
            found = self._piece(int(rows[0]), len(rows))
        else:
            found = self._numbers[rows, first:]
        if not is_finite(found):
            raise IjepaError(f"{self.path} holds numbers that are not finite; extract again.")
        return found

    def _piece(self, first: int, count: int) -> Array:
        """Rows that follow each other, in one read: faster than a map, page by page."""
        _, layers, dim = self.shape
        size = layers * dim
        start = self._store["features"].id.get_offset() + first * size * self._numbers.itemsize
        found = np.fromfile(self.path, self._numbers.dtype, count * size, offset=start)
        if len(found) < count * size:
            raise IjepaError(f"{self.path} has been cut short; extract again.")
        return found.reshape(count, layers, dim)

    def numpy(self, layer: int = -1) -> Array:
        """(rows, dim) float32: one stored layer, counted as in a list; -1 is the last."""
        place = range(self.shape[1])[layer]
        return self._blocks(self.shape[1] - place)[:, 0]

    def last(self, layers: int = 1) -> Array:
        """(rows, layers * dim) float32: the last layers side by side, all if fewer are stored."""
        return self._blocks(min(layers, self.shape[1])).reshape(self.shape[0], -1)

    def _blocks(self, layers: int) -> Array:
        """Block by block, so that no second copy of the numbers stands in memory."""
        rows, _, dim = self.shape
        found = np.empty((rows, layers, dim), dtype=np.float32)
        for first in range(0, rows, BLOCK_ROWS):
            block = np.arange(first, min(first + BLOCK_ROWS, rows))
            found[block] = self.read(block, layers)
        return found


def open_features(path: StrPath, *, check_numbers: bool = True) -> Features:
    """Open a store after checking that it is whole and sane.

    Args:
        path: of `ijepa extract`.
        check_numbers: read all numbers once, to see that they are finite and undamaged.

    Raises:
        IjepaError: not there, not HDF5, damaged, incomplete, unequal lengths, a repeated key (with
            the same view), or numbers that are not finite.
    """
    path = Path(path)
    with contextlib.ExitStack() as undo, _readable(path):
        store = undo.enter_context(_file(path))
        header = _header(path, store)
        _check_sizes(path, store)
        _check_columns(path, store)
        found = Features(path, store, header)
        undo.callback(found.close)
        if check_numbers:
            _check_numbers(found, store)
        undo.pop_all()
    return found


def read_header(path: Path) -> FeatureHeader:
    """Where a store comes from, without a look at its rows.

    Raises:
        IjepaError: not there, not HDF5, incomplete, or of another version.
    """
    with _readable(path), _file(path) as store:
        return _header(path, store)


def _file(path: Path) -> h5py.File:
    if not path.is_file():
        raise IjepaError(f"There is no feature file {path}; make one with `ijepa extract`.")
    return h5py.File(path, "r")


@contextlib.contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Whatever HDF5 finds damaged becomes one line."""
    try:
        yield
    except PermissionError:
        raise
    except DAMAGED as error:
        raise IjepaError(
            f"{path} is not a whole feature file ({' '.join(str(error).split())}); "
            f"if it was one, `ijepa extract` makes it again."
        ) from error


def _check_sizes(path: Path, store: h5py.File) -> None:
    """Refuse what claims more than the file holds, before memory is taken for it."""
    held = path.stat().st_size
    for name in ["features", *_columns(store), "checksums"]:
        values = store[name]
        # Numbers stand in one piece; the rest is not compressed, so it takes its size in the file.
        in_one_piece = name in ("features", "image_id") and values.size
        start = values.id.get_offset() if in_one_piece else 0
        if start is None or start + values.nbytes > held:
            raise ValueError(f"{name} claims {values.shape}, more than {held:,} bytes can hold")


def _header(path: Path, store: h5py.File) -> FeatureHeader:
    if store.attrs.get("complete") is None or store.attrs.get("schema") != SCHEMA:
        raise IjepaError(
            f"{path} is not a complete feature file of schema {SCHEMA}. If `ijepa extract` made "
            f"it, that makes it again with --force."
        )
    try:
        return FeatureHeader.model_validate_json(str(store.attrs["header"]))
    except ValidationError as error:
        raise IjepaError(
            f"{path} has a header that this version does not know; extract again."
        ) from error


def _check_columns(path: Path, store: h5py.File) -> None:
    """Do all columns have the rows of `features`, and does each row have a name of its own?

    Raises:
        IjepaError: if not, naming the column or the key.
    """
    rows = len(store["features"])
    for name in _columns(store):
        if len(store[name]) != rows:
            raise IjepaError(
                f"{path} holds {rows:,} features but {len(store[name]):,} {name}; "
                f"restore it, or make it again with --force."
            )
    if rows:
        refuse_repeats(path, store["keys"][:], store["view"][:] if "view" in store else None)


def refuse_repeats(path: Path, keys: Array, views: Array | None) -> None:
    """Refuse a key (bytes) that stands twice with the same view."""
    views = np.zeros(len(keys), np.int16) if views is None else views
    order = np.lexsort([views, keys])
    same = (keys[order][1:] == keys[order][:-1]) & (np.diff(views[order]) == 0)
    if same.any():
        key = keys[order][np.argmax(same)].decode()
        raise IjepaError(f"{path} holds key {key} more than once; shard and extract again.")


def _columns(store: h5py.File) -> list[str]:
    """Names of all that has one value a row, beside the numbers."""
    labels = (f"labels/{name}" for name in sorted(store.get("labels", {})))
    return [name for name in COLUMNS if name in store or name != "view"] + list(labels)


def _check_numbers(found: Features, store: h5py.File) -> None:
    """Read all numbers once, batch by batch."""
    rows, batch_rows = len(store["features"]), int(store.attrs["batch_rows"])
    checksums, ids = store["checksums"][:].tolist(), store["image_id"][:]
    starts = range(0, rows, max(1, batch_rows))
    if len(checksums) != len(starts):
        raise IjepaError(f"{found.path} has lost its checksums; extract again.")
    for start, checksum in zip(starts, checksums, strict=True):
        batch = slice(start, start + batch_rows)
        numbers = found._piece(start, len(ids[batch]))
        if not is_finite(numbers):
            raise IjepaError(
                f"{found.path} holds numbers that are not finite, first for "
                f"{first_bad(numbers, found.keys[batch])}; extract again with --dtype float32, or "
                f"look at the encoder."
            )
        if batch_checksum(numbers, ids[batch]) != checksum:
            raise IjepaError(
                f"{found.path} is not a whole feature file (rows from {start:,} on are damaged); "
                f"restore it, or make it again with --force."
            )


def is_finite(numbers: Array) -> bool:
    """Neither infinite nor NaN, all of them?"""
    if numbers.dtype == np.float16 and numbers.size:  # many times as fast as numpy's isfinite
        bits = np.ascontiguousarray(numbers).view(np.uint16)  # negative ones are negative as int16
        return bool(bits.view(np.int16).max() < HALF_INFINITY[0] and bits.max() < HALF_INFINITY[1])
    return bool(np.isfinite(numbers).all())


def first_bad(numbers: Array, keys: Sequence[str]) -> str:
    """Key of the first row that is not finite."""
    finite = np.isfinite(numbers).reshape(len(numbers), -1).all(axis=1)
    return keys[int(np.argmin(finite))]


def mapped(path: Path, data: h5py.Dataset, mode: Any) -> Array:  # noqa: ANN401  # numpy's literals
    """The numbers of a data set that stands in one piece, as they are in the file."""
    if not data.size:
        return np.empty(data.shape, data.dtype)
    return np.memmap(path, data.dtype, mode, data.id.get_offset(), data.shape)


def batch_checksum(features: Array, image_ids: Array) -> int:
    """CRC-32 of a batch."""
    return zlib.crc32(
        np.ascontiguousarray(image_ids).data, zlib.crc32(np.ascontiguousarray(features).data)
    )
