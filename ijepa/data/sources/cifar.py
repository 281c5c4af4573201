"""CIFAR-10 and CIFAR-100 as published: pickled pixels, read without running what the files say."""

import io
import pickle
from collections import Counter
from collections.abc import Generator, Iterator
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
from PIL import Image

from ijepa.data.decode import size_of
from ijepa.data.sources.items import LABEL, Found, Item, Labels, Packed, Request, as_png, packed
from ijepa.data.sources.trees import Entry, Tree
from ijepa.errors import IjepaError

SIDE_PX = 32


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
# What reading a damaged pickle raises.
BROKEN = (
    pickle.UnpicklingError, EOFError, LookupError, TypeError, ValueError, AttributeError,
    MemoryError, OverflowError, RecursionError,
)  # fmt: skip


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
    found = tree.find(f"{published.folder}/{published.meta}", published.meta)
    return max(found, key=len).removesuffix(published.meta) if found else None


def read_cifar(tree: Tree, asked: Request, published: Cifar) -> Found:
    """Images as PNG in the published order, pixels kept."""
    prefix = find_cifar(tree, published)
    names = [published.meta, *(name for files in published.splits.values() for name in files)]
    files = tree.find(*(f"{prefix}{name}" for name in names))

    def body_of(name: str) -> tuple[str, dict[bytes, Any]]:
        if f"{prefix}{name}" not in files:
            raise IjepaError(f"{tree.where} has no file {prefix}{name}; download it again.")
        return f"{prefix}{name}", _load(files[f"{prefix}{name}"])

    _, meta = body_of(published.meta)
    labels = {
        label: _texts(meta, names_key, published.meta)
        for label, (_, names_key) in published.labels.items()
    }

    def images(first: int) -> Generator[Packed]:
        yield from islice(every(), first, None)

    def every() -> Iterator[Packed]:
        for split, parts in published.splits.items():
            row = 0
            for name in parts:
                for folder, path, image, known in _images(*body_of(name), published, labels):
                    yield split, f"{folder}/{row:05d}.png", path, as_png(image), known, {}
                    row += 1

    splits = dict.fromkeys(published.splits, labels)
    items = packed(images, asked, "encode CIFAR images")
    return splits, lambda _: items, Counter(tree.left_out)


def as_cifar(found: Found, published: Cifar, where: str) -> Found:
    """Class folders, if they may be those of CIFAR."""
    labels, items, left_out = found

    def refused(what: str) -> IjepaError:
        return IjepaError(
            f"{where} has neither CIFAR's own files nor folders of {published.num_classes} classes "
            f"with images of {SIDE_PX} x {SIDE_PX} pixels, but {what}. If it is another data set, "
            f"name its path alone."
        )

    def checked(splits: AbstractSet[str]) -> Iterator[Item]:
        for split in splits:
            count = len(labels[split].get(LABEL, ()))
            if count != published.num_classes:
                raise refused(f"{count or 'no'} classes")
        is_checked = False
        for item in items(splits):
            if item.split in splits and not is_checked:
                height, width = _size(Entry(item.path, *item[3:6]))
                if (height, width) != (SIDE_PX, SIDE_PX):
                    raise refused(f"{item.path} of {width} x {height} pixels")
                is_checked = True
            yield item

    return labels, checked, left_out


def _size(entry: Entry) -> tuple[int, int]:
    try:
        return size_of(entry.read())
    except IjepaError:
        return SIDE_PX, SIDE_PX  # it is told as damaged when it is decoded


class _Unpickler(pickle.Unpickler):
    """Knows arrays, bytes and plain containers; any other name in the file is refused."""

    def find_class(self, module: str, name: str) -> object:
        if (module, name) not in ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return ALLOWED[module, name]


def _load(entry: Entry) -> dict[bytes, Any]:
    try:
        body = _Unpickler(io.BytesIO(entry.read()), encoding="bytes").load()
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
    path: str, body: dict[bytes, Any], published: Cifar, labels: Labels
) -> Iterator[tuple[str, str, Image.Image, dict[str, int]]]:
    """Class, path, image and labels of the images of one file."""
    pixels = _values(body, "data", path)
    facts = (pixels.dtype, pixels.shape[1:]) if isinstance(pixels, np.ndarray) else type(pixels)
    if facts != (np.uint8, (3 * SIDE_PX**2,)):
        raise IjepaError(
            f"{path} holds {facts} as pixels; CIFAR's are an array of rows of {3 * SIDE_PX**2} "
            f"bytes. Download it again."
        )
    names = _texts(body, "filenames", path)
    columns = {}
    for label, (key, _) in published.labels.items():
        columns[label] = column = _values(body, key, path)
        if not isinstance(column, list) or not len(column) == len(names) == len(pixels):
            raise IjepaError(f"{path}: {len(pixels)} images without as many of {label}.")
        if not all(isinstance(n, int) and 0 <= n < len(labels[label]) for n in column):
            raise IjepaError(f"{path}: a {label} is not a class of {published.meta}.")
    for number, row in enumerate(pixels.reshape(-1, 3, SIDE_PX, SIDE_PX).transpose(0, 2, 3, 1)):
        known = {label: int(column[number]) for label, column in columns.items()}
        image = Image.fromarray(row)
        yield labels[LABEL][known[LABEL]], f"{path}/{names[number]}", image, known


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
