"""The feature store: frozen features of a split in one HDF5 file, with labels, keys and origin.

The features are contiguous in the file, row after row, so that rows in any order are read through a
memory map. `write.py` makes such files.
"""

import contextlib
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Self

import h5py
import numpy as np
from pydantic import Field

from ijepa.arrays import Array
from ijepa.config import Config, StrPath
from ijepa.errors import IjepaError, optional
from ijepa.files import no_file
from ijepa.provenance import UNKNOWN, Provenance
from ijepa.text import did_you_mean

if TYPE_CHECKING:
    import pandas

SCHEMA = 9
# What h5py and numpy raise for a file that is damaged.
DAMAGED = (OSError, LookupError, RuntimeError, ValueError, TypeError, AttributeError,
           ArithmeticError, BufferError, MemoryError, SystemError)  # fmt: skip


class DenseMaps(Config):
    """What the stored maps of a dense label hold."""

    dtype: str  # `uint8`, `uint16`: classes, the largest value is ignored; `float32`: depth or 0
    names: tuple[str, ...] | None = None  # of classes 0, 1, ...; None for depth
    unit: str = ""  # of depth


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
        data_fingerprint: of the shard set, of which this is the `split`.
        class_names: by label; None for plain integers.
        fingerprint: of the stage that made it.
        source: what the shard set was made from, as the user typed it.
        provenance: where the encoder comes from.
        num_views: augmented views of each image, beside the evaluation view.
        augment: how they were made: `none`, `flip` or `rrc-flip`.
        precision: what the encoder computed in: `fp32` or `bf16`.
        interpolation: by which images were resized: `bilinear` or `bicubic`.
        crop_fraction: of the short side that the evaluation view keeps; None where the whole image
            was squashed.
        tokens: rows of patches, columns of patches and width of the stored patch tokens of the last
            layer; None where they are not stored.
        dense: dense labels whose maps are stored beside the tokens, in the evaluation view.
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
    precision: str = "fp32"
    interpolation: str = "bilinear"
    crop_fraction: float | None = None
    tokens: tuple[int, int, int] | None = None
    dense: dict[str, DenseMaps] = Field(default_factory=dict)

    @property
    def numbers(self) -> dict[str, list[str]]:
        """Data sets that are written batch by batch, under the name of their batches' checksums."""
        groups = {"checksums": ["features", "image_id"]}
        if self.tokens:
            groups["token_checksums"] = ["tokens", *(f"dense/{one}" for one in sorted(self.dense))]
        return groups


class Labels(dict[str, Array]):
    """(rows,) int64 class numbers by label; -1 where the class is not known."""

    path: Path

    def __missing__(self, name: str) -> Array:
        near, there = did_you_mean(name, self), ", ".join(self) or "none"
        raise IjepaError(f"{self.path} has no label {name!r}{near}; its labels are: {there}.")


class Features:
    """A feature file opened for reading: labels and keys are in memory, features memory-mapped.

    Attributes:
        path: the file.
        header: where the features come from.
        shape: (rows, layers, dim).
        dtype: of the stored numbers.
        labels: (rows,) int64 class numbers by label.
        class_names: names of classes 0, 1, ... by label; None where they are plain integers.
        image_ids: (rows,) uint64, the first 64 bits of the SHA-256 of the image file.
        views: (rows,) int16: 0 is the evaluation view; None where each image is stored once.
    """

    def __init__(self, path: Path, store: h5py.File, header: FeatureHeader) -> None:
        """Take columns of one length from an open file; see `open_features`."""
        self.path, self.header = path, header
        numbers = [name for names in header.numbers.values() for name in names]
        labels, views = store.get("labels", {}), ["view"] if "view" in store else []
        for name in [*numbers, "keys", *views, *(f"labels/{label}" for label in labels)]:
            _check_length(store, name, len(store["features"]))
        self._mapped = {name: np.asarray(mapped(path, store[name])) for name in numbers}
        rows, layers, dim = self._mapped["features"].shape
        self.shape, self.dtype = (rows, layers, dim), str(self._mapped["features"].dtype)
        self.labels = Labels((name, labels[name][:]) for name in labels)
        self.labels.path, self.class_names = path, header.class_names
        self.image_ids: Array = store["image_id"][:]
        self.views: Array | None = store["view"][:] if "view" in store else None
        self._keys = store["keys"][:]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing is to be closed: rows stay readable as long as somebody holds them."""

    def __len__(self) -> int:
        rows: int = self.shape[0]
        return rows

    def __repr__(self) -> str:
        known = []
        for name in self.labels:
            classes = self.class_names.get(name)
            known.append(f"{name} ({len(classes):,} classes)" if classes else name)
        _, layers, dim = self.shape
        return (
            f"Features('{self.path}': {self.header.encoder}, split {self.header.split}, "
            f"{len(self):,} rows of {layers} {'layer' if layers == 1 else 'layers'} x {dim} "
            f"{self.dtype}, labels: {', '.join(known) or 'none'})"
        )

    @property
    def keys(self) -> list[str]:
        """One a row; a key that stands in several rows has another view in each."""
        return [key.decode() for key in self._keys]

    def to_pandas(self) -> "pandas.DataFrame":
        """A table with one row a stored view: `key`, each label, and `view` if there are several.

        Features are not in it; its rows are those of `numpy()`. Needs pandas, which ijepa does not
        install.
        """
        columns = {"key": self.keys, **self.labels}
        if self.views is not None:
            columns["view"] = self.views
        table: pandas.DataFrame = optional("pandas", "to_pandas").DataFrame(columns)
        return table

    @property
    def values(self) -> Array:
        """(rows, layers, dim) as stored: mapped, not in memory; `values[rows]` reads some rows."""
        return self._mapped["features"]

    @property
    def tokens(self) -> Array:
        """(rows, patches, dim) as stored: patch tokens of the last layer, mapped, not in memory.

        Patches are row-major; `header.tokens` has their rows and columns. `tokens[rows]` reads any
        rows in any order. An `IjepaError` if the file has none.
        """
        if self.header.tokens is None:
            raise IjepaError(f"{self.path} has no patch tokens; extract it with --tokens.")
        return self._mapped["tokens"]

    def maps(self, label: str) -> Array:
        """(rows, height, width) of one dense label, see `DenseMaps`: mapped, not in memory.

        An `IjepaError` if the file has no such label.
        """
        if label not in self.header.dense:
            near, there = did_you_mean(label, self.header.dense), ", ".join(self.header.dense)
            raise IjepaError(
                f"{self.path} has no dense label {label!r}{near}; its dense labels are: "
                f"{there or 'none. Shard with --masks or --depth, and extract with --tokens'}."
            )
        return self._mapped[f"dense/{label}"]

    def numpy(self, layer: int = -1) -> Array:
        """(rows, dim) float32: one stored layer, counted as in a list; -1 is the last."""
        if not -self.shape[1] <= layer < self.shape[1]:
            raise IjepaError(
                f"{self.path} stores {self.shape[1]} layers, 0 to {self.shape[1] - 1}, not {layer}."
            )
        return self.values[:, layer].astype(np.float32)


def open_features(
    path: StrPath, *, check_numbers: bool = True, check_tokens: bool = False
) -> Features:
    """Open a store after checking that it is whole.

    With `check_numbers`, all features are read once, and compared with their checksums; with
    `check_tokens`, all patch tokens, which must be there.

    Raises:
        IjepaError: not there, not HDF5, damaged, incomplete, or of unequal lengths.
    """
    path = Path(path)
    with _readable(path) as store:
        found = Features(path, store, _header(path, store))
        if check_tokens:
            _ = found.tokens  # refused if there are none
        batch_rows = int(store.attrs["batch_rows"])
        for checksums in found.header.numbers:
            _check_length(store, checksums, -(-len(found) // batch_rows))
        wanted = ["checksums"] * check_numbers + ["token_checksums"] * check_tokens
        for batch in wrong_batches(path, store, found.header, wanted):
            raise ValueError(f"rows from {batch * batch_rows:,} on are damaged")
    return found


def wrong_batches(
    path: Path, store: h5py.File, header: FeatureHeader, checksums: Iterable[str]
) -> Iterator[int]:
    """Numbers of batches that do not agree with these checksums, or have none."""
    rows = int(store.attrs["batch_rows"])
    for name in checksums:
        columns = [mapped(path, store[column]) for column in header.numbers[name]]
        for batch, checksum in enumerate(store[name][:].tolist()):
            some = slice(batch * rows, (batch + 1) * rows)
            # Without a checksum rows are not read: a new file may have 100 GB of them.
            if not checksum or checksum_of(*(column[some] for column in columns)) != checksum:
                yield batch


def _check_length(store: h5py.File, name: str, length: int) -> None:
    """See before a column takes memory that it has this length, and that the file can hold it."""
    if len(store[name]) != length:
        rows = len(store["features"])
        raise ValueError(f"it holds {rows:,} features but {len(store[name]):,} {name}")
    if store[name].nbytes > store.id.get_filesize():  # no column is compressed
        raise ValueError(f"{name} claims {store[name].nbytes:,} bytes, more than the file has")


def read_header(path: Path) -> FeatureHeader:
    """Where a store comes from, without a look at its rows."""
    with _readable(path) as store:
        return _header(path, store)


@contextlib.contextmanager
def _readable(path: Path) -> Iterator[h5py.File]:
    """The open file; whatever HDF5 finds damaged becomes one line."""
    if not path.is_file():
        raise IjepaError(f"{no_file(path, 'feature file')}; make one with `ijepa extract`.")
    try:
        with h5py.File(path, "r") as store:
            yield store
    except PermissionError:
        raise
    except DAMAGED as error:
        raise IjepaError(
            f"{path} is not a whole feature file ({' '.join(str(error).split())}); "
            f"if it was one, `ijepa extract` makes it again."
        ) from error


def _header(path: Path, store: h5py.File) -> FeatureHeader:
    if store.attrs.get("complete") is None or store.attrs.get("schema") != SCHEMA:
        raise IjepaError(
            f"{path} is not a complete feature file of schema {SCHEMA}. If `ijepa extract` made "
            f"it, that makes it again with --force."
        )
    return FeatureHeader.model_validate_json(str(store.attrs["header"]))


def mapped(path: Path, data: h5py.Dataset) -> Array:
    """A contiguous data set, memory-mapped."""
    if not data.size:
        return np.empty(data.shape, data.dtype)
    return np.memmap(path, data.dtype, "r", data.id.get_offset(), data.shape)


def checksum_of(*columns: Array) -> int:
    """CRC-32 of a batch, column by column; never 0, which stands for a batch that is not there."""
    checksum = 0
    for column in columns:
        checksum = zlib.crc32(column.data, checksum)
    return checksum or 1
