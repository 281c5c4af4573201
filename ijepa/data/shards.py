"""Open a shard set: its splits are data sets for PyTorch, with labels and keys as columns.

Labels and keys come from the index alone; the tars are read for images only.
"""

import os
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from ijepa.arrays import Array, Ints
from ijepa.config import PixelStats, StrPath
from ijepa.data.decode import NPY, decode_dense, decode_image
from ijepa.data.index import (
    DENSE,
    LABEL,
    Rows,
    SplitIndex,
    load_rows,
    read_index,
    rows_path,
    sha256_start,
    split_of,
)
from ijepa.data.sources.names import class_numbers
from ijepa.errors import IjepaError
from ijepa.files import naming
from ijepa.text import did_you_mean

EVALUATION = "evaluation"  # in place of a split's name, see `ShardSet.named_split`
BAD = "bad.jsonl"  # images left out, if any: key, path, reason
EVERY = slice(None)
OPEN_TARS = 256  # at most, in one reader; the usual limit of a process is 1024 files

Numbers = list[int] | Ints | slice
Transform = Callable[[Any], Any]  # such as those of torchvision


class Sample(NamedTuple):
    """One sample, the image still encoded; a label of -1 is not known."""

    key: str
    image: bytes
    labels: dict[str, int]
    fault: str = ""  # why a streamed sample has no image; empty if it has one


@dataclass(frozen=True)
class ShardSet:
    """An opened shard set."""

    folder: Path
    splits: dict[str, SplitIndex]
    """The splits by name."""
    source: str
    """What the user sharded."""
    fingerprint: str
    """Fingerprint of the contents: splits, labels and every byte of the shards."""
    pixels: PixelStats | None
    """Channels, type, mean and std of images that are not 8-bit RGB; None of those that are."""

    def check_channels(self, channels: int, name: str) -> None:
        """Raise an `IjepaError` if images have others than the `channels` that `name` takes."""
        found = self.pixels.channels if self.pixels else 3
        if channels != found:
            raise IjepaError(
                f"{name} takes images of {channels} channels; {self.folder} has {found}."
            )

    def __repr__(self) -> str:
        splits = ", ".join(f"{name} {one.samples:,}" for name, one in self.splits.items())
        return f"ShardSet('{self.folder}': {splits}; made from {self.source})"

    def split(
        self, name: str, transform: Transform | None = None, *, label: str | None = None
    ) -> "SplitReader":
        """Open one split, a map-style data set for PyTorch.

        Args:
            name: of the split.
            transform: what makes of an image what the data set gives, as in torchvision.
            label: give the class number of this label with each image, as torchvision's
                ImageFolder, in place of all labels by name.

        Raises:
            IjepaError: there is no such split or label.
        """
        index = split_of(self.splits, name, self.folder)
        return SplitReader(self.folder, name, index, transform, label)

    def named_split(self, name: str, train: str = "train") -> str:
        """Turn `evaluation` into the split to score on: val, else test, else the only other one.

        Any other name, or a split that is really called so, is returned as it is; `train`, the
        split to train on, is never the answer. An `IjepaError` if there is none, or several.
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

        An `IjepaError` names the first of `splits` (see `named_split`) that is missing or has one
        image only, or the first of `labels` that one of them lacks.
        """
        for split in (self.split(self.named_split(name)) for name in splits):
            if len(split) < 2:
                raise IjepaError(
                    f"{self.folder}: split {split.name} has {len(split)} image; scores and "
                    f"pictures need two or more."
                )
            for label in labels:
                if label not in split.label_names:
                    known = ", ".join(split.label_names) or "none"
                    raise IjepaError(
                        f"{self.folder}: images of {split.name} have no label {label!r} (labels: "
                        f"{known}), so nothing can be scored on it; `ijepa pretrain` needs none."
                    )


class SplitReader:
    """Samples of a split by number, a map-style data set for PyTorch's DataLoader.

    May be pickled, forked and read from several threads. An item is (image, labels): a PIL image in
    RGB, or what `transform` makes of it, and the class number by label, -1 where it is not known;
    with `label`, the class number of that label alone. Images that are not 8-bit RGB are arrays of
    (height, width, channels) instead, in their stored depth.
    """

    def __init__(
        self,
        folder: Path,
        name: str,
        index: SplitIndex,
        transform: Transform | None = None,
        label: str | None = None,
    ) -> None:
        self.folder, self.name, self.index = folder, name, index
        self.transform, self.label = transform, label
        if label is not None:
            self.refuse_unknown(label)
        self._checked = bytearray(len(self))  # is the image of a sample undamaged?
        paths = [folder / shard.name for shard in index.shards]
        self._tar = lru_cache(OPEN_TARS)(lambda shard: _Tar(paths[shard]))

    def __reduce__(self) -> tuple[Any, ...]:
        return SplitReader, (self.folder, self.name, self.index, self.transform, self.label)

    def __len__(self) -> int:
        return self.index.samples

    def __getitem__(self, number: int) -> tuple[Any, Any]:
        number = range(len(self))[number]  # counted as in a list
        content = self.read_image(number)
        image: Any = decode_image(content)
        image = image if content.startswith(NPY) else Image.fromarray(image)
        labels = self.read_labels(number)
        image = self.transform(image) if self.transform else image
        return image, labels[self.label] if self.label is not None else labels

    def __repr__(self) -> str:
        known = [f"{name} ({len(names):,} classes)" for name, names in self.label_names.items()]
        return (
            f"SplitReader('{self.folder}', {self.name!r}: {len(self):,} images, labels: "
            f"{', '.join(known) or 'none'})"
        )

    @property
    def classes(self) -> list[str]:
        """Names of classes 0, 1, ... of `label`, or where none was named of the only one."""
        return self.label_names[self._one_label]

    @property
    def class_to_idx(self) -> dict[str, int]:
        """Class numbers by name, as torchvision has them."""
        return class_numbers(self.classes)

    @property
    def targets(self) -> list[int]:
        """(len,) class numbers of all samples, as torchvision has them; -1 is not known."""
        targets: list[int] = self.labels(self._one_label).tolist()
        return targets

    @property
    def _one_label(self) -> str:
        if self.label is None and len(self.label_names) != 1:
            there = ", ".join(self.label_names) or "none"
            raise IjepaError(
                f"{self.folder}: images of {self.name} have several labels or none ({there}); "
                f"name one, as in split({self.name!r}, label='class')."
            )
        return self.label or next(iter(self.label_names))

    def refuse_unknown(self, label: str) -> None:
        """Raise an `IjepaError` that names the labels there are, if this is none of them."""
        if label not in self.label_names:
            near = did_you_mean(label, self.label_names)
            there = ", ".join(self.label_names) or "none"
            where = f"Split {self.name} of {self.folder}"
            raise IjepaError(f"{where} has no label {label!r}{near}; its labels are: {there}.")

    @property
    def label_names(self) -> dict[str, list[str]]:
        """Names of classes 0, 1, ... by label."""
        return self.index.labels

    def labels(self, name: str, numbers: Numbers = EVERY) -> Ints:
        """(n,) class numbers of one label, of some samples or of all; -1 is not known."""
        self.refuse_unknown(name)
        return self._rows[LABEL + name][numbers].astype(np.int64)

    def keys(self, numbers: Numbers = EVERY) -> list[str]:
        """(n,) keys of some samples, or of all."""
        return [key.decode() for key in self._rows["key"][numbers].tolist()]

    def image_ids(self, numbers: Numbers = EVERY) -> Array:
        """(n,) uint64, the first 64 bits of the SHA-256 of each image file."""
        ids: Array = self._rows["sha256"][numbers].astype(np.uint64)
        return ids

    def read_labels(self, number: int) -> dict[str, int]:
        """Class numbers of one sample by label."""
        row = self._rows[number]
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
        image = self._read(number, *self._rows[number].item()[:4], check=not self._checked[number])
        self._checked[number] = 1
        return image

    def read_map(self, number: int, name: str) -> Array:
        """The map of one dense label of a sample, see `decode_dense`; raises as `read_image`."""
        if name not in self.index.dense:
            known = ", ".join(self.index.dense) or "none"
            raise IjepaError(f"{self.folder}: no dense label {name!r}; expected one of: {known}.")
        if not 0 <= number < len(self):
            raise IndexError(f"sample {number} of {len(self)} in split {self.name}")
        columns = ("shard", *(f"{DENSE}{name} {one}" for one in ("offset", "bytes", "sha256")))
        place = (int(self._rows[number][column]) for column in columns)
        return decode_dense(self._read(number, *place), self.index.dense[name])

    def _read(
        self, number: int, shard: int, offset: int, size: int, sha256: int, *, check: bool = True
    ) -> bytes:
        """Bytes of a member of a sample that lie there."""
        shards = self.index.shards
        if not (shard < len(shards) and size <= shards[shard].bytes - offset):
            raise self._damaged_index()
        tar = self._tar(shard)
        with naming(tar.path):
            content = os.pread(tar.descriptor, size, offset)
        if len(content) < size:
            raise IjepaError(f"{tar.path} was cut short at byte {offset:,}; shard again.")
        if check and sha256_start(content) != sha256:
            raise IjepaError(
                f"{tar.path} is damaged at sample {number:,} of {self.name}; `ijepa shard --check "
                f"{self.folder}` names all damaged files. Copy them again, or shard again."
            )
        return content

    @cached_property
    def _rows(self) -> Rows:
        """The index, compared with its checksum."""
        rows = load_rows(self.folder, self.name, self.label_names, self.index.dense)
        if zlib.crc32(rows.data) != self.index.index_crc32:
            raise self._damaged_index()
        return rows

    def _damaged_index(self) -> IjepaError:
        path = rows_path(self.folder, self.name)
        return IjepaError(f"{path} is damaged; copy it again, or shard again.")


class _Tar:
    """An open file, closed when nobody refers to it: another thread may be inside `pread`."""

    def __init__(self, path: Path) -> None:
        self.path, self.descriptor = path, -1
        self.descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def __del__(self) -> None:
        if self.descriptor >= 0:
            os.close(self.descriptor)


def open_shards(folder: StrPath) -> ShardSet:
    """Open a shard set after checking that it is whole; reads no sample.

    Raises:
        IjepaError: not a shard set, of another schema, or a file is missing or of the wrong size.
    """
    folder = Path(folder)
    index = read_index(folder)
    return ShardSet(folder, index.splits, index.source, index.fingerprint, index.pixels)
