"""What a source says about each image, and what is common to all sources."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from ijepa.config.values import is_file_name
from ijepa.data.sources.labels import UNKNOWN, Label, named
from ijepa.errors import IjepaError

__all__ = ["UNKNOWN", "Label", "named"]

PASSED_ON = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp")
MADE_PNG = (".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
IMAGE_SUFFIXES = frozenset(PASSED_ON + MADE_PNG)
SPLITS = {  # the usual names, and what we call them
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "test": "test",
    "testing": "test",
    "unlabeled": "unlabeled",
    "unlabelled": "unlabeled",
}
# `Training`, `train_set`, `train.X1`, `val2017`, `seg_train`
SPLIT_NAME = re.compile(
    r"(?P<before>(?:[a-z0-9]+[-_. ])*)(?P<split>" + "|".join(SPLITS) + r")"
    r"(?:[-_. ]?(?:set|images?|imgs?|data|split|folder|x\d*|part[-_. ]?\d*|\d+))*",
    re.ASCII | re.IGNORECASE,
)
DEFAULT_SPLIT = "train"  # of a source that has no splits


Labels = Mapping[str, Label]


class Item(NamedTuple):
    """One image: where its bytes lie and what is known about it.

    Attributes:
        split: which split it belongs to.
        name: its path within the split, `airplane/0001.jpg`; the sample's key is made of it.
        path: its path within the source, `train/airplane/0001.jpg`.
        file: the file, or the archive, that holds its bytes.
        offset: where in that file they begin.
        size_bytes: how many they are.
        labels: class numbers by label, `UNKNOWN` where an image lacks one that others have; empty
            if there is no label.
        metadata: what else is worth keeping; JSON.
    """

    split: str
    name: str
    path: str
    file: str
    offset: int
    size_bytes: int
    labels: Mapping[str, int]
    metadata: Mapping[str, Any]


class Contents(NamedTuple):
    """All that a source holds.

    Attributes:
        splits: every split that there is, with the labels of its images.
        items: the images of the splits that were asked for, in the order of the source.
        left_out: numbers of files and images that do not come along, by reason; complete once
            `items` is read to its end.
    """

    splits: Mapping[str, Labels]
    items: Iterator[Item]
    left_out: Counter[str]


def is_image(path: str) -> bool:
    """Does the name look like an image's?"""
    return path[path.rfind(".") :].lower() in IMAGE_SUFFIXES


def kind_of(path: str) -> str:
    """What to count a file as that does not come along: `.xml files`."""
    base = path.rpartition("/")[2]
    suffix = base[base.rfind(".") :].lower() if "." in base else ""
    return f"{suffix} files" if suffix else "files without suffix"


def split_folders(names: Iterable[str]) -> dict[str, str]:
    """Which of these folders are splits by their names, and what the splits are called.

    Case, part numbers and words such as `set` or `images` do not matter. A word before the split,
    as in `seg_train`, must be the same before at least two splits: a class may be called
    `steam_train`. Folders of different words for the same split, `val` and `dev`, are different
    splits and keep their names.
    """
    matches = {name: match for name in names if (match := SPLIT_NAME.fullmatch(name))}
    splits: dict[str, set[str]] = {}
    words: dict[str, set[tuple[str, str]]] = {}
    for match in matches.values():
        before, word = match["before"].lower(), match["split"].lower()
        splits.setdefault(before, set()).add(SPLITS[word])
    matches = {
        n: m for n, m in matches.items() if not m["before"] or len(splits[m["before"].lower()]) > 1
    }
    for match in matches.values():
        before, word = match["before"].lower(), match["split"].lower()
        words.setdefault(SPLITS[word], set()).add((before, word))
    return {
        name: split if len(words[split]) == 1 else f"{match['before']}{match['split']}".lower()
        for name, match in matches.items()
        for split in [SPLITS[match["split"].lower()]]
    }


def chosen_splits(there: Mapping[str, Labels], asked: tuple[str, ...], where: str) -> set[str]:
    """The splits to read: those asked for, also by another usual name of theirs, or all.

    Raises:
        IjepaError: a split was asked for that the source does not have.
    """
    asked = tuple(name if name in there else SPLITS.get(name.lower(), name) for name in asked)
    missing = [name for name in asked if name not in there]
    if missing:
        raise IjepaError(
            f"{where} has no split {missing[0]!r}; its splits are {', '.join(sorted(there))}."
        )
    return set(asked) or set(there)


def check_split_name(split: str, where: str) -> str:
    """Return `split` if it can be part of a file name.

    Raises:
        IjepaError: it cannot.
    """
    if not is_file_name(split):
        raise IjepaError(
            f"{where} names a split {split!r}; a split is letters, digits, '-', '_' and '.'."
        )
    return split
