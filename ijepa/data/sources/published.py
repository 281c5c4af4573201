"""Data sets whose images lie in folders, and whose labels and splits stand in files beside them."""

import csv
import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from functools import partial
from os.path import normpath
from pathlib import Path
from typing import Any, NamedTuple

from ijepa.data.sources.folders import read_folders
from ijepa.data.sources.items import LABEL, Found, Item, Request, Source, is_image, kind_of
from ijepa.data.sources.trees import open_tree, tree_digest, unlisted, walk
from ijepa.errors import IjepaError
from ijepa.files import parse_json

DEVKIT = "ILSVRC2012_devkit_t12/data"
TRUTH, META = "ILSVRC2012_validation_ground_truth.txt", "meta.mat"
KAGGLE = "LOC_val_solution.csv"
IMAGES = ("ILSVRC/Data/CLS-LOC", ".")  # of Kaggle, and of everyone else
NUM_CLASSES = 1000


class Listing(NamedTuple):
    """What the files of a data set say.

    Attributes:
        files: that were read, or are going to be.
        classes: their names.
        splits: how to list the images of each: path within the data set, class number, and path
            below the folder of all images.
    """

    files: list[Path]
    classes: list[str]
    splits: Mapping[str, Callable[[], Iterator[tuple[str, int, str]]]]


def published_lists(where: Path, parse: Callable[[Path], Listing]) -> Source:
    """A folder, understood by its lists; images in their order."""

    def digest() -> str:
        total = hashlib.sha256(tree_digest(where).encode())
        for file in parse(where).files:
            total.update(file.read_bytes())
        return total.hexdigest()

    def find(_: Request) -> Found:
        listing = parse(where)
        labels = {split: {LABEL: listing.classes} for split in listing.splits}
        left_out = Counter[str]()

        def items(splits: AbstractSet[str]) -> Iterator[Item]:
            for split in listing.splits:
                if split in splits:
                    yield from _items(where, split, listing)
            every = {normpath(path) for listed in listing.splits.values() for path, *_ in listed()}
            left_out.update(unlisted((entry.path for entry in walk(where)), every))

        return labels, items, left_out

    return Source(str(where), digest, find, where)


def _items(where: Path, split: str, listing: Listing) -> Iterator[Item]:
    for path, label, name in listing.splits[split]():
        if not 0 <= label < len(listing.classes):
            raise IjepaError(
                f"{where}: {path} is of class {label}, but there are {len(listing.classes):,} "
                f"classes."
            )
        if not (where / path).is_file():
            raise IjepaError(
                f"{where} has no {path}, which its lists name; unpack all of its images there."
            )
        size = (where / path).stat().st_size
        yield Item(split, name, path, str(where / path), 0, size, {LABEL: label})


def imagenet(where: Path) -> Source:
    """ImageNet-1K: `train/` in folders called by WordNet numbers, `val/` in such folders or flat.

    Classes are numbered in the sorted order of these names, as everywhere, not by the
    `ILSVRC2012_ID` of the development kit.
    """

    def find(asked: Request) -> Found:
        root = next((where / name for name in IMAGES if (where / name / "train").is_dir()), None)
        if root is None or not any(is_image(path.name) for path in (root / "val").glob("*")):
            return read_folders(open_tree(root or where, asked.work, asked.progress), asked)
        classes = sorted(entry.name for entry in (root / "train").iterdir() if entry.is_dir())
        numbers = {wnid: number for number, wnid in enumerate(classes)}
        truth, left_out = _truth(where, numbers), Counter[str]()

        def items(splits: AbstractSet[str]) -> Iterator[Item]:
            for split, entry in (
                (one, entry) for one in sorted(splits) for entry in walk(root / one)
            ):
                path = f"{split}/{entry.path}"
                flat = truth.get(Path(path).stem, "")
                wnid = entry.path.partition("/")[0] if split == "train" else flat
                if not is_image(path):
                    left_out[kind_of(path)] += 1
                elif wnid in numbers:
                    place = (path, entry.file, 0, entry.size_bytes)
                    yield Item(split, entry.path, *place, {LABEL: numbers[wnid]})
                else:
                    raise IjepaError(f"{root / path} is not among the images whose class is known.")

        return {split: {LABEL: classes} for split in ("train", "val")}, items, left_out

    return Source(str(where), lambda: tree_digest(where), find, where)


def _truth(where: Path, classes: Mapping[str, int]) -> dict[str, str]:
    """Class by name of the validation image, without suffix."""
    if (where / KAGGLE).is_file():
        truth = _kaggle(where / KAGGLE)
    elif (where / DEVKIT / TRUTH).is_file():
        truth = _devkit(where / DEVKIT)
    else:
        raise IjepaError(
            f"{where}/val holds images but no class folders; put {DEVKIT}/{TRUTH} with {META}, or "
            f"Kaggle's {KAGGLE}, into {where}."
        )
    if unknown := sorted(set(truth.values()) - classes.keys()):
        raise IjepaError(
            f"{where}: {len(unknown):,} classes of val have no folder in train, such as "
            f"{unknown[0]}."
        )
    return truth


def _devkit(folder: Path) -> dict[str, str]:
    """Line n of the ground truth is the ILSVRC2012_ID of validation image n."""
    path = folder / META
    if not path.is_file():
        raise IjepaError(f"There is no {path}; it says which class each number is.")
    from scipy.io import loadmat  # slow to import, and no other data set needs it

    synsets = loadmat(path, squeeze_me=True)["synsets"]
    wnids = {str(row["ILSVRC2012_ID"]): str(row["WNID"]) for row in synsets.reshape(-1)}
    truth = {}
    for number, line in enumerate((folder / TRUTH).read_text().split(), 1):
        if line not in wnids or int(line) > NUM_CLASSES:
            raise IjepaError(f"{folder / TRUTH}, line {number}: {line!r} is no class of {META}.")
        truth[f"ILSVRC2012_val_{number:08d}"] = wnids[line]
    return truth


def _kaggle(path: Path) -> dict[str, str]:
    """`ImageId,PredictionString`; the class is the first word of the second."""
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    if not rows or not {"ImageId", "PredictionString"} <= set(rows[0]):
        raise IjepaError(f"{path} has no columns ImageId and PredictionString; download it again.")
    return {row["ImageId"]: row["PredictionString"].split()[0] for row in rows}


def places205(where: Path) -> Listing:
    """Places205: `train_places205.csv`, `val_places205.csv`, images of 256 pixels.

    Source: http://places.csail.mit.edu/downloadData.html.
    """
    lists = _folder(where, ("trainvalsplit_places205", "."), "train_places205.csv")
    images = _images(where, "data/vision/torralba/deeplearning/images256", "images256")
    files = {split: lists / f"{split}_places205.csv" for split in ("train", "val")}
    classes: dict[int, str] = {}
    for path, label in _numbered(files["train"]):
        classes.setdefault(label, path.rpartition("/")[0].partition("/")[2])
    splits = {split: partial(_below, images, file) for split, file in files.items()}
    return Listing([*files.values()], _in_order(classes, files["train"]), splits)


def places365(where: Path) -> Listing:
    """Places365-Standard: `places365_train_standard.txt`, `places365_val.txt`, and the categories.

    Images are those of 256 pixels or the large ones, under the names of the archives or of
    torchvision, torchvision/datasets/places365.py.
    """
    lists = _folder(where, (".", "filelist_places365-standard"), "places365_train_standard.txt")
    files = {"train": lists / "places365_train_standard.txt", "val": lists / "places365_val.txt"}
    categories = lists / "categories_places365.txt"
    small = ("data_256_standard", "data_256")
    train = _images(where, *small, "data_large_standard", "data_large")
    roots = {"train": train, "val": _images(where, "val_256" if train in small else "val_large")}
    names = {label: path.strip("/").partition("/")[2] for path, label in _numbered(categories)}
    splits = {split: partial(_below, roots[split], file) for split, file in files.items()}
    return Listing([*files.values(), categories], _in_order(names, categories), splits)


def inat18(where: Path) -> Listing:
    """INaturalist 2018: `train2018.json`, `val2018.json`, images in `train_val2018/`.

    Source: visipedia/inat_comp 2018.
    """
    files = {split: where / f"{split}2018.json" for split in ("train", "val")}
    categories = _json(files["train"])["categories"]
    names = {category["id"]: category["name"] for category in categories}
    splits = {split: partial(_annotated, file) for split, file in files.items()}
    return Listing([*files.values()], _in_order(names, files["train"]), splits)


def _annotated(file: Path) -> Iterator[tuple[str, int, str]]:
    body = _json(file)
    paths = {image["id"]: image["file_name"] for image in body["images"]}
    for annotation in body["annotations"]:
        if annotation["image_id"] not in paths:
            raise IjepaError(f"{file} labels an image {annotation['image_id']} that it lacks.")
        path = paths[annotation["image_id"]]
        yield path, annotation["category_id"], path.removeprefix("train_val2018/")


def _json(file: Path) -> dict[str, Any]:
    try:
        body: dict[str, Any] = parse_json(_text(file))
    except ValueError as error:
        raise IjepaError(f"{file} is not JSON ({error}); download it again.") from error
    missing = [key for key in ("images", "annotations", "categories") if key not in body]
    if missing:
        raise IjepaError(f"{file} has no {missing[0]!r}; it is not a list of iNaturalist's.")
    return body


def _numbered(file: Path) -> Iterator[tuple[str, int]]:
    """Lines `path number`."""
    for number, line in enumerate(_text(file).splitlines(), 1):
        path, _, label = line.strip().rpartition(" ")
        if not path or not label.isdigit():
            raise IjepaError(f"{file}, line {number}: {line!r} is not a path and a class number.")
        yield path, int(label)


def _below(root: str, file: Path) -> Iterator[tuple[str, int, str]]:
    for path, label in _numbered(file):
        yield f"{root}/{path.lstrip('/')}", label, path.lstrip("/")


def _in_order(classes: Mapping[int, str], file: Path) -> list[str]:
    if sorted(classes) != list(range(len(classes))):
        raise IjepaError(f"{file} does not number its {len(classes):,} classes from 0 on.")
    return [classes[number] for number in range(len(classes))]


def _folder(where: Path, candidates: tuple[str, ...], file: str) -> Path:
    for name in candidates:
        if (where / name / file).is_file():
            return where / name
    raise IjepaError(f"{where} has no {file}, there or in {candidates[0]}/.")


def _images(where: Path, *candidates: str) -> str:
    for name in candidates:
        if (where / name).is_dir():
            return name
    raise IjepaError(f"{where} has no folder of images; expected {' or '.join(candidates)}.")


def _text(file: Path) -> str:
    try:
        return file.read_text()
    except FileNotFoundError as error:
        raise IjepaError(f"There is no {file}; it says what the images are.") from error
