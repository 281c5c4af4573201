"""Any data set of torchvision.datasets that is already on disk, by the name of its class."""

import inspect
import pickle
from collections import Counter
from collections.abc import Callable, Generator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ijepa.data.sources.items import (
    DEFAULT_SPLIT,
    Listing,
    NewImage,
    Request,
    Source,
    as_png,
    packed,
)
from ijepa.data.sources.names import LABEL, UNKNOWN
from ijepa.data.sources.trees import digest_of, walk
from ijepa.errors import IjepaError

Data = Any  # torchvision's classes share no type
SPLITS = ("train", "val", "valid", "validation", "test", "unlabeled")  # of a `split` argument
MOST_TEXT = 200  # of a message of theirs
# What classes of torchvision raise for files that are missing or damaged.
THEIRS = (
    RuntimeError, ValueError, TypeError, LookupError, AttributeError, AssertionError,
    ImportError, OSError, EOFError, SyntaxError, pickle.UnpicklingError,
)  # fmt: skip


def torchvision_set(text: str) -> Source:
    """Images of `NAME:PATH` as PNG, pixels kept; nothing is downloaded."""
    name, _, path = text.partition(":")
    where = Path(path)
    if not path:
        raise IjepaError(
            f"torchvision:{text} names no folder; write torchvision:FashionMNIST:PATH, where PATH "
            f"is what the class takes as root."
        )
    if not where.is_dir():
        raise IjepaError(f"There is no folder {path!r}; {name} is looked for there.")

    def find(request: Request) -> Listing:
        opened = _opened(name, where)
        classes = {split: _classes(name, data) for split, data in opened.items()}

        def images(first: int) -> Generator[NewImage]:
            places = ((split, n) for split, data in opened.items() for n in range(len(data)))
            for split, number in islice(places, first, None):
                image, target = _pair(name, opened[split], number)
                file, known = f"{number:07d}.png", classes[split][1](target)
                yield split, file, f"{split}/{file}", as_png(image), known, {}, {}

        items = packed(images, request, f"encode {name} images")
        return {split: known[0] for split, known in classes.items()}, lambda _: items, Counter()

    return Source(f"{name} in {where}", lambda: digest_of(walk(where), name.encode()), find, where)


def _opened(name: str, where: Path) -> dict[str, Data]:
    """The data set of each split that is there."""
    from torchvision import datasets  # beside torch, seconds that no other source needs

    if name not in datasets.__all__:
        raise IjepaError(
            f"torchvision.datasets has no {name!r}; it has {', '.join(datasets.__all__)}."
        )
    kind = getattr(datasets, name)
    parameters = inspect.signature(kind).parameters
    choices: dict[str, dict[str, Any]] = {DEFAULT_SPLIT: {}}
    if "train" in parameters:
        choices = {split: {"train": split == "train"} for split in ("train", "test")}
    elif "split" in parameters:
        choices = {split: {"split": split} for split in SPLITS}
    fixed = {"download": False} if "download" in parameters else {}
    found, reason = {}, ""
    for split, choice in choices.items():
        try:
            found[split] = kind(root=where, **choice, **fixed)
        except THEIRS as error:
            reason = _in_words(error).replace(" You can use download=True to download it", "")
    if not found:
        raise IjepaError(
            f"torchvision finds no {name} in {where}: {reason}. If it needs more than a folder, "
            f"list its images in a .csv with a column `path` and one a label."
        )
    return found


def _classes(
    name: str, data: Data
) -> tuple[dict[str, list[str]], Callable[[int | None], dict[str, int]]]:
    """Names of the classes, and the label by target; no label without integer targets."""
    if _pair(name, data, 0)[1] is None:
        return {}, lambda _: {}
    names = getattr(data, "classes", None) or getattr(data, "categories", None)
    if names:
        values: Sequence[int] = range(len(names))
    else:
        found = {_pair(name, data, number)[1] for number in range(len(data))}
        values = sorted(value for value in found if value not in (None, UNKNOWN))

    def known(target: int | None) -> dict[str, int]:
        if target in (None, UNKNOWN):
            return {LABEL: UNKNOWN}
        if target not in values:
            raise IjepaError(f"{name}: class {target} is none of its {len(values):,}.")
        return {LABEL: values.index(target)}

    return {LABEL: [str(one) for one in names or values]}, known


def _pair(name: str, data: Data, number: int) -> tuple[Image.Image, int | None]:
    """Image and target; None for a target that is no integer."""
    try:
        image, target = data[number]
    except THEIRS as error:
        raise IjepaError(
            f"torchvision's {name} gives no image with a class for {number} ({_in_words(error)}); "
            f"list its images in a .csv with a column `path` and one a label."
        ) from error
    if not isinstance(image, Image.Image):
        raise IjepaError(f"{name} gives a {type(image).__name__}, not an image.")
    return image, int(target) if isinstance(target, int | np.integer) else None


def _in_words(error: Exception) -> str:
    return " ".join(str(error).split())[:MOST_TEXT].rstrip(".") or type(error).__name__
