"""What all sources of images share: the source itself, its images, splits and labels."""

import contextlib
import io
import json
import re
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from ijepa.data.decode import DenseLabel
from ijepa.data.sources.names import SPLITS, UNKNOWN, check_split_name, class_name, class_numbers
from ijepa.errors import IjepaError
from ijepa.progress import Progress, silent

DEFAULT_SPLIT = "train"  # of a source that has no splits
MAX_CLASSES = 2**16  # of one label of a list; what has more is a number or a text of its own
FAULT = "fault"  # in the metadata of an item that counts as bad: why
INTEGER = re.compile(r"0|-?[1-9]\d{0,17}", re.ASCII)  # as Python writes it: 01 and 1 are texts
PROGRESS_EVERY = 16

Labels = Mapping[str, list[str]]  # the names of classes 0, 1, ... by label
Place = tuple[str, int, int]  # where bytes lie: a file, an image or an archive; offset; size


class Item(NamedTuple):
    """One image: where its bytes lie and what is known about it."""

    split: str
    name: str  # its path within the split, `airplane/0001.jpg`; the sample's key is made of it
    path: str  # its path within the source, `train/airplane/0001.jpg`
    file: str  # that holds its bytes, an image or an archive
    offset: int
    size_bytes: int
    labels: dict[str, int] = {}  # noqa: RUF012  # class numbers or `UNKNOWN`; nobody changes it
    metadata: dict[str, Any] = {}  # noqa: RUF012  # what else is worth keeping; JSON
    dense: dict[str, Place] = {}  # noqa: RUF012  # the map of each dense label


class Listing(NamedTuple):
    """What a source holds."""

    splits: Mapping[str, Labels]  # every split that there is, with the labels of its images
    items: Iterable[Item]  # in the order of the source; read once
    left_out: Counter[str]  # files and images by reason; complete once `items` is read to its end


class Request(NamedTuple):
    """How a source is to be read."""

    work: Path  # for intermediate files, which a later run finds again
    splits: tuple[str, ...] = ()  # to read; empty means all
    workers: int = 0
    progress: Progress = silent
    member: str | None = None  # which image of a sample, see `ShardConfig`
    arrays: bool = False  # whether `.npy` files are images

    def wanted(self, splits: Iterable[str]) -> set[str]:
        """Names of the splits to read, of those that there are; a usual name stands for another."""
        there = set(splits)
        return {
            one if one in there else SPLITS.get(one.lower(), one) for one in self.splits
        } or there


def no_members(where: str) -> IjepaError:
    """The error that says where `--member` has a meaning."""
    return IjepaError(
        f"--member chooses an image of WebDataset samples or a column of tables; {where} is "
        f"neither. Leave it out, or name webdataset:PATH or parquet:PATH if it is one."
    )


@dataclass(frozen=True)
class Source:
    """A data set that can be read image by image."""

    name: str  # in messages
    digest: Callable[[], str]  # changes when the source may have changed; reads no image
    find: Callable[[Request], Listing]  # images of other splits may be among those it lists
    where: Path | None = None  # the user's file or folder; None for rendered images
    has_members: bool = False  # may a sample hold several images, of which `--member` chooses one?
    dense: Mapping[str, DenseLabel] = field(default_factory=dict)  # what maps images have

    def read(self, request: Request) -> Listing:
        """List the images of the splits that are asked for; an `IjepaError` if one is missing."""
        if request.member and not self.has_members:
            raise no_members(self.name)
        splits, items, left_out = self.find(request)
        wanted = request.wanted(splits)
        if missing := sorted(wanted - splits.keys()):
            there = ", ".join(sorted(splits))
            raise IjepaError(f"{self.name} has no split {missing[0]!r}; its splits are {there}.")
        for split, labels in splits.items():
            check_split_name(split, self.name)
            odd = [one for one in labels if not one.strip() or "/" in one or not one.isprintable()]
            if odd:
                raise IjepaError(
                    f"{self.name} has a label called {odd[0]!r}; write printable text without '/'."
                )

        def chosen() -> Iterator[Item]:
            for item in items:
                if item.split in wanted:
                    yield item
                else:
                    left_out[f"images of the split {item.split}, which --split does not name"] += 1

        return Listing(splits, chosen(), left_out)


# An image, the values of its labels, and where they were read.
LabelledItem = tuple[Item, Mapping[str, object], str]


def number_labels(
    rows: Callable[[], Iterator[LabelledItem]], where: str
) -> tuple[set[str], dict[str, list[str]], Callable[[Iterable[LabelledItem]], Iterator[Item]]]:
    """Splits, names of the classes by label, and what numbers the labels of images.

    Integers are numbered in ascending order, texts in that of their characters; one value that is
    no plain integer, such as 01, makes all of them texts. None, an empty text and -1 mean that the
    class is not known.
    """
    splits: set[str] = set()
    texts: dict[str, set[str]] = {}
    for item, values, place in rows():
        splits.add(item.split)
        for label, value in values.items():
            known = texts.setdefault(label, set())
            if text := _label_text(value, f"{place}, {label}"):
                known.add(text)
            if len(known) > MAX_CLASSES:
                raise IjepaError(
                    f"{where}: {label} has more than {MAX_CLASSES:,} different values, which is "
                    f"no label; leave it out."
                )
    classes, numbers = {}, {}
    for label, label_texts in texts.items():
        are_integers = all(map(INTEGER.fullmatch, label_texts))
        classes[label] = sorted(label_texts, key=int if are_integers else None)
        numbers[label] = class_numbers(classes[label]) | {"": UNKNOWN}

    def numbered(valued: Iterable[LabelledItem]) -> Iterator[Item]:
        for item, values, place in valued:
            known = {k: of[_label_text(values.get(k), place)] for k, of in numbers.items()}
            yield item._replace(labels=known)

    return splits, classes, numbered


def _label_text(value: object, place: str) -> str:
    """The value as text, empty if it stands for none."""
    if isinstance(value, bool) or not isinstance(value, int | str | None):
        raise IjepaError(f"{place}: {value!r:.60} is not a label; write an integer or a text.")
    text = "" if value is None else class_name(str(value).strip())
    return "" if text == str(UNKNOWN) else text


# An image that is not a file yet: its split, name, path, bytes, labels and metadata, see `Item`,
# and the map of each dense label.
NewImage = tuple[str, str, str, bytes, dict[str, int], dict[str, Any], dict[str, bytes]]


def packed(
    images: Callable[[int], Generator[NewImage]],
    request: Request,
    task: str,
    total: int | None = None,
) -> Iterator[Item]:
    """Write images into one file, once, and list them in that order; goes on after a kill.

    `images` makes those from a number on; `task` and `total` are what `request.progress` hears.
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
            request.progress(task, len(kept), total)  # the pace is counted from here
            for done, image in enumerate(new, start=len(kept) + 1):
                split, name, path, content, labels, metadata, maps = image
                dense = {}
                for label, values in maps.items():  # the image ends what is written of an item
                    dense[label] = "", file.tell(), len(values)
                    file.write(values)
                place = "", file.tell(), len(content)
                item = Item(split, name, path, *place, labels, metadata, dense)
                file.write(content)
                lines.write(json.dumps(item) + "\n")
                if done % PROGRESS_EVERY == 0 or done == total:
                    request.progress(task, done, total)
        half.replace(listing)
    with listing.open() as lines:
        for item in (Item(*json.loads(line)) for line in lines):
            dense = {label: (str(pack), *place[1:]) for label, place in item.dense.items()}
            yield item._replace(file=str(pack), dense=dense)


def as_png(image: Image.Image) -> bytes:
    """The same pixels as a PNG file."""
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()
