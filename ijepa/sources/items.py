"""What a source says about each image, and what is common to all sources."""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from ijepa.config.values import is_file_name
from ijepa.errors import IjepaError

PASSED_ON = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp")
MADE_PNG = (".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
IMAGE_SUFFIXES = frozenset(PASSED_ON + MADE_PNG)
SPLIT_NAMES = frozenset(
    ("train", "training", "val", "valid", "validation", "dev", "test", "testing", "unlabeled")
)
DEFAULT_SPLIT = "train"  # of a source that has no splits


class Label(NamedTuple):
    """The classes of one label; without names they are plain integers."""

    num_classes: int
    names: list[str] | None = None


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
        labels: class numbers by label; empty if nothing is known.
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
    """

    splits: Mapping[str, Labels]
    items: Iterator[Item]


def is_image(path: str) -> bool:
    """Does the name look like an image's?"""
    return path[path.rfind(".") :].lower() in IMAGE_SUFFIXES


def chosen_splits(there: Mapping[str, Labels], asked: tuple[str, ...], where: str) -> set[str]:
    """The splits to read: those asked for, or all.

    Raises:
        IjepaError: a split was asked for that the source does not have.
    """
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


def named(names: list[str]) -> Label:
    """A label whose classes have these names, numbered from 0."""
    return Label(len(names), names)
