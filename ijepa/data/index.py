"""The index of a shard set: `index.json`, and for each split a binary file with a row a sample.

A row says where the image of a sample lies, its class numbers and its key; files are memory-mapped.
"""

import hashlib
import re
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

from ijepa.config import Config, PixelStats, StrPath, validated
from ijepa.config.values import FileName
from ijepa.data.decode import BROKEN, DenseLabel
from ijepa.errors import IjepaError
from ijepa.files import file_sha256, names_in, read_json
from ijepa.progress import Progress, automatic
from ijepa.records import read_record, refuse_changed
from ijepa.text import did_you_mean

SCHEMA = 3
INDEX = "index.json"
SHOWN_FILES = 5  # in an error
MOST_HEADER = 2**20  # bytes of the header of an array, which names every label; NumPy's is 10,000
LABEL = "label "  # before the name of a label in the name of its column
DENSE = "dense "  # before the name of a dense label in the names of its three columns
# What NumPy raises for an array that is missing or damaged. Other OSErrors, such as a lack of
# permission, keep their own words.
UNREADABLE = (FileNotFoundError, MemoryError, *(one for one in BROKEN if one is not OSError))

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


def split_of(splits: Mapping[str, SplitIndex], name: str, where: StrPath) -> SplitIndex:
    """One of the splits of the set at `where`, which the error names."""
    if name not in splits:
        near, there = did_you_mean(name, splits), ", ".join(sorted(splits))
        raise IjepaError(f"{where} has no split {name!r}{near}; its splits are {there}.")
    return splits[name]


def parsed_index(body: Any, where: StrPath) -> SetIndex:  # noqa: ANN401  # any JSON
    """The index of a shard set that `where` holds; an `IjepaError` if it is of another schema."""
    schema = body.get("schema_version") if isinstance(body, dict) else None
    if schema != SCHEMA:
        raise IjepaError(
            f"{where} has schema {schema!r}; this version of ijepa reads {SCHEMA}. Shard again."
        )
    return validated(SetIndex, body, str(where))


def row_type(labels: Iterable[str], key_bytes: int, dense: Iterable[str] = ()) -> np.dtype[np.void]:
    """A row of the index: where image and maps of a sample lie, its class numbers, and its key.

    `key_bytes` is the length of the longest key in UTF-8; `dense` are names of dense labels.
    """
    place = [("shard", "<u4"), ("offset", "<u8"), ("bytes", "<u4"), ("sha256", "<u8")]
    known = [(LABEL + name, "<i4") for name in sorted(labels)]
    known += [(f"{DENSE}{name} {of}", t) for name in sorted(dense) for of, t in place[1:]]
    return np.dtype([*place, *known, ("key", f"S{max(1, key_bytes)}")])


def sha256_start(content: bytes) -> int:
    """The first 64 bits of a file's SHA-256.

    A CRC-32 would not tell files apart: a PNG holds the CRC-32 of its data, and what is left of the
    whole file's has 16 bits for all files of one size.
    """
    return int.from_bytes(hashlib.sha256(content).digest()[:8])


def rows_path(folder: Path, split: str) -> Path:
    """The index of a split's samples."""
    return folder / f"{split}.index.npy"


def load_rows(folder: Path, split: str, labels: Iterable[str], dense: Iterable[str] = ()) -> Rows:
    """The index of a split's samples, mapped into memory: one row a sample, see `row_type`."""
    path = rows_path(folder, split)
    try:
        # As a plain array the mapping answers several times faster.
        mapped = np.load(path, mmap_mode="r", max_header_size=MOST_HEADER)
        rows: Rows = mapped.view(np.ndarray)
    except UNREADABLE as error:
        raise IjepaError(f"{path} is missing or cut short, or damaged; shard again.") from error
    key_bytes = rows.dtype["key"].itemsize if "key" in (rows.dtype.names or ()) else 1
    if rows.dtype != row_type(labels, key_bytes, dense) or rows.ndim != 1:
        raise IjepaError(f"{path} holds {rows.dtype!s:.80}, not rows of samples; shard again.")
    return rows


def read_index(folder: Path) -> SetIndex:
    """The index of a shard set, after the checks of `ijepa.data.shards.open_shards`."""
    path = folder / INDEX
    if not path.is_file():
        if re.match(r"\w+:/", str(folder)):
            raise IjepaError(
                f"{folder} is elsewhere: `ijepa pretrain` alone streams; copy it here."
            )
        near = "" if folder.exists() else did_you_mean(folder.name, names_in(folder.parent))
        raise IjepaError(
            f"{folder} is not a shard set (no {INDEX}){near}; make one with `ijepa shard`."
        )
    index = parsed_index(read_json(path), path)
    for name, split in index.splits.items():
        for shard in split.shards:
            tar = folder / shard.name
            if not tar.is_file():
                raise IjepaError(f"{tar} is missing; copy the shard set again, or shard again.")
            if tar.stat().st_size != shard.bytes:
                raise IjepaError(
                    f"{tar} has {tar.stat().st_size:,} bytes, the index says {shard.bytes:,}; it "
                    f"was cut short or changed. Copy the shard set again, or shard again."
                )
        if len(load_rows(folder, name, split.labels, split.dense)) != split.samples:
            raise IjepaError(f"{folder}: the index of split {name} is not whole; shard again.")
    refuse_changed(folder, INDEX, *(rows_path(folder, name).name for name in index.splits))
    return index


class ShardCheck(Config):
    """A shard set that was found undamaged: what was read of it."""

    out: Path
    files: int
    bytes: int
    samples: int


def check_shards(folder: StrPath, progress: Progress = automatic) -> ShardCheck:
    """Compare every file of a shard set with the checksums that were taken when it was written.

    Raises:
        IjepaError: as `read_index`, or files that are damaged, which are named.
    """
    folder = Path(folder)
    index = read_index(folder)
    recorded = (read_record(folder) or {}).get("files", {})  # nothing if it was not copied along
    rows = {rows_path(folder, split).name: split for split in index.splits}
    expected = dict.fromkeys(rows) | {name: facts["sha256"] for name, facts in recorded.items()}
    expected |= {shard.name: shard.sha256 for one in index.splits.values() for shard in one.shards}
    damaged = []
    for number, (name, sha256) in enumerate(expected.items(), start=1):
        is_whole = (folder / name).is_file()
        if is_whole and name in rows:
            split = index.splits[rows[name]]
            found = load_rows(folder, rows[name], split.labels, split.dense)
            is_whole = zlib.crc32(found.data) == split.index_crc32
        if not is_whole or sha256 not in (None, file_sha256(folder / name)):
            damaged.append(name)
        progress("check files", number, len(expected))
    if damaged:
        more = f" and {len(damaged) - SHOWN_FILES:,} more" if len(damaged) > SHOWN_FILES else ""
        raise IjepaError(
            f"{folder}: {len(damaged):,} of {len(expected):,} files "
            f"{'is' if len(damaged) == 1 else 'are'} damaged: {', '.join(damaged[:SHOWN_FILES])}"
            f"{more}. Copy the shard set again, or shard again with --force."
        )
    size_bytes = sum((folder / name).stat().st_size for name in expected)
    samples = sum(split.samples for split in index.splits.values())
    return ShardCheck(out=folder, files=len(expected), bytes=size_bytes, samples=samples)
