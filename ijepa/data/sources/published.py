"""Data sets whose images lie in folders, and whose labels and splits stand in files beside them."""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from ijepa.data.sources.items import Contents, Item, chosen_splits
from ijepa.data.sources.trees import Folder
from ijepa.errors import IjepaError
from ijepa.progress import Progress
from ijepa.stage import parse_json

LABEL = "class"


class Listed(NamedTuple):
    """One image of a list.

    Attributes:
        path: within the data set.
        label: its class number.
        name: its path below the folder of all images.
    """

    path: str
    label: int
    name: str


class Listing(NamedTuple):
    """What the files of a data set say.

    Attributes:
        files: that were read, or are going to be.
        classes: their names.
        splits: how to list the images of each.
    """

    files: list[Path]
    classes: list[str]
    splits: Mapping[str, Callable[[], Iterator[Listed]]]


@dataclass(frozen=True)
class PublishedLists:
    """A folder, understood by its lists."""

    where: Path
    parse: Callable[[Path], Listing]

    def digest(self) -> str:
        """From the bytes of the lists, and the names, sizes and times of the images."""
        total = hashlib.sha256(Folder(self.where).digest().encode())
        for file in self.parse(self.where).files:
            total.update(file.read_bytes())
        return total.hexdigest()

    def read(self, _: Path, splits: tuple[str, ...], __: int, ___: Progress) -> Contents:
        """Images in the order of the lists."""
        listing = self.parse(self.where)
        labels = {split: {LABEL: listing.classes} for split in listing.splits}
        chosen = chosen_splits(labels, splits, str(self.where))
        wanted = [split for split in listing.splits if split in chosen]
        return Contents(labels, _items(self.where, listing, wanted), Counter())


def _items(where: Path, listing: Listing, splits: list[str]) -> Iterator[Item]:
    for split in splits:
        for path, label, name in listing.splits[split]():
            if not 0 <= label < len(listing.classes):
                raise IjepaError(
                    f"{where}: {path} is of class {label}, but there are "
                    f"{len(listing.classes):,} classes."
                )
            file = where / path
            try:
                size = file.stat().st_size
            except FileNotFoundError as error:
                raise IjepaError(
                    f"{where} has no {path}, which its lists name; unpack all of its images there."
                ) from error
            yield Item(split, name, path, str(file), 0, size, {LABEL: label}, {})


def places205(where: Path) -> Listing:
    """Places205: `train_places205.csv`, `val_places205.csv`, images of 256 pixels.

    Source: http://places.csail.mit.edu/downloadData.html.
    """
    lists = _folder(where, ("trainvalsplit_places205", "."), "train_places205.csv")
    images = _images(where, ("data/vision/torralba/deeplearning/images256", "images256"))
    files = {split: lists / f"{split}_places205.csv" for split in ("train", "val")}
    classes: dict[int, str] = {}
    for row in _numbered(files["train"]):
        classes.setdefault(row.label, row.path.rpartition("/")[0].partition("/")[2])
    return Listing(
        files=list(files.values()),
        classes=_in_order(classes, files["train"]),
        splits={split: partial(_below, images, file) for split, file in files.items()},
    )


def places365(where: Path) -> Listing:
    """Places365-Standard: `places365_train_standard.txt`, `places365_val.txt`, and the categories.

    Images are those of 256 pixels or the large ones, under the names of the archives or of
    torchvision, torchvision/datasets/places365.py.
    """
    lists = _folder(where, (".", "filelist_places365-standard"), "places365_train_standard.txt")
    files = {"train": lists / "places365_train_standard.txt", "val": lists / "places365_val.txt"}
    categories = lists / "categories_places365.txt"
    small = ("data_256_standard", "data_256")
    train = _images(where, (*small, "data_large_standard", "data_large"))
    val = _images(where, ("val_256",) if Path(train).name in small else ("val_large",))
    roots = {"train": train, "val": val}
    classes = {row.label: row.path.strip("/").partition("/")[2] for row in _numbered(categories)}
    return Listing(
        files=[*files.values(), categories],
        classes=_in_order(classes, categories),
        splits={split: partial(_below, roots[split], file) for split, file in files.items()},
    )


def inat18(where: Path) -> Listing:
    """INaturalist 2018: `train2018.json`, `val2018.json`, images in `train_val2018/`.

    Source: visipedia/inat_comp 2018.
    """
    files = {split: where / f"{split}2018.json" for split in ("train", "val")}
    categories = _json(files["train"])["categories"]
    names = {category["id"]: category["name"] for category in categories}
    return Listing(
        files=list(files.values()),
        classes=_in_order(names, files["train"]),
        splits={split: partial(_annotated, file) for split, file in files.items()},
    )


def _annotated(file: Path) -> Iterator[Listed]:
    body = _json(file)
    paths = {image["id"]: image["file_name"] for image in body["images"]}
    for annotation in body["annotations"]:
        if annotation["image_id"] not in paths:
            raise IjepaError(f"{file} labels an image {annotation['image_id']} that it lacks.")
        path = paths[annotation["image_id"]]
        yield Listed(path, annotation["category_id"], path.removeprefix("train_val2018/"))


def _json(file: Path) -> dict[str, Any]:
    try:
        body: dict[str, Any] = parse_json(_text(file))
    except ValueError as error:
        raise IjepaError(f"{file} is not JSON ({error}); download it again.") from error
    missing = [key for key in ("images", "annotations", "categories") if key not in body]
    if missing:
        raise IjepaError(f"{file} has no {missing[0]!r}; it is not a list of iNaturalist's.")
    return body


def _numbered(file: Path) -> Iterator[Listed]:
    """Lines `path number`."""
    for number, line in enumerate(_text(file).splitlines(), 1):
        path, _, label = line.strip().rpartition(" ")
        if not path or not label.isdigit():
            raise IjepaError(f"{file}, line {number}: {line!r} is not a path and a class number.")
        yield Listed(path, int(label), path.lstrip("/"))


def _below(root: str, file: Path) -> Iterator[Listed]:
    return (row._replace(path=f"{root}/{row.name}") for row in _numbered(file))


def _in_order(classes: Mapping[int, str], file: Path) -> list[str]:
    if sorted(classes) != list(range(len(classes))):
        raise IjepaError(f"{file} does not number its {len(classes):,} classes from 0 on.")
    return [classes[number] for number in range(len(classes))]


def _folder(where: Path, candidates: tuple[str, ...], file: str) -> Path:
    for name in candidates:
        if (where / name / file).is_file():
            return where / name
    raise IjepaError(f"{where} has no {file}, there or in {candidates[0]}/.")


def _images(where: Path, candidates: tuple[str, ...]) -> str:
    for name in candidates:
        if (where / name).is_dir():
            return name
    raise IjepaError(f"{where} has no folder of images; expected {' or '.join(candidates)}.")


def _text(file: Path) -> str:
    try:
        return file.read_text()
    except FileNotFoundError as error:
        raise IjepaError(f"There is no {file}; it says what the images are.") from error
