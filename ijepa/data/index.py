"""The index of a shard set: `index.json`, and for each split a binary file with a row a sample.

A row says where the image of a sample lies, its class numbers and its key; files are memory-mapped.
"""

import contextlib
import tokenize
from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from pydantic import Field

from ijepa.config import Config, PixelStats, StrPath, validated
from ijepa.config.values import FileName
from ijepa.data.decode import DenseLabel
from ijepa.errors import IjepaError
from ijepa.files import parse_json
from ijepa.text import did_you_mean

SCHEMA = 2
INDEX = "index.json"
LABEL = "label "  # before the name of a label in the name of its column
DENSE = "dense "  # before the name of a dense label in the names of its three columns
# What numpy raises for a damaged header of an array, which is a literal of Python.
UNREADABLE = (
    FileNotFoundError, ValueError, EOFError, TypeError, OverflowError, SyntaxError, MemoryError,
    RecursionError, LookupError, AttributeError, tokenize.TokenError,
)  # fmt: skip

Ints = np.ndarray[tuple[int, ...], np.dtype[np.int64]]
Rows = np.ndarray[tuple[int], np.dtype[np.void]]


class ShardIndex(Config):
    """One tar of a split, in the folder of the index."""

    name: FileName
    samples: int
    bytes: int
    sha256: str


class SplitIndex(Config):
    """The samples of one split, their labels and shards."""

    samples: int  # in all shards together
    labels: dict[str, list[str]]  # names of classes 0, 1, ... by label
    index_crc32: int  # of the rows of the binary index
    shards: list[ShardIndex]  # in the order of the samples
    dense: dict[str, DenseLabel] = Field(default_factory=dict)  # maps beside every image


class SetIndex(Config):
    """What `index.json` holds."""

    schema_version: int  # of this file and of `<split>.index.npy`
    source: str  # what the user sharded
    fingerprint: str  # equal for equal samples, wherever they came from
    bad: int  # images that do not decode; `bad.jsonl` lists them with the reason
    splits: dict[FileName, SplitIndex]
    left_out: dict[str, int] = Field(default_factory=dict)  # files and images not taken, by reason
    changes: dict[str, int] = Field(default_factory=dict)  # images changed or cut, by reason
    pixels: PixelStats | None = None  # of images that are not 8-bit RGB

    later: ClassVar[tuple[str, ...]] = ("pixels",)

    def split(self, name: str, where: StrPath) -> SplitIndex:
        """One of the splits of the set at `where`, which the error names."""
        if name not in self.splits:
            near, there = did_you_mean(name, self.splits), ", ".join(sorted(self.splits))
            raise IjepaError(f"{where} has no split {name!r}{near}; its splits are {there}.")
        return self.splits[name]


def parsed_index(body: Any, where: StrPath) -> SetIndex:  # noqa: ANN401  # any JSON
    """The index of a shard set that `where` holds.

    Raises:
        IjepaError: it is something else, or of another schema.
    """
    schema = body.get("schema_version") if isinstance(body, dict) else None
    if schema != SCHEMA:
        raise IjepaError(
            f"{where} has schema {schema!r}; this version of ijepa reads {SCHEMA}. Shard again."
        )
    return validated(SetIndex, body, str(where))


def refuse_shard_set(folder: Path) -> None:
    """Raise an `IjepaError` that names what a shard set was made from; pass any other folder."""
    with contextlib.suppress(OSError, ValueError):
        body = parse_json((folder / INDEX).read_bytes())
        if isinstance(body, dict) and body.keys() >= {"schema_version", "source", "splits"}:
            raise IjepaError(
                f"{folder} is a shard set of ijepa already; to change how it was made, shard its "
                f"source {body['source']} again."
            )


def row_type(labels: Iterable[str], key_bytes: int, dense: Iterable[str] = ()) -> np.dtype[np.void]:
    """A row of the index: where image and maps of a sample lie, its class numbers, and its key.

    `key_bytes` is the length of the longest key in UTF-8; `dense` are names of dense labels.
    """
    place = [("shard", "<u4"), ("offset", "<u8"), ("bytes", "<u4"), ("crc32", "<u4")]
    known = [(LABEL + name, "<i4") for name in sorted(labels)]
    known += [(f"{DENSE}{name} {of}", t) for name in sorted(dense) for of, t in place[1:]]
    return np.dtype([*place, *known, ("key", f"S{max(1, key_bytes)}")])


def rows_path(folder: Path, split: str) -> Path:
    """The index of a split's samples."""
    return folder / f"{split}.index.npy"


def load_rows(folder: Path, split: str, labels: Iterable[str], dense: Iterable[str] = ()) -> Rows:
    """The index of a split's samples, mapped into memory: one row a sample, see `row_type`."""
    path = rows_path(folder, split)
    try:
        # As a plain array the mapping answers several times faster.
        rows: Rows = np.load(path, mmap_mode="r").view(np.ndarray)
    except UNREADABLE as error:
        raise IjepaError(f"{path} is missing or cut short, or damaged; shard again.") from error
    key_bytes = rows.dtype["key"].itemsize if "key" in (rows.dtype.names or ()) else 1
    if rows.dtype != row_type(labels, key_bytes, dense) or rows.ndim != 1:
        raise IjepaError(f"{path} holds {rows.dtype!s:.80}, not rows of samples; shard again.")
    return rows
