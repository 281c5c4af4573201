"""What all sources of images share: the source itself, its items, splits and labels."""

import contextlib
import io
import json
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from ijepa.config.values import is_file_name
from ijepa.errors import IjepaError
from ijepa.progress import Progress, silent

LABEL = "class"  # the name of a label that has no other
UNKNOWN = -1  # the class number of an image whose class is not known
MAX_CLASSES = 2**16  # of one label of a list; what has more is a number or a text of its own
INTEGER = re.compile(r"[+-]?\d{1,18}", re.ASCII)
REPORT_IMAGES = 16
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
        file: the file or archive that holds its bytes.
        offset: where they begin in that file.
        size_bytes: their number.
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
    metadata: dict[str, Any] = {}  # noqa: RUF012  # nor this


class Contents(NamedTuple):
    """All that a source holds.

    Attributes:
        splits: every split that there is, with the labels of its images.
        items: the images of the splits that were asked for, in the order of the source.
        left_out: number of files and images that are left out, by reason; complete after `items`
            was read to its end.
    """

    splits: Mapping[str, Labels]
    items: Iterator[Item]
    left_out: Counter[str]


class Request(NamedTuple):
    """How a source is to be read.

    Attributes:
        work: a folder for intermediate files, which a later run finds again.
        splits: the splits to read; empty means all.
        workers: number of processes to use.
        progress: called as work is done.
    """

    work: Path
    splits: tuple[str, ...] = ()
    workers: int = 0
    progress: Progress = silent


# What a source finds: its splits, their images for a choice of splits (it may give others, too),
# and what it leaves out.
Found = tuple[Mapping[str, Labels], Callable[[AbstractSet[str]], Iterable[Item]], Counter[str]]


@dataclass(frozen=True)
class Source:
    """A data set that can be read image by image.

    Attributes:
        name: its name in messages.
        digest: returns a hash that changes when the source may have changed; reads no image.
        find: lists splits and images.
        where: the user's file or folder; None for rendered images.
    """

    name: str
    digest: Callable[[], str]
    find: Callable[[Request], Found]
    where: Path | None = None

    def read(self, request: Request) -> Contents:
        """List the images of the splits that are asked for.

        Raises:
            IjepaError: what is there cannot be understood, or lacks a split.
        """
        splits, items, left_out = self.find(request)
        # A split may be asked for by another usual name of its own.
        asked = [one if one in splits else SPLITS.get(one.lower(), one) for one in request.splits]
        missing = [split for split in asked if split not in splits]
        if missing:
            raise IjepaError(
                f"{self.name} has no split {missing[0]!r}; its splits are "
                f"{', '.join(sorted(splits))}."
            )
        for split, labels in splits.items():
            check_split_name(split, self.name)
            odd = [one for one in labels if not one.strip() or "/" in one or not one.isprintable()]
            if odd:
                raise IjepaError(
                    f"{self.name} has a label called {odd[0]!r}; a label's name is printable and "
                    f"without '/'."
                )
        return Contents(splits, _chosen(items, set(asked) or set(splits), left_out), left_out)


def _chosen(
    items: Callable[[AbstractSet[str]], Iterable[Item]],
    splits: AbstractSet[str],
    left_out: Counter[str],
) -> Iterator[Item]:
    for item in items(splits):
        if item.split in splits:
            yield item
        else:
            left_out[f"images of the split {item.split}, which --split does not name"] += 1


def check_split_name(split: str, where: str) -> str:
    """Return `split` if it can be part of a file name."""
    if not is_file_name(split):
        raise IjepaError(
            f"{where} names a split {split!r}; a split is letters, digits, '-', '_' and '.'."
        )
    return split


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
    found = {}  # (word before, word of the split, its usual name) by folder
    for name in names:
        if match := SPLIT_NAME.fullmatch(name):
            before, word = match["before"].lower(), match["split"].lower()
            found[name] = before, word, SPLITS[word]
    several = {
        before
        for before, _, _ in found.values()
        if not before or len({one[2] for one in found.values() if one[0] == before}) > 1
    }
    found = {name: one for name, one in found.items() if one[0] in several}
    words = {(split, before, word) for before, word, split in found.values()}
    is_unique = Counter(split for split, _, _ in words)
    return {
        name: split if is_unique[split] == 1 else f"{before}{word}"
        for name, (before, word, split) in found.items()
    }


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
        self._numbers: dict[str, int] = {}
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
        self._numbers = self._numbers or {name: place for place, name in enumerate(self.names())}
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


# Split, name, path, bytes, labels and metadata, see `Item`, of an image that is no file yet.
Packed = tuple[str, str, str, bytes, dict[str, int], dict[str, Any]]


def packed(
    images: Callable[[int], Generator[Packed]],
    request: Request,
    task: str,
    total: int | None = None,
) -> Iterator[Item]:
    """Write images into one file, once, and list them in that order; goes on after a kill.

    Args:
        images: those from a number on.
        request: `work` keeps the files, `progress` hears of them.
        task: what `progress` calls the work.
        total: how many images there are, if that is known.
    """
    listing, pack = request.work / "packed.jsonl", request.work / "packed.images"
    if not listing.exists():
        half = listing.with_suffix(".part")
        pack.touch()
        written = half.read_text().splitlines(keepends=True) if half.exists() else []
        kept = [line for line in written if line.endswith("\n")]
        while kept and sum(json.loads(kept[-1])[4:6]) > pack.stat().st_size:
            kept.pop()  # listed, but not written
        made = contextlib.closing(images(len(kept)))
        with pack.open("r+b") as file, half.open("w") as lines, made as new:
            file.seek(sum(json.loads(kept[-1])[4:6]) if kept else 0)
            file.truncate()
            lines.writelines(kept)
            for done, image in enumerate(new, start=len(kept) + 1):
                split, name, path, content, *facts = image
                item = Item(split, name, path, "", file.tell(), len(content), *facts)
                file.write(content)
                lines.write(json.dumps(item) + "\n")
                if done % REPORT_IMAGES == 0 or done == total:
                    request.progress(task, done, total)
        half.replace(listing)
    with listing.open() as lines:
        yield from (Item(*json.loads(line))._replace(file=str(pack)) for line in lines)


def as_png(image: Image.Image) -> bytes:
    """The same pixels as a PNG file."""
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()
