"""Images that a list names: the user's, or one that a published data set comes with."""

import csv
import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from pathlib import Path, PurePosixPath
from typing import Any

from ijepa.data.decode import BROKEN
from ijepa.data.sources.items import (
    DEFAULT_SPLIT,
    INTEGER,
    Item,
    Listing,
    Request,
    Source,
    number_labels,
)
from ijepa.data.sources.layouts import read_folders
from ijepa.data.sources.names import LABEL, check_split_name, class_numbers, is_image
from ijepa.data.sources.trees import Tree, digest_of, tree_digest, walk
from ijepa.errors import IjepaError
from ijepa.files import parse_json

DELIMITERS = {".csv": ",", ".tsv": "\t"}
LISTS = (*DELIMITERS, ".jsonl")
PATH, SPLIT = "path", "split"

DEVKIT = "ILSVRC2012_devkit_t12/data"
TRUTH, META = "ILSVRC2012_validation_ground_truth.txt", "meta.mat"
KAGGLE = "LOC_val_solution.csv"
IMAGES = ("ILSVRC/Data/CLS-LOC", ".")  # of Kaggle, and of everyone else
NUM_CLASSES = 1000


def listed_images(where: Path) -> Source:
    """Columns: `path` (relative to the list), perhaps `split`; any other column is a label.

    Classes are numbered in ascending order of integers, or of texts; an empty value, null or -1
    means that the class of an image is not known.
    """

    def digest() -> str:
        total = hashlib.sha256(where.read_bytes())
        for item, _, _ in _rows(where):
            facts = Path(item.file).stat()
            total.update(b"%d %d\n" % (facts.st_size, facts.st_mtime_ns))
        return total.hexdigest()

    def find(_: Request) -> Listing:
        splits, names, numbered = number_labels(lambda: _rows(where), str(where))
        if not splits:
            raise IjepaError(f"{where} lists no image.")
        left_out = Counter[str]()
        items = _checked(where, numbered(_rows(where)), left_out)
        return Listing(dict.fromkeys(sorted(splits), names), items, left_out)

    return Source(str(where), digest, find, where)


def _checked(where: Path, items: Iterable[Item], left_out: Counter[str]) -> Iterator[Item]:
    """Refuse an image that a list names twice, however spelled; count those that it does not name.

    Where images lie all over a disk, nobody means the rest of it: only the folder that they have in
    common counts, if the list's own folder holds it.
    """
    listed = set[tuple[str, str]]()
    for item in items:
        file = os.path.normpath(Path(item.file).absolute())
        if (item.split, file) in listed:
            raise IjepaError(f"{where}: {item.path} is listed twice; take one of them out.")
        listed.add((item.split, file))
        yield item
    files = {file for _, file in listed}
    common = os.path.commonpath({path.rpartition("/")[0] for path in files})
    if Path(common).is_relative_to(os.path.normpath(where.parent.absolute())):
        there = (f"{top}/{name}" for top, _, found in os.walk(common) for name in found)
        _count_unlisted(there, files, left_out)


def _count_unlisted(files: Iterable[str], listed: AbstractSet[str], left_out: Counter[str]) -> None:
    unnamed = (file for file in files if is_image(file) and file not in listed)
    shown = sum(not file.rpartition("/")[2].startswith(".") for file in unnamed)
    left_out["images that no list of the data set names"] += shown


def _rows(where: Path) -> Iterator[tuple[Item, dict[str, Any], str]]:
    """The images of a user's list, each with the values of its labels and where these stand."""
    read = _json_rows if where.suffix.lower() == ".jsonl" else _csv_rows
    try:
        for number, row in read(where):
            place = f"{where}, line {number}"
            path, split = row.pop(PATH), row.pop(SPLIT, DEFAULT_SPLIT)
            split = "" if split is None else str(split)  # null is refused as an empty value is
            if not isinstance(path, str) or not path or "\0" in path:
                raise IjepaError(f"{place}: {path!r} is not a path.")
            check_split_name(split, f"{place},")
            file = where.parent / path
            if not file.is_file():
                raise IjepaError(f"{place}: there is no image {path} beside or below the list.")
            name, size_bytes = str(PurePosixPath(path)).lstrip("/"), file.stat().st_size
            yield Item(split, name, path, str(file), 0, size_bytes), row, place
    except (ValueError, csv.Error) as error:
        raise IjepaError(f"{where} cannot be read as a UTF-8 list of images: {error}.") from error


def _csv_rows(where: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    with where.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.reader(file, delimiter=DELIMITERS[where.suffix.lower()], strict=True)
        header = next(reader, [])
        if PATH not in header:
            columns = ", ".join(header) or "none"
            raise IjepaError(f"{where} has no column {PATH!r}; its columns are {columns}.")
        if len(set(header)) < len(header):
            raise IjepaError(f"{where}: columns {header}; each needs a name of its own.")
        for row in filter(None, reader):
            if len(row) != len(header):
                raise IjepaError(
                    f"{where}, line {reader.line_num}: {len(row)} values for {len(header)} columns."
                )
            yield reader.line_num, dict(zip(header, row, strict=True))


def _json_rows(where: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    with where.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            row = parse_json(line)
            if not isinstance(row, dict) or PATH not in row:
                found = f"found {line.strip()[:60]}"
                raise IjepaError(
                    f'{where}, line {number}: expected an object with "{PATH}", {found}.'
                )
            yield number, row


def imagenet(where: Path) -> Source:
    """ImageNet-1K: `train/` in folders called by WordNet numbers, `val/` in such folders or flat.

    Classes are numbered in the sorted order of these names, as everywhere, not by the
    `ILSVRC2012_ID` of the development kit.
    """

    def find(request: Request) -> Listing:
        root = next((where / name for name in IMAGES if (where / name / "train").is_dir()), None)
        tree = Tree(root or where, request.work, request.progress)
        if root is None or not any(is_image(path.name) for path in (root / "val").glob("*")):
            return read_folders(tree, request)
        found, images, left_out = read_folders(tree, request._replace(splits=("train", "val")))
        labels = {LABEL: found.get("train", {}).get(LABEL, [])}
        numbers = class_numbers(labels[LABEL])
        truth = _truth(where)

        def labelled() -> Iterator[Item]:
            for item in images:
                if item.split == "val":
                    wnid = truth.get(PurePosixPath(item.name).stem)
                    if wnid not in numbers:
                        raise IjepaError(
                            f"{item.file} is not among the images whose class is known and has a "
                            f"folder in train."
                        )
                    item = item._replace(labels={LABEL: numbers[wnid]})
                yield item

        return Listing(dict.fromkeys(("train", "val"), labels), labelled(), left_out)

    return Source(str(where), lambda: tree_digest(where, every=True), find, where)


def _truth(where: Path) -> dict[str, str]:
    """Class by name of the validation image, without suffix: Kaggle's, or the development kit's."""
    kaggle, devkit = where / KAGGLE, where / DEVKIT
    if kaggle.is_file():
        rows = list(csv.DictReader(_text(kaggle).splitlines()))
        if not rows or not {"ImageId", "PredictionString"} <= set(rows[0]):
            raise IjepaError(f"{kaggle} has no columns ImageId and PredictionString.")
        return {row["ImageId"]: str(row["PredictionString"]).partition(" ")[0] for row in rows}
    if not ((devkit / TRUTH).is_file() and (devkit / META).is_file()):
        raise IjepaError(
            f"{where}/val holds images but no class folders. To give their classes, put "
            f"{DEVKIT}/{TRUTH} and {DEVKIT}/{META}, or Kaggle's {KAGGLE}, into {where}."
        )
    from scipy import io  # slow to import, and no other data set needs it

    try:
        synsets = io.loadmat(devkit / META, squeeze_me=True)["synsets"].reshape(-1)
        wnids = {str(row["ILSVRC2012_ID"]): str(row["WNID"]) for row in synsets}
    except (*BROKEN, io.matlab.MatReadError) as error:
        raise IjepaError(f"{devkit / META} is damaged ({error}); copy it again.") from error
    truth = {}
    for number, line in enumerate(_text(devkit / TRUTH).split(), 1):
        if line not in wnids or int(line) > NUM_CLASSES:
            raise IjepaError(f"{devkit / TRUTH}, line {number}: {line!r} is no class of {META}.")
        truth[f"ILSVRC2012_val_{number:08d}"] = wnids[line]
    return truth


# Path within the data set, path below the folder of all images, and class number.
ListedImages = Iterator[tuple[str, str, int]]


def places205(where: Path) -> Source:
    """Places205 of 256 pixels, as of http://places.csail.mit.edu/downloadData.html."""
    lists = _first(where, "trainvalsplit_places205", ".", file="train_places205.csv")
    images = _first(where, "data/vision/torralba/deeplearning/images256", "images256")
    files = {split: where / lists / f"{split}_places205.csv" for split in ("train", "val")}
    numbered = _numbered(files["train"])
    classes = {number: "/".join(path.split("/")[1:-1]) for path, number in numbered}
    return _published(where, files, lambda _, file: _below(images, file), classes)


def places365(where: Path) -> Source:
    """Places365-Standard, large or of 256 pixels, under names of its archives or of torchvision."""
    train = "places365_train_standard.txt"
    lists = where / _first(where, ".", "filelist_places365-standard", file=train)
    files = {"train": lists / train, "val": lists / "places365_val.txt"}
    small, large = ("data_256_standard", "data_256"), ("data_large_standard", "data_large")
    images = {"train": _first(where, *small, *large)}
    images["val"] = _first(where, "val_256" if images["train"] in small else "val_large")
    categories = _numbered(lists / "categories_places365.txt")
    classes = {number: "/".join(path.split("/")[2:]) for path, number in categories}
    return _published(where, files, lambda split, file: _below(images[split], file), classes)


def inat18(where: Path) -> Source:
    """INaturalist 2018 of visipedia/inat_comp: `train2018.json`, `val2018.json`, images."""
    files = {split: where / f"{split}2018.json" for split in ("train", "val")}
    classes, _ = _annotated(files["train"])
    return _published(where, files, lambda _, file: _annotated(file)[1], classes)


def _published(
    where: Path,
    files: Mapping[str, Path],
    read: Callable[[str, Path], ListedImages],
    classes: Mapping[int, str],
) -> Source:
    """A folder with a list a split, which `read` reads; images in its order."""
    names = [name for _, name in sorted(classes.items())]
    if sorted(classes) != list(range(len(names))):
        raise IjepaError(f"{where} does not number its {len(names):,} classes from 0 on.")

    def find(request: Request) -> Listing:
        left_out = Counter[str]()

        def images() -> Iterator[Item]:
            listed, wanted = set(), request.wanted(files)
            for split, file in files.items():
                for path, name, label in read(split, file):
                    listed.add(os.path.normpath(path))
                    if split in wanted:
                        place = str(where / path), 0, _checked_size(where, path, label, len(names))
                        yield Item(split, name, path, *place, {LABEL: label})
            _count_unlisted((entry.path for entry in walk(where)), listed, left_out)

        return Listing({split: {LABEL: names} for split in files}, images(), left_out)

    return Source(str(where), lambda: digest_of(walk(where)), find, where)


def _checked_size(where: Path, path: str, label: int, num_classes: int) -> int:
    if not 0 <= label < num_classes:
        raise IjepaError(f"{where}: {path} is of class {label}, but there are {num_classes:,}.")
    if not (where / path).is_file():
        raise IjepaError(
            f"{where}/{path} is in the data set's lists but missing; unpack all of the images."
        )
    return (where / path).stat().st_size


def _first(where: Path, *folders: str, file: str = "") -> str:
    """The first of these folders that is there, with this file."""
    for folder in folders:
        if (where / folder / file).exists():
            return folder
    expected = " or ".join(f"{folder}/{file}" for folder in folders)
    raise IjepaError(f"{where} has no {expected}; unpack all of the data set there.")


def _text(file: Path) -> str:
    if not file.is_file():
        raise IjepaError(f"There is no {file}; it says what the images are.")
    try:
        return file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise IjepaError(f"{file} is not UTF-8 text ({error}); copy it again.") from error


def _numbered(file: Path) -> Iterator[tuple[str, int]]:
    """Lines `path number`."""
    for number, line in enumerate(_text(file).splitlines(), 1):
        path, _, label = line.strip().rpartition(" ")
        if not path or not INTEGER.fullmatch(label):
            raise IjepaError(f"{file}, line {number}: {line!r} is not a path and a class number.")
        yield path, int(label)


def _below(root: str, file: Path) -> ListedImages:
    for path, label in _numbered(file):
        yield f"{root}/{path.lstrip('/')}", path.lstrip("/"), label


def _annotated(file: Path) -> tuple[dict[int, str], ListedImages]:
    """Names of the classes, and the images of a file of iNaturalist's."""
    try:
        body = parse_json(_text(file))
        names = {one["id"]: one["name"] for one in body["categories"]}
        paths = {one["id"]: one["file_name"] for one in body["images"]}
        labels = [(paths[one["image_id"]], one["category_id"]) for one in body["annotations"]]
    except (ValueError, LookupError, TypeError) as error:
        raise IjepaError(
            f"{file} is no list of iNaturalist's ({error!r}); load it again."
        ) from error
    return names, ((path, path.removeprefix("train_val2018/"), label) for path, label in labels)
