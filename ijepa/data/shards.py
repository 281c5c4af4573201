"""A shard set: plain WebDataset tars, and an index that finds any sample without reading them."""

import json
import os
import tokenize
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from pydantic import Field

from ijepa.config import Config, StrPath, validated
from ijepa.config.values import FileName
from ijepa.errors import IjepaError
from ijepa.stage import naming, read_json, refuse_changed

SCHEMA = 1
EVALUATION = "evaluation"  # in place of a split's name, see `ShardSet.named_split`
INDEX = "index.json"
BAD = "bad.jsonl"  # images left out, if any: key, path, reason
EXTENSIONS = ("jpg", "png", "webp")
ROW = np.dtype(
    [
        ("shard", "<u4"),  # place in the split's list of shards
        ("extension", "u1"),  # place in `EXTENSIONS`
        ("image_offset", "<u8"),
        ("image_bytes", "<u4"),
        ("json_offset", "<u8"),
        ("json_bytes", "<u4"),
        ("image_crc32", "<u4"),
        ("json_crc32", "<u4"),
    ]
)
# Of sets that were made before samples had checksums.
UNCHECKED_ROW = np.dtype([(name, ROW[name]) for name in (ROW.names or ())[:-2]])
# What numpy raises for a damaged header of an array, which is a literal of Python.
UNREADABLE = (
    FileNotFoundError,
    ValueError,
    EOFError,
    TypeError,
    OverflowError,
    SyntaxError,
    MemoryError,
    RecursionError,
    LookupError,
    AttributeError,
    tokenize.TokenError,
)
OPEN_TARS = 256  # at most, in one reader; the usual limit of a process is 1024 files

Ints = np.ndarray[tuple[int], np.dtype[np.uint32]]
Rows = np.ndarray[tuple[int], np.dtype[np.void]]


class ShardIndex(Config):
    """One tar of a split, in the folder of the index."""

    name: FileName
    samples: int
    bytes: int
    sha256: str


class SplitIndex(Config):
    """One split: how much there is and what it is labelled with.

    Attributes:
        samples: in all shards together.
        classes: how many, by label.
        labels: names of the classes by label; None for a label of plain integers.
        shards: in the order of the samples.
    """

    samples: int
    classes: dict[str, int]
    labels: dict[str, list[str] | None]
    shards: list[ShardIndex]


class SetIndex(Config):
    """What `index.json` holds.

    Attributes:
        schema_version: of this file and of `<split>.index.npy`.
        source: what the user sharded.
        fingerprint: of the contents: equal for equal samples, wherever they came from.
        bad: images left out; `bad.jsonl` says which and why.
        splits: by name.
        left_out: numbers of files and images of the source that did not come along, by reason.
        changes: numbers of images that were changed, or of which a part is lost, by reason.
    """

    schema_version: int
    source: str
    fingerprint: str
    bad: int
    splits: dict[FileName, SplitIndex]
    left_out: dict[str, int] = Field(default_factory=dict)
    changes: dict[str, int] = Field(default_factory=dict)


class Sample(NamedTuple):
    """One sample, the image still encoded."""

    key: str
    image: bytes
    labels: dict[str, int]
    metadata: dict[str, Any]


@dataclass(frozen=True)
class ShardSet:
    """An opened shard set."""

    folder: Path
    index: SetIndex

    @property
    def fingerprint(self) -> str:
        """Of the contents: splits, labels and every byte of the shards."""
        return self.index.fingerprint

    @property
    def source(self) -> str:
        """What the user sharded."""
        return self.index.source

    @property
    def splits(self) -> dict[str, SplitIndex]:
        """What there is."""
        return self.index.splits

    def split(self, name: str) -> "SplitReader":
        """Read one split.

        Raises:
            IjepaError: there is no such split.
        """
        if name not in self.splits:
            raise IjepaError(
                f"{self.folder} has no split {name!r}; its splits are "
                f"{', '.join(sorted(self.splits))}."
            )
        return SplitReader(self.folder, name, self.splits[name])

    def named_split(self, name: str, train: str = "train") -> str:
        """Turn `evaluation` into the split to score on: val, else test, else the only other one.

        Args:
            name: any other name, or a split that is really called so, is returned as it is.
            train: the split to train on, which is never the answer.

        Raises:
            IjepaError: `evaluation` is asked for, and there is no such split, or several.
        """
        if name != EVALUATION or name in self.splits:
            return name
        others = sorted(set(self.splits) - {train})
        usual = [other for other in ("val", "test") if other in others]
        if usual or len(others) == 1:
            return (usual or others)[0]
        found = f"several beside {train}: {', '.join(others)}" if others else f"{train} alone"
        raise IjepaError(
            f"{self.folder} has no split to score on: its splits are {found}. Name one with "
            f"--split or --test-split, or make one with `ijepa shard --val-fraction 0.1`."
        )

    def require(self, splits: Iterable[str], labels: Iterable[str]) -> None:
        """Refuse a set on which later stages could not run to their end.

        Args:
            splits: that must be there; `evaluation` as `named_split` takes it.
            labels: that each of these must have.

        Raises:
            IjepaError: naming the first that is missing.
        """
        for split in (self.split(self.named_split(name)) for name in splits):
            for label in labels:
                if label not in split.label_names:
                    known = ", ".join(split.label_names) or "none"
                    raise IjepaError(
                        f"{self.folder}: images of {split.name} have no label {label!r} (labels: "
                        f"{known}), so nothing can be scored on it; `ijepa pretrain` needs none."
                    )


class SplitReader:
    """Samples of a split by number; may be pickled, forked and read from several threads."""

    def __init__(self, folder: Path, name: str, index: SplitIndex) -> None:
        """Remember where; files are opened when first read."""
        self.folder, self.name, self.index = folder, name, index
        self._open()

    @property
    def label_names(self) -> dict[str, list[str] | None]:
        """Names of the classes by label; None for a label of plain integers."""
        return self.index.labels

    @property
    def image_bytes(self) -> Ints:
        """(len,) sizes of the image files."""
        return load_rows(self.folder, self.name)["image_bytes"]

    def __len__(self) -> int:
        return self.index.samples

    def __iter__(self) -> Iterator[Sample]:
        return (self.read_sample(number) for number in range(len(self)))

    def read_image(self, number: int) -> bytes:
        """Bytes of an image file, as they stood in the source.

        Raises:
            IndexError: `number` is not in [0, len).
            IjepaError: the shard was cut short since it was opened.
        """
        place = self._place(number)
        image = self._read(place.shard, place.image_offset, place.image_bytes)
        self._check(2 * number, image, place.shard, place.image_crc32)
        return image

    def read_sample(self, number: int) -> Sample:
        """An image with all that is known about it; raises as `read_image`."""
        place = self._place(number)
        json_start = place.json_offset - place.image_offset
        both = self._read(place.shard, place.image_offset, json_start + place.json_bytes)
        image = both[: place.image_bytes]
        self._check(2 * number, image, place.shard, place.image_crc32)
        metadata = self._metadata(number, both[json_start:], place)
        return Sample(metadata.pop("key"), image, metadata.pop("labels"), metadata)

    def read_labels(self, number: int) -> tuple[str, dict[str, int]]:
        """Key and labels of an image, without its bytes; raises as `read_image`."""
        place = self._place(number)
        text = self._read(place.shard, place.json_offset, place.json_bytes)
        metadata = self._metadata(number, text, place)
        return metadata["key"], metadata["labels"]

    def _metadata(self, number: int, text: bytes, place: "_Place") -> dict[str, Any]:
        self._check(2 * number + 1, text, place.shard, place.json_crc32)
        metadata: dict[str, Any] = json.loads(text)
        return metadata

    def _check(self, slot: int, content: bytes, shard: int, expected: int | None) -> None:
        """The first time that this reader reads it."""
        if expected is None or self._checked[slot]:
            return
        if zlib.crc32(content) != expected:
            tar = self._tar(shard).path
            raise IjepaError(
                f"{tar} is damaged at sample {slot // 2:,} of {self.name}; `ijepa shard --check "
                f"{self.folder}` names all damaged files. Copy them again, or shard again."
            )
        self._checked[slot] = 1

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self.folder, "name": self.name, "index": self.index}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]  # unpickled as made

    def _open(self) -> None:
        self._rows: Rows | None = None
        self._checked = bytearray(2 * len(self))  # is image, is JSON of a sample undamaged?
        self._tar = lru_cache(OPEN_TARS)(self._open_tar)

    def _open_tar(self, shard: int) -> "_Tar":
        path = self.folder / self.index.shards[shard].name
        return _Tar(path, os.open(path, os.O_RDONLY | os.O_CLOEXEC))

    def _place(self, number: int) -> "_Place":
        if not 0 <= number < len(self):
            raise IndexError(f"sample {number} of {len(self)} in split {self.name}")
        if self._rows is None:
            self._rows = load_rows(self.folder, self.name)
        return _Place(*self._rows[number].item())

    def _read(self, shard: int, offset: int, size: int) -> bytes:
        if not (
            shard < len(self.index.shards)
            and 0 <= size <= self.index.shards[shard].bytes
            and offset <= self.index.shards[shard].bytes - size
        ):
            raise IjepaError(
                f"{rows_path(self.folder, self.name)} is damaged: it names bytes that no shard "
                f"has; copy it again, or shard again."
            )
        tar = self._tar(shard)
        with naming(tar.path):
            content = os.pread(tar.descriptor, size, offset)
        if len(content) < size:
            raise IjepaError(f"{tar.path} was cut short at byte {offset:,}; shard again.")
        return content


class _Place(NamedTuple):
    """A row of the index, in Python's own integers."""

    shard: int
    extension: int
    image_offset: int
    image_bytes: int
    json_offset: int
    json_bytes: int
    image_crc32: int | None = None
    json_crc32: int | None = None


class _Tar:
    """A file open for reading until nobody holds it: safe while another thread is in `pread`."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path, self.descriptor = path, descriptor

    def __del__(self) -> None:
        os.close(self.descriptor)


def is_remote(data: StrPath) -> bool:
    """Is this an address (`s3://`, `https://`, `pipe:`), not a folder of this machine?"""
    return isinstance(data, str) and ("://" in data or data.startswith("pipe:"))


def open_shards(folder: StrPath) -> ShardSet:
    """Open a shard set after checking that it is whole; reads no sample.

    Raises:
        IjepaError: not a shard set, of another schema, or a file is missing or of the wrong size.
    """
    folder = Path(folder)
    path = folder / INDEX
    if not path.is_file():
        raise IjepaError(f"{folder} is not a shard set (no {INDEX}); make one with `ijepa shard`.")
    body = read_json(path)
    if body.get("schema_version") != SCHEMA:
        raise IjepaError(
            f"{path} has schema {body.get('schema_version')!r}; this version of ijepa reads "
            f"{SCHEMA}. Shard again."
        )
    index = validated(SetIndex, body, str(path))
    for name, split in index.splits.items():
        for shard in split.shards:
            _check_size(folder / shard.name, shard.bytes)
        if len(load_rows(folder, name)) != split.samples:
            raise IjepaError(f"{folder}: the index of split {name} is not whole; shard again.")
    refuse_changed(folder, INDEX, *(rows_path(folder, name).name for name in index.splits))
    return ShardSet(folder, index)


def rows_path(folder: Path, split: str) -> Path:
    """Where the offsets of a split's samples stand."""
    return folder / f"{split}.index.npy"


def load_rows(folder: Path, split: str) -> Rows:
    """Offsets of a split's samples, mapped into memory: one `ROW` a sample."""
    path = rows_path(folder, split)
    try:
        # As a plain array the mapping answers several times faster.
        rows: Rows = np.load(path, mmap_mode="r").view(np.ndarray)
    except UNREADABLE as error:
        raise IjepaError(f"{path} is missing or cut short, or damaged; shard again.") from error
    if rows.dtype not in (ROW, UNCHECKED_ROW) or rows.ndim != 1:
        raise IjepaError(f"{path} holds {rows.dtype!s:.80}, not offsets of samples; shard again.")
    return rows


def _check_size(tar: Path, expected_bytes: int) -> None:
    found_bytes = tar.stat().st_size if tar.is_file() else None
    if found_bytes is None:
        raise IjepaError(f"{tar} is missing; copy the shard set again, or shard again.")
    if found_bytes != expected_bytes:
        raise IjepaError(
            f"{tar} has {found_bytes:,} bytes, the index says {expected_bytes:,}; it was cut short "
            f"or changed. Copy the shard set again, or shard again."
        )
