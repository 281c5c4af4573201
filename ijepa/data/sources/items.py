"""What a source says about each image, and what is common to all sources."""

import json
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any, NamedTuple

from PIL import Image

from ijepa.config.values import is_file_name
from ijepa.errors import IjepaError

UNKNOWN = -1  # the class number of an image whose class is not known
MAX_CLASSES = 2**16  # of one label of a list; what has more is a number or a text of its own
INTEGER = re.compile(r"[+-]?\d{1,18}", re.ASCII)
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

Labels = Mapping[str, list[str]]  # the names of classes 0, 1, ... by label


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
    labels: dict[str, int] = {}  # noqa: RUF012  # nobody changes it
    metadata: dict[str, Any] = {}  # noqa: RUF012


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


def class_name(text: str) -> str:
    """The name in Unicode's composed form (NFC), whichever form a file system wrote."""
    return unicodedata.normalize("NFC", text)


class LabelColumn:
    """The values of one label: collect them all, then number them.

    Integers are numbered in ascending order, texts in that of their characters. None, an empty text
    and -1 mean that the class is not known.
    """

    def __init__(self, name: str, where: str) -> None:
        """Begin with no value; `name` and `where` are for errors."""
        self._name, self._where = name, where
        self._texts: set[str] = set()
        self._numbers: dict[str, int] | None = None
        self._only_integers = True

    def add(self, value: object, place: str) -> None:
        """Collect a value that stands at `place`.

        Raises:
            IjepaError: it is neither an integer nor a text, or there are too many different ones.
        """
        text = _label_text(value, place)
        if text is None or text in self._texts:
            return
        self._texts.add(text)
        self._only_integers = self._only_integers and INTEGER.fullmatch(text) is not None
        if len(self._texts) > MAX_CLASSES:
            raise IjepaError(
                f"{self._where}: {self._name} has more than {MAX_CLASSES:,} different values, "
                f"which is no label; leave it out."
            )

    def names(self) -> list[str]:
        """Names of the classes of all values so far."""
        if self._only_integers:
            return [str(value) for value in sorted(set(map(int, self._texts)))]
        return sorted(self._texts)

    def number(self, value: object) -> int:
        """Class number of a value that was added; `UNKNOWN` if there is none."""
        if self._numbers is None:
            self._numbers = {name: number for number, name in enumerate(self.names())}
        text = _label_text(value, self._where)
        if text is None:
            return UNKNOWN
        return self._numbers[str(int(text)) if self._only_integers else text]


def _label_text(value: object, place: str) -> str | None:
    if isinstance(value, bool) or not isinstance(value, int | str | None):
        raise IjepaError(f"{place}: {value!r:.60} is not a label; write an integer or a text.")
    if isinstance(value, int) and abs(value) >= 10**18:
        raise IjepaError(f"{place}: an integer of more than 18 digits is not a label.")
    text = class_name(str(value).strip()) if value is not None else ""
    return None if text in ("", str(UNKNOWN)) else text


class Packed(NamedTuple):
    """One image that is to be packed; `Item` says what the fields mean."""

    split: str
    name: str
    path: str
    image: Image.Image
    labels: dict[str, int]


def write_pack(images: Iterator[Packed], listing: Path) -> None:
    """Write all images as PNG into one file, and where each begins into `listing`.

    Whole or not at all: the listing gets its name last.
    """
    half = listing.with_suffix(".tmp")
    with _pack(listing).open("wb") as pack, half.open("w") as lines:
        for image in images:
            lines.write(json.dumps(_written(image, pack)) + "\n")
    half.replace(listing)


def read_pack(listing: Path, splits: set[str]) -> Iterator[Item]:
    """The images of some splits, in the order in which they were written."""
    pack = str(_pack(listing))
    with listing.open() as lines:
        for line in lines:
            image = json.loads(line)
            if image["split"] in splits:
                place = (image["path"], pack, image["offset"], image["bytes"])
                yield Item(image["split"], image["name"], *place, image["labels"], {})


def _written(image: Packed, pack: IO[bytes]) -> dict[str, Any]:
    offset = pack.tell()
    image.image.save(pack, "PNG")
    facts: dict[str, Any] = image._asdict() | {"offset": offset, "bytes": pack.tell() - offset}
    del facts["image"]
    return facts


def _pack(listing: Path) -> Path:
    return listing.with_suffix(".pack")
