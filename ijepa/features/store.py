"""The feature store: frozen features of a split in one HDF5 file, with labels, keys and origin.

The features are contiguous in the file, row after row, so that rows in any order are read through a
memory map. `write.py` makes such files.
"""

import contextlib
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Self

import h5py
import numpy as np
from pydantic import Field, ValidationError

from ijepa.arrays import Array
from ijepa.config import Config, StrPath
from ijepa.errors import IjepaError
from ijepa.files import no_file
from ijepa.provenance import UNKNOWN, Provenance
from ijepa.text import did_you_mean

if TYPE_CHECKING:
    import pandas

SCHEMA = 8
# Data sets in write order; `tokens` and `token_checksums` are optional. Dense maps come last and
# share the token checksums.
CONTIGUOUS = "features", "image_id", "checksums", "tokens", "token_checksums"
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
    def maps(self) -> list[str]:
        """Names of the data sets of maps in the file."""
        return [f"dense/{name}" for name in sorted(self.dense)]


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
        image_ids: (rows,) uint64, size and CRC-32 of the image file: alike for equal files.
        views: (rows,) int16: 0 is the evaluation view; None where each image is stored once.
    """

    def __init__(self, path: Path, store: h5py.File, header: FeatureHeader) -> None:
        """Take what `open_features` has checked."""
        self.path, self.header = path, header
        self._numbers: Array = np.asarray(mapped(path, store["features"]))
        tokens = mapped(path, store["tokens"]) if header.tokens else np.empty((0, 0, 0))
        self._tokens: Array = np.asarray(tokens)
        self._maps = {name: np.asarray(mapped(path, store[name])) for name in header.maps}
        rows, layers, dim = self._numbers.shape
        self.shape, self.dtype = (rows, layers, dim), str(self._numbers.dtype)
        labels = store.get("labels", {})
        self.labels = Labels((name, labels[name][:]) for name in labels)
        self.labels.path, self.class_names = path, header.class_names
        self.image_ids: Array = store["image_id"][:]
        self.views: Array | None = store["view"][:] if "view" in store else None
        self._keys = store["keys"][:]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __len__(self) -> int:
        return self.shape[0]

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

    def close(self) -> None:
        """Let go of the file."""
        self._numbers, self._tokens, self._maps = self._numbers[:0], self._tokens[:0], {}

    @property
    def keys(self) -> list[str]:
        """One a row; a key that stands in several rows has another view in each."""
        return [key.decode() for key in self._keys]

    def to_pandas(self) -> "pandas.DataFrame":
        """A table with one row a stored view: `key`, each label, and `view` if there are several.

        Features are not in it; its rows are those of `numpy()`. Needs pandas, which ijepa does not
        install.
        """
        try:
            import pandas
        except ImportError as error:
            raise IjepaError("to_pandas needs pandas: pip install pandas.") from error
        columns = {"key": self.keys, **self.labels}
        return pandas.DataFrame(columns if self.views is None else columns | {"view": self.views})

    def read(self, rows: Array, layers: int) -> Array:
        """(n, layers, dim) as stored: the last `layers` layers of (n,) rows, in whatever order."""
        found: Array = self._numbers[rows, -layers:]
        return found

    @property
    def tokens(self) -> Array:
        """(rows, patches, dim) as stored: patch tokens of the last layer, mapped, not in memory.

        Patches are row-major; `header.tokens` has their rows and columns. `tokens[rows]` reads any
        rows in any order. An `IjepaError` if the file has none.
        """
        if self.header.tokens is None:
            raise IjepaError(f"{self.path} has no patch tokens; extract it with --tokens.")
        return self._tokens

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
        return self._maps[f"dense/{label}"]

    def numpy(self, layer: int = -1) -> Array:
        """(rows, dim) float32: one stored layer, counted as in a list; -1 is the last."""
        if not -self.shape[1] <= layer < self.shape[1]:
            raise IjepaError(
                f"{self.path} stores {self.shape[1]} layers, 0 to {self.shape[1] - 1}, not {layer}."
            )
        return self._numbers[:, layer].astype(np.float32)

    def last(self, layers: int = 1) -> Array:
        """(rows, layers * dim) float32: the last layers side by side, all if fewer are stored."""
        found = self._numbers[:, -layers:].astype(np.float32, order="C")
        return found.reshape(len(found), found.shape[1] * found.shape[2])


def open_features(
    path: StrPath, *, check_numbers: bool = True, check_tokens: bool = False
) -> Features:
    """Open a store after checking that it is whole and sane.

    With `check_numbers`, all features are read once, to see that they are finite and undamaged;
    with `check_tokens`, all patch tokens, which must be there.

    Raises:
        IjepaError: not there, not HDF5, damaged, incomplete, unequal lengths, a repeated key (with
            the same view), or numbers that are not finite.
    """
    path = Path(path)
    with _readable(path) as store:
        header = _header(path, store)
        rows, held = len(store["features"]), path.stat().st_size
        columns = ["keys", "image_id", *(name for name in ("view", "tokens") if name in store)]
        for group in ("labels", "dense"):
            columns += [f"{group}/{name}" for name in sorted(store.get(group, {}))]
        for name in ["features", *columns, "checksums"]:
            values = store[name]
            # Numbers stand in one piece; the rest is not compressed: it takes its size in the file.
            in_one_piece = name in CONTIGUOUS or name.startswith("dense/")
            start = values.id.get_offset() if in_one_piece and values.size else 0
            if start is None or start + values.nbytes > held:
                raise ValueError(f"{name} claims {values.shape}, more than {held:,} bytes can hold")
            if name in columns and len(values) != rows:
                raise IjepaError(
                    f"{path} holds {rows:,} features but {len(values):,} {name}; "
                    f"restore it, or make it again with --force."
                )
        refuse_repeats(path, store["keys"][:], store["view"][:] if "view" in store else None)
        found = Features(path, store, header)
        batch_rows = int(store.attrs["batch_rows"])
        if check_numbers:
            numbers = [found._numbers, found.image_ids]
            _check_numbers(found, numbers, store["checksums"][:].tolist(), batch_rows)
        if check_tokens:
            tokens = [found.tokens, *found._maps.values()]  # refused here if there are none
            _check_numbers(found, tokens, store["token_checksums"][:].tolist(), batch_rows)
    return found


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
    try:
        return FeatureHeader.model_validate_json(str(store.attrs["header"]))
    except ValidationError as error:
        raise IjepaError(
            f"{path} has a header that this version does not know; extract again."
        ) from error


def refuse_repeats(path: Path, keys: Array, views: Array | None) -> None:
    """Refuse a key (bytes) that stands twice with the same view."""
    views = np.zeros(len(keys), np.int16) if views is None else views
    order = np.lexsort([views, keys])
    same = (keys[order][1:] == keys[order][:-1]) & (np.diff(views[order]) == 0)
    if same.any():
        key = keys[order][np.argmax(same)].decode()
        raise IjepaError(f"{path} holds key {key} more than once; shard and extract again.")


def _check_numbers(
    found: Features, columns: Sequence[Array], checksums: Sequence[int], batch_rows: int
) -> None:
    """Read all numbers of the first column once, batch by batch; checksums are over all columns."""
    starts = range(0, found.shape[0], max(1, batch_rows))
    if len(checksums) != len(starts):
        raise IjepaError(f"{found.path} has lost its checksums; extract again.")
    for start, checksum in zip(starts, checksums, strict=True):
        batch = slice(start, start + batch_rows)
        numbers, *beside = (column[batch] for column in columns)
        if not is_finite(numbers):
            raise IjepaError(
                f"{found.path} holds numbers that are not finite, first for "
                f"{first_bad(numbers, found.keys[batch])}; extract again with --dtype float32, or "
                f"look at the encoder."
            )
        if checksum_of(numbers, *beside) != checksum:
            raise IjepaError(
                f"{found.path} is not a whole feature file (rows from {start:,} on are damaged); "
                f"restore it, or make it again with --force."
            )


def is_finite(numbers: Array) -> bool:
    """Neither infinite nor NaN, all of them?"""
    if numbers.dtype == np.float16:  # four times as fast: only these have all bits of the exponent
        return bool((numbers.view(np.uint16) & 0x7FFF).max(initial=0) < 0x7C00)
    return bool(np.isfinite(numbers).all())


def first_bad(numbers: Array, keys: Sequence[str]) -> str:
    """Key of the first row with a number that is not finite."""
    finite = np.isfinite(numbers).reshape(len(numbers), -1).all(axis=1)
    return keys[int(np.argmin(finite))]


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
