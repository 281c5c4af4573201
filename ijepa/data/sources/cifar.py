"""CIFAR-10 and CIFAR-100 as published: pickled pixels, read without running what the files say."""

import io
import itertools
import pickle
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ijepa.data.decode import size_of
from ijepa.data.sources.items import (
    Contents,
    Labels,
    Packed,
    chosen_splits,
    read_pack,
    write_pack,
)
from ijepa.data.sources.trees import Entry, Tree
from ijepa.errors import IjepaError
from ijepa.progress import Progress

SIDE_PX = 32
REPORT_IMAGES = 1000


@dataclass(frozen=True)
class Cifar:
    """How one of the two was published.

    Attributes:
        folder: what its archive holds.
        splits: files by split.
        meta: the file with the names of the classes.
        labels: by label, the keys of the class numbers and of the class names.
        num_classes: of the label `class`.
    """

    folder: str
    splits: dict[str, list[str]]
    meta: str
    labels: dict[str, tuple[str, str]]
    num_classes: int


CIFAR10 = Cifar(
    folder="cifar-10-batches-py",
    splits={"train": [f"data_batch_{n}" for n in range(1, 6)], "test": ["test_batch"]},
    meta="batches.meta",
    labels={"class": ("labels", "label_names")},
    num_classes=10,
)
CIFAR100 = Cifar(
    folder="cifar-100-python",
    splits={"train": ["train"], "test": ["test"]},
    meta="meta",
    labels={
        "class": ("fine_labels", "fine_label_names"),
        "coarse": ("coarse_labels", "coarse_label_names"),
    },
    num_classes=100,
)
BROKEN = (
    pickle.UnpicklingError,
    EOFError,
    LookupError,
    TypeError,
    ValueError,
    AttributeError,
    MemoryError,
    OverflowError,
    RecursionError,
)  # what reading a damaged pickle raises


def _empty_array(*_: object) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """The array that a pickle fills, never of the size that the file asks for."""
    return np.empty(0, np.uint8)


def _number_type(name: str, *_: object) -> np.dtype[Any]:
    if name not in NUMBERS:
        raise pickle.UnpicklingError(f"it asks for arrays of {name!r:.20}")
    return np.dtype(name)


# What a pickled array needs, under its names of NumPy 1, NumPy 2 and both Pythons. Nothing else.
NUMBERS = ("u1", "i1", "i4", "i8")
ALLOWED: dict[tuple[str, str], object] = {
    ("numpy.core.multiarray", "_reconstruct"): _empty_array,
    ("numpy._core.multiarray", "_reconstruct"): _empty_array,
    ("numpy", "ndarray"): "ndarray",  # an argument of the former, nothing to call
    ("numpy", "dtype"): _number_type,
    ("_codecs", "encode"): lambda text, encoding: text.encode(encoding),
}


def find_cifar(tree: Tree, published: Cifar) -> str | None:
    """The folder of the pickled files within the tree, with a slash behind; None without them."""
    for prefix in (f"{published.folder}/", ""):
        if tree.find(prefix + published.meta):
            return prefix
    return None


def read_cifar(
    tree: Tree, published: Cifar, asked: tuple[str, ...], work: Path, report: Progress
) -> Contents:
    """Images as PNG, pixels kept; `work` keeps them until they are in shards.

    Raises:
        IjepaError: a file is missing, damaged, or holds what CIFAR's do not; no such split.
    """
    prefix = find_cifar(tree, published)
    if prefix is None:
        raise IjepaError(f"{tree.where} has no file {published.folder}/{published.meta}.")
    meta = _load(_entry(tree, prefix + published.meta))
    labels: Labels = {
        label: _texts(meta, names, published.meta) for label, (_, names) in published.labels.items()
    }
    splits = dict.fromkeys(published.splits, labels)
    chosen = chosen_splits(splits, asked, tree.where)
    listing = work / "cifar.jsonl"
    if not listing.exists():
        write_pack(_images(tree, prefix, published, labels, report), listing)
    return Contents(splits, read_pack(listing, chosen), Counter(tree.left_out()))


def as_cifar(found: Contents, published: Cifar, asked: tuple[str, ...], where: str) -> Contents:
    """Class folders, if they may be those of CIFAR.

    Raises:
        IjepaError: another number of classes, or the first image is of another size.
    """
    for split in chosen_splits(found.splits, asked, where):
        labels = found.splits[split]
        count = len(labels.get("class", ()))
        if count != published.num_classes:
            raise _not_cifar(where, f"{count or 'no'} classes", published)
    first = next(found.items, None)
    if first is None:
        return found
    with Path(first.file).open("rb") as file:
        file.seek(first.offset)
        content = file.read(first.size_bytes)
    try:
        height, width = size_of(content)
    except IjepaError:
        height = width = SIDE_PX  # it is told as damaged when it is decoded
    if (height, width) != (SIDE_PX, SIDE_PX):
        raise _not_cifar(where, f"{first.path} of {width} x {height} pixels", published)
    return found._replace(items=itertools.chain([first], found.items))


def _not_cifar(where: str, found: str, published: Cifar) -> IjepaError:
    return IjepaError(
        f"{where} has neither CIFAR's own files nor folders of {published.num_classes} classes "
        f"with images of {SIDE_PX} x {SIDE_PX} pixels, but {found}. If it is another data set, "
        f"name its path alone."
    )


class _Unpickler(pickle.Unpickler):
    """Knows arrays, bytes and plain containers; any other name in the file is refused."""

    def find_class(self, module: str, name: str) -> object:
        if (module, name) not in ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return ALLOWED[module, name]


def _load(entry: Entry) -> dict[bytes, Any]:
    with Path(entry.file).open("rb") as file:
        file.seek(entry.offset)
        content = io.BytesIO(file.read(entry.size_bytes))
    try:
        body = _Unpickler(content, encoding="bytes").load()
    except BROKEN as error:
        raise IjepaError(
            f"{entry.path} is not a file of CIFAR's ({error}); download it again."
        ) from error
    if not isinstance(body, dict):
        raise IjepaError(f"{entry.path} holds a {type(body).__name__}; CIFAR's files hold a dict.")
    return {_bytes(key): value for key, value in body.items()}


def _bytes(key: object) -> bytes:
    return key if isinstance(key, bytes) else str(key).encode()


def _images(
    tree: Tree, prefix: str, published: Cifar, labels: Labels, report: Progress
) -> Iterator[Packed]:
    """All images, in the published order."""
    done = 0
    for split, files in published.splits.items():
        row = 0
        for file in files:
            for image in _batch(_entry(tree, prefix + file), published, labels):
                yield image._replace(split=split, name=f"{image.name}/{row:05d}.png")
                row, done = row + 1, done + 1
                if done % REPORT_IMAGES == 0:
                    report("encode CIFAR images", done, None)


def _batch(entry: Entry, published: Cifar, labels: Labels) -> Iterator[Packed]:
    """Images of one file, named by their class."""
    body = _load(entry)
    pixels = _values(body, "data", entry.path)
    facts = (pixels.dtype, pixels.shape[1:]) if isinstance(pixels, np.ndarray) else type(pixels)
    if facts != (np.uint8, (3 * SIDE_PX**2,)):
        raise IjepaError(
            f"{entry.path} holds {facts} as pixels; CIFAR's are an array of rows of "
            f"{3 * SIDE_PX**2} bytes. Download it again."
        )
    names = _texts(body, "filenames", entry.path)
    columns = {}
    for label, (key, _) in published.labels.items():
        columns[label] = column = _values(body, key, entry.path)
        if not isinstance(column, list) or not len(column) == len(names) == len(pixels):
            raise IjepaError(f"{entry.path}: {len(pixels)} images without as many of {label}.")
        count = len(labels[label])
        if not all(isinstance(number, int) and 0 <= number < count for number in column):
            raise IjepaError(f"{entry.path}: a {label} is not a class of {published.meta}.")
    classes = labels["class"]
    for number, row in enumerate(pixels.reshape(-1, 3, SIDE_PX, SIDE_PX).transpose(0, 2, 3, 1)):
        yield Packed(
            split="",
            name=classes[columns["class"][number]],
            path=f"{entry.path}/{names[number]}",
            image=Image.fromarray(row),
            labels={label: int(column[number]) for label, column in columns.items()},
        )


def _entry(tree: Tree, path: str) -> Entry:
    entry = tree.find(path)
    if entry is None:
        raise IjepaError(f"{tree.where} has no file {path}; download it again.")
    return entry


def _texts(body: dict[bytes, Any], key: str, path: str) -> list[str]:
    found = _values(body, key, path)
    try:
        return [name.decode() for name in found]
    except (AttributeError, TypeError, UnicodeDecodeError) as error:
        raise IjepaError(f"{path}: {key!r} is not a list of names; download it again.") from error


def _values(body: dict[bytes, Any], key: str, path: str) -> Any:  # noqa: ANN401  # a list or array
    if key.encode() not in body:
        raise IjepaError(f"{path} has no {key!r}; it is not a file of CIFAR's.")
    return body[key.encode()]
