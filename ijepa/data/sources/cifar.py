"""CIFAR-10 and CIFAR-100 as published: pickled pixels, read without running what the files say."""

import contextlib
import io
import pickle
from collections import Counter
from collections.abc import Generator, Iterator, Mapping
from collections.abc import Set as AbstractSet
from itertools import chain, islice
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from ijepa.arrays import Pixels
from ijepa.data.decode import image_size
from ijepa.data.sources.folders import read_folders
from ijepa.data.sources.items import Item, Labels, Listing, NewImage, Request, as_png, packed
from ijepa.data.sources.names import LABEL
from ijepa.data.sources.trees import Entry, Tree
from ijepa.errors import IjepaError

SIDE_PX = 32


class Cifar(NamedTuple):
    """How one of the two was published."""

    folder: str  # what its archive holds
    splits: Mapping[str, list[str]]  # files by split
    meta: str  # the file with the names of the classes
    labels: Mapping[str, tuple[str, str]]  # keys of class numbers and of class names, by label
    num_classes: int  # of the label `class`


CIFAR = {
    "cifar10": Cifar(
        folder="cifar-10-batches-py",
        splits={"train": [f"data_batch_{n}" for n in range(1, 6)], "test": ["test_batch"]},
        meta="batches.meta",
        labels={"class": ("labels", "label_names")},
        num_classes=10,
    ),
    "cifar100": Cifar(
        folder="cifar-100-python",
        splits={"train": ["train"], "test": ["test"]},
        meta="meta",
        labels={
            "class": ("fine_labels", "fine_label_names"),
            "coarse": ("coarse_labels", "coarse_label_names"),
        },
        num_classes=100,
    ),
}
NUMBERS = {name: np.dtype(name) for name in ("u1", "i1", "i4", "i8")}
# What a pickled array needs, under its names of NumPy 1, NumPy 2 and both Pythons; nothing else.
# An array begins empty, never in the size that the file asks for, and is filled from its bytes.
ALLOWED: dict[tuple[str, str], object] = {
    ("numpy.core.multiarray", "_reconstruct"): lambda *_: np.empty(0, np.uint8),
    ("numpy._core.multiarray", "_reconstruct"): lambda *_: np.empty(0, np.uint8),
    ("numpy", "ndarray"): "ndarray",  # an argument of the former, nothing to call
    ("numpy", "dtype"): lambda name, *_: NUMBERS[name],
    ("_codecs", "encode"): lambda text, encoding: text.encode(encoding),
}
BROKEN = (  # what reading a damaged pickle raises
    pickle.UnpicklingError, EOFError, LookupError, TypeError, ValueError, AttributeError,
    MemoryError, OverflowError, RecursionError,
)  # fmt: skip


def find_cifar(tree: Tree, kind: str) -> str | None:
    """The folder of the pickled files within the tree, with a slash behind; None without them."""
    folder, _, meta, *_ = CIFAR[kind]
    found = tree.find(f"{folder}/{meta}", meta)
    return max(found, key=len).removesuffix(meta) if found else None


def read_cifar(tree: Tree, request: Request, kind: str) -> Listing:
    """Pickled images as PNG in the published order, pixels kept; or CIFAR as class folders."""
    published, prefix = CIFAR[kind], find_cifar(tree, kind)
    if prefix is None:
        return _as_cifar(read_folders(tree, request), published, tree.where)
    names = [published.meta, *(name for parts in published.splits.values() for name in parts)]
    files = tree.find(*(prefix + name for name in names))
    if missing := [name for name in names if prefix + name not in files]:
        raise IjepaError(f"{tree.where} has no file {prefix}{missing[0]}; download it again.")
    meta = files[prefix + published.meta]
    body = _load(meta)
    labels = {label: _texts(meta, body, key) for label, (_, key) in published.labels.items()}

    def every() -> Iterator[tuple[str, int, str, Pixels, dict[str, int]]]:
        for split, parts in published.splits.items():
            rows = (_rows(files[prefix + part], published, labels) for part in parts)
            for number, row in enumerate(chain.from_iterable(rows)):
                yield split, number, *row

    def images(first: int) -> Generator[NewImage]:
        for split, number, path, pixels, known in islice(every(), first, None):
            name = f"{labels[LABEL][known[LABEL]]}/{number:05d}.png"
            yield split, name, path, as_png(Image.fromarray(pixels)), known, {}, {}

    items = packed(images, request, "encode CIFAR images")
    return dict.fromkeys(published.splits, labels), lambda _: items, Counter(tree.left_out)


def _as_cifar(found: Listing, published: Cifar, where: str) -> Listing:
    """Class folders, if they may be those of CIFAR: by their number, and the first image."""
    labels, items, left_out = found

    def checked(splits: AbstractSet[str]) -> Iterator[Item]:
        counts = {len(labels[split].get(LABEL, ())) for split in splits} - {published.num_classes}
        wrong = f"{min(counts) or 'no'} classes" if counts else ""
        is_checked = False
        for item in items(splits):
            if not is_checked and not wrong and item.split in splits:
                is_checked = True
                with contextlib.suppress(IjepaError):  # a damaged image is told when it is decoded
                    height, width = image_size(Entry(item.path, *item[3:6]).read())
                    if (height, width) != (SIDE_PX, SIDE_PX):
                        wrong = f"{item.path} of {width} x {height} pixels"
            if wrong:
                raise IjepaError(
                    f"{where} has neither CIFAR's own files nor folders of {published.num_classes} "
                    f"classes with images of {SIDE_PX} x {SIDE_PX} pixels, but {wrong}. If it is "
                    f"another data set, name its path alone."
                )
            yield item

    return labels, checked, left_out


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> object:
        if (module, name) not in ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return ALLOWED[module, name]


def _load(entry: Entry) -> dict[str, Any]:
    try:
        body = _Unpickler(io.BytesIO(entry.read()), encoding="bytes").load()
        if not isinstance(body, dict):
            raise TypeError(f"it holds a {type(body).__name__}")
        return {key.decode() if isinstance(key, bytes) else str(key): body[key] for key in body}
    except BROKEN as error:
        raise _wrong(entry, f"not a file of CIFAR's ({error})") from error


def _wrong(entry: Entry, what: str) -> IjepaError:
    return IjepaError(f"{entry.path}: {what}; download it again.")


def _rows(
    entry: Entry, published: Cifar, labels: Labels
) -> Iterator[tuple[str, Pixels, dict[str, int]]]:
    """Path, pixels (32, 32, 3) and class numbers of each image of a file."""
    body = _load(entry)
    names, pixels = _texts(entry, body, "filenames"), body.get("data")
    if not isinstance(pixels, np.ndarray) or pixels.dtype != np.uint8:
        raise _wrong(entry, "it has no array of bytes as 'data'")
    if pixels.shape != (len(names), 3 * SIDE_PX**2):
        shape = pixels.shape
        raise _wrong(entry, f"it has pixels of shape {shape} for {len(names)} images of 3072")
    columns: dict[str, list[int]] = {}
    for label, (key, _) in published.labels.items():
        columns[label] = column = body.get(key, [])
        classes = range(len(labels[label]))
        is_whole = isinstance(column, list) and len(column) == len(names)
        if not is_whole or not all(isinstance(n, int) and n in classes for n in column):
            what = f"{len(names)} classes of {published.meta}"
            raise _wrong(entry, f"it has no list of {what} as {key}")
    for number, row in enumerate(pixels.reshape(-1, 3, SIDE_PX, SIDE_PX).transpose(0, 2, 3, 1)):
        known = {label: int(column[number]) for label, column in columns.items()}
        yield f"{entry.path}/{names[number]}", row, known


def _texts(entry: Entry, body: dict[str, Any], key: str) -> list[str]:
    if key not in body:
        raise _wrong(entry, f"it has no {key!r}")
    try:
        return [name.decode() for name in body[key]]
    except (AttributeError, TypeError, UnicodeDecodeError) as error:
        raise _wrong(entry, f"{key!r} is not a list of names") from error
