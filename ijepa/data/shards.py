"""Read a shard set: WebDataset tars, and an index with the place, labels and key of each sample.

Labels and keys are columns of the index, which is memory-mapped; the tars are read for images only.
"""

import hashlib
import itertools
import logging
import math
import os
import re
import tokenize
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from braceexpand import braceexpand
from PIL import Image
from pydantic import Field

from ijepa.config import Config, StrPath, validated
from ijepa.config.values import FileName
from ijepa.data.decode import decode_rgb
from ijepa.errors import IjepaError
from ijepa.files import file_sha256, naming, read_json
from ijepa.progress import Progress, silent
from ijepa.records import read_record, refuse_changed

if TYPE_CHECKING:
    from ijepa.data.loader import Images

SCHEMA = 2
EVALUATION = "evaluation"  # in place of a split's name, see `ShardSet.named_split`
INDEX = "index.json"
BAD = "bad.jsonl"  # images left out, if any: key, path, reason
LABEL = "label "  # before the name of a label in the name of its column
# What numpy raises for a damaged header of an array, which is a literal of Python.
UNREADABLE = (
    FileNotFoundError, ValueError, EOFError, TypeError, OverflowError, SyntaxError, MemoryError,
    RecursionError, LookupError, AttributeError, tokenize.TokenError,
)  # fmt: skip
EVERY = slice(None)
OPEN_TARS = 256  # at most, in one reader; the usual limit of a process is 1024 files
SHOWN_FILES = 5  # in an error
SHOWN_LINES = 3
BRACE_RANGE = re.compile(r"\{(-?\d+)\.\.(-?\d+)(?:\.\.-?\d+)?\}", re.ASCII)
BRACE_LIST = re.compile(r"\{([^{}]*,[^{}]*)\}")

Ints = np.ndarray[tuple[int, ...], np.dtype[np.int64]]
ImageIds = np.ndarray[tuple[int, ...], np.dtype[np.uint64]]
Numbers = list[int] | Ints | slice
Transform = Callable[[Image.Image], Any]  # such as those of torchvision
Rows = np.ndarray[tuple[int], np.dtype[np.void]]

log = logging.getLogger(__name__)


class ShardIndex(Config):
    """One tar of a split, in the folder of the index."""

    name: FileName
    samples: int
    bytes: int
    sha256: str


class SplitIndex(Config):
    """The samples of one split, their labels and shards.

    Attributes:
        samples: in all shards together.
        labels: names of classes 0, 1, ... by label.
        index_crc32: CRC-32 of the rows of the binary index.
        shards: in the order of the samples.
    """

    samples: int
    labels: dict[str, list[str]]
    index_crc32: int
    shards: list[ShardIndex]


class SetIndex(Config):
    """What `index.json` holds.

    Attributes:
        schema_version: version of this file and of `<split>.index.npy`.
        source: what the user sharded.
        fingerprint: equal for equal samples, wherever they came from.
        bad: number of images that do not decode; `bad.jsonl` lists them with the reason.
        splits: the splits by name.
        left_out: number of files and images of the source that were left out, by reason.
        changes: number of images that were changed, or lost a part, by reason.
    """

    schema_version: int
    source: str
    fingerprint: str
    bad: int
    splits: dict[FileName, SplitIndex]
    left_out: dict[str, int] = Field(default_factory=dict)
    changes: dict[str, int] = Field(default_factory=dict)


class ShardCheck(Config):
    """A shard set that was found undamaged.

    Attributes:
        out: its folder.
        files: number of files read.
        bytes: their size.
        samples: number of samples, over all splits.
    """

    out: Path
    files: int
    bytes: int
    samples: int


class Sample(NamedTuple):
    """One sample, the image still encoded; a label of -1 is not known."""

    key: str
    image: bytes
    labels: dict[str, int]


@dataclass(frozen=True)
class ShardSet:
    """An opened shard set."""

    folder: Path
    index: SetIndex

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the contents: splits, labels and every byte of the shards."""
        return self.index.fingerprint

    @property
    def source(self) -> str:
        """What the user sharded."""
        return self.index.source

    @property
    def splits(self) -> dict[str, SplitIndex]:
        """The splits by name."""
        return self.index.splits

    def split(
        self, name: str, transform: Callable[[Image.Image], Any] | None = None
    ) -> "SplitReader":
        """Open one split, a map-style data set for PyTorch.

        Args:
            name: of the split.
            transform: makes an item's image out of the decoded one.

        Raises:
            IjepaError: there is no such split.
        """
        if name not in self.splits:
            raise IjepaError(
                f"{self.folder} has no split {name!r}; its splits are "
                f"{', '.join(sorted(self.splits))}."
            )
        return SplitReader(self.folder, name, self.splits[name], transform)

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
    """Samples of a split by number; may be pickled, forked and read from several threads.

    An item is (image, labels): a PIL image in RGB, or what `transform` makes of it, and the class
    number by label, -1 where it is not known.
    """

    def __init__(
        self,
        folder: Path,
        name: str,
        index: SplitIndex,
        transform: Transform | None = None,
    ) -> None:
        """Store the location; files are opened when they are first read."""
        self.folder, self.name, self.index, self.transform = folder, name, index, transform
        self._rows: Rows | None = None
        self._rows_are_checked = False
        self._checked = bytearray(len(self))  # is the image of a sample undamaged?
        self._tar = lru_cache(OPEN_TARS)(self._open_tar)

    def __reduce__(self) -> tuple[Any, ...]:
        return SplitReader, (self.folder, self.name, self.index, self.transform)

    def __len__(self) -> int:
        return self.index.samples

    def __getitem__(self, number: int) -> tuple[Any, dict[str, int]]:
        image: Any = Image.fromarray(decode_rgb(self.read_image(number)))
        return self.transform(image) if self.transform else image, self.read_labels(number)

    @property
    def label_names(self) -> dict[str, list[str]]:
        """Names of classes 0, 1, ... by label."""
        return self.index.labels

    @property
    def image_bytes(self) -> Ints:
        """(len,) sizes of the image files."""
        return self._columns()["bytes"].astype(np.int64)

    def labels(self, name: str, numbers: Numbers = EVERY) -> Ints:
        """(n,) class numbers of one label, of some samples or of all; -1 is not known.

        Raises:
            IjepaError: there is no such label, or the index is damaged.
        """
        if name not in self.label_names:
            there = ", ".join(self.label_names) or "none"
            raise IjepaError(f"{self.name} has no label {name!r}; its labels are: {there}.")
        return self._columns()[LABEL + name][numbers].astype(np.int64)

    def keys(self, numbers: Numbers = EVERY) -> list[str]:
        """(n,) keys of some samples, or of all."""
        return [key.decode() for key in self._columns()["key"][numbers].tolist()]

    def read_labels(self, number: int) -> dict[str, int]:
        """Class numbers of one sample by label."""
        row = self._columns()[number]
        return {name: int(row[LABEL + name]) for name in self.label_names}

    def read_sample(self, number: int) -> Sample:
        """Key, image and labels of one sample; raises as `read_image`."""
        image = self.read_image(number)
        return Sample(self.keys([number])[0], image, self.read_labels(number))

    def read_image(self, number: int) -> bytes:
        """Bytes of an image file, as they are in the source.

        Raises:
            IndexError: `number` is not in [0, len).
            IjepaError: the shard is damaged, or was cut short since it was opened.
        """
        if not 0 <= number < len(self):
            raise IndexError(f"sample {number} of {len(self)} in split {self.name}")
        if self._rows is None:
            self._rows = load_rows(self.folder, self.name, self.label_names)
        shard, offset, size, crc32, *_ = self._rows[number].item()
        shards = self.index.shards
        if not (shard < len(shards) and size <= shards[shard].bytes - offset):
            raise self._damaged_index()
        tar = self._tar(shard)
        with naming(tar.path):
            image = os.pread(tar.descriptor, size, offset)
        if len(image) < size:
            raise IjepaError(f"{tar.path} was cut short at byte {offset:,}; shard again.")
        if not self._checked[number]:
            if zlib.crc32(image) != crc32:
                raise IjepaError(
                    f"{tar.path} is damaged at sample {number:,} of {self.name}; `ijepa shard "
                    f"--check {self.folder}` names all damaged files. Copy them again, or shard "
                    f"again."
                )
            self._checked[number] = 1
        return image

    def _columns(self) -> Rows:
        """The index, compared with its checksum the first time that labels or keys are read."""
        if self._rows is None:
            self._rows = load_rows(self.folder, self.name, self.label_names)
        if not self._rows_are_checked:
            if zlib.crc32(self._rows.data) != self.index.index_crc32:
                raise self._damaged_index()
            self._rows_are_checked = True
        return self._rows

    def _damaged_index(self) -> IjepaError:
        path = rows_path(self.folder, self.name)
        return IjepaError(f"{path} is damaged; copy it again, or shard again.")

    def _open_tar(self, shard: int) -> "_Tar":
        path = self.folder / self.index.shards[shard].name
        return _Tar(path, os.open(path, os.O_RDONLY | os.O_CLOEXEC))


class _Tar:
    """An open file, closed when nobody refers to it: another thread may be inside `pread`."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path, self.descriptor = path, descriptor

    def __del__(self) -> None:
        os.close(self.descriptor)


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
        if len(load_rows(folder, name, split.labels)) != split.samples:
            raise IjepaError(f"{folder}: the index of split {name} is not whole; shard again.")
    refuse_changed(folder, INDEX, *(rows_path(folder, name).name for name in index.splits))
    return ShardSet(folder, index)


def check_shards(folder: StrPath, progress: Progress = silent) -> ShardCheck:
    """Compare every file of a shard set with the sha256 that was taken when it was written.

    Args:
        folder: of `ijepa shard`.
        progress: called after each file.

    Raises:
        IjepaError: not a whole shard set, or files that are damaged, which are named.
    """
    folder = Path(folder)
    index = open_shards(folder).index
    recorded = (read_record(folder) or {}).get("files", {})  # nothing if it was not copied along
    expected = {name: facts["sha256"] for name, facts in recorded.items()}
    expected |= {shard.name: shard.sha256 for one in index.splits.values() for shard in one.shards}
    damaged = []
    for number, (name, sha256) in enumerate(expected.items(), start=1):
        if not (folder / name).is_file() or file_sha256(folder / name) != sha256:
            damaged.append(name)
        progress("check files", number, len(expected))
    if damaged:
        more = f" and {len(damaged) - SHOWN_FILES:,} more" if len(damaged) > SHOWN_FILES else ""
        raise IjepaError(
            f"{folder}: {', '.join(damaged[:SHOWN_FILES])}{more} of {len(expected):,} files are "
            f"damaged. Copy them again, or shard again with --force."
        )
    return ShardCheck(
        out=folder,
        files=len(expected),
        bytes=sum((folder / name).stat().st_size for name in expected),
        samples=sum(split.samples for split in index.splits.values()),
    )


def row_type(labels: Iterable[str], key_bytes: int) -> np.dtype[np.void]:
    """A row of the index: where the image of a sample lies, its class numbers, and its key.

    Args:
        labels: names of the labels.
        key_bytes: of the longest key, in UTF-8.
    """
    place = [("shard", "<u4"), ("offset", "<u8"), ("bytes", "<u4"), ("crc32", "<u4")]
    known = [(LABEL + name, "<i4") for name in sorted(labels)]
    return np.dtype([*place, *known, ("key", f"S{max(1, key_bytes)}")])


def rows_path(folder: Path, split: str) -> Path:
    """The index of a split's samples."""
    return folder / f"{split}.index.npy"


def load_rows(folder: Path, split: str, labels: Iterable[str]) -> Rows:
    """The index of a split's samples, mapped into memory: one row a sample, see `row_type`."""
    path = rows_path(folder, split)
    try:
        # As a plain array the mapping answers several times faster.
        rows: Rows = np.load(path, mmap_mode="r").view(np.ndarray)
    except UNREADABLE as error:
        raise IjepaError(f"{path} is missing or cut short, or damaged; shard again.") from error
    key_bytes = rows.dtype["key"].itemsize if "key" in (rows.dtype.names or ()) else 1
    if rows.dtype != row_type(labels, key_bytes) or rows.ndim != 1:
        raise IjepaError(f"{path} holds {rows.dtype!s:.80}, not rows of samples; shard again.")
    return rows


def image_ids(images: Iterable[bytes]) -> ImageIds:
    """(n,) numbers of image files by their bytes: the first 8 of each sha256, little-endian."""
    digests = b"".join(hashlib.sha256(image).digest()[:8] for image in images)
    return np.frombuffer(bytearray(digests), "<u8")  # writable, as torch wants it


def read_ids(images: "Images", numbers: Ints, progress: Progress = silent) -> ImageIds:
    """(n,) numbers by content of some images of a split; reads each."""

    def read() -> Iterator[bytes]:
        for done, number in enumerate(numbers.tolist(), start=1):
            yield images.read_image(number)
            progress("compare train and test images", done, len(numbers))

    return image_ids(read())


def of_equal_size(train: Ints, test: Ints) -> tuple[Ints, Ints]:
    """Places of images that may be the same, for there is one of as many bytes in the other.

    Args:
        train: (n,) sizes in bytes of training images.
        test: (m,) of test images.
    """
    alike = np.intersect1d(train, test)
    return np.flatnonzero(np.isin(train, alike)), np.flatnonzero(np.isin(test, alike))


def read_lines(path: Path) -> list[str]:
    """Lines of a list of images that are not blank, each once, in their order.

    Raises:
        IjepaError: there is no such file, or it is empty.
    """
    if not path.is_file():
        raise IjepaError(f"There is no list {path}.")
    lines = (line.strip() for line in path.read_text(errors="surrogateescape").splitlines())
    found = [line for line in dict.fromkeys(lines) if line]
    if not found:
        raise IjepaError(f"{path} lists nothing; write one key or file name a line.")
    return found


def listed(path: Path, keys: Sequence[str]) -> Ints:
    """Numbers of the images that a list names, ascending, such as the published 1% of ImageNet.

    Args:
        path: one key, path or file name a line, with or without a suffix; a file name names all
            images called so.
        keys: of the images, `<split>/<path without suffix>`.

    Raises:
        IjepaError: there is no such file, it is empty, or a line names no image.
    """
    lines = read_lines(path)
    numbers = defaultdict(list)
    for number, key in enumerate(keys):
        for name in {key, key.partition("/")[2], PurePosixPath(key).name}:
            numbers[name].append(number)
    found = [
        numbers.get(line) or numbers.get(str(PurePosixPath(line).with_suffix(""))) for line in lines
    ]
    lost = [line for line, places in zip(lines, found, strict=True) if not places]
    if lost:
        raise IjepaError(
            f"{path}: {len(lost):,} of {len(lines):,} lines name no training image, such as "
            f"{', '.join(lost[:SHOWN_LINES])}; write keys, paths or file names."
        )
    several = [line for line, places in zip(lines, found, strict=True) if len(places or []) > 1]
    if several:
        log.warning(
            "%s: %d of %d lines name several images each, such as %s; write keys or paths to name "
            "one.", path, len(several), len(lines), several[0],
        )  # fmt: skip
    return np.unique(np.concatenate([places or [] for places in found])).astype(np.int64)


def is_remote(data: StrPath) -> bool:
    """Is this an address (`s3://`, `https://`, `pipe:`), not a folder of this machine?"""
    return isinstance(data, str) and ("://" in data or data.startswith("pipe:"))


def expanded(text: str, most: int) -> tuple[str, ...]:
    """The names that `set-{000..009}.tar` stands for, counted before they are written down.

    Raises:
        IjepaError: more than `most`, or braces that do not end.
    """
    counts = [abs(int(end[:20]) - int(start[:20])) + 1 for start, end in BRACE_RANGE.findall(text)]
    counts += [names.count(",") + 1 for names in BRACE_LIST.findall(text)]
    try:
        too_many = math.prod(counts) > most  # braceexpand would write all of them down
        names = () if too_many else tuple(itertools.islice(braceexpand(text), most + 1))
        if too_many or len(names) > most:
            raise ValueError(f"they stand for more than {most:,} names")
    except (ValueError, RecursionError) as error:  # an UnbalancedBracesError is one
        raise IjepaError(
            f"The braces of {text:.200} cannot be expanded: {error}; write braces as in "
            f"set-{{000000..000146}}.tar."
        ) from error
    return names


def _check_size(tar: Path, expected_bytes: int) -> None:
    found_bytes = tar.stat().st_size if tar.is_file() else None
    if found_bytes is None:
        raise IjepaError(f"{tar} is missing; copy the shard set again, or shard again.")
    if found_bytes != expected_bytes:
        raise IjepaError(
            f"{tar} has {found_bytes:,} bytes, the index says {expected_bytes:,}; it was cut short "
            f"or changed. Copy the shard set again, or shard again."
        )
