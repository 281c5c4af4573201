"""Any data set of torchvision.datasets that is already on disk, by the name of its class."""

import hashlib
import inspect
import pickle
from collections import Counter
from collections.abc import Generator, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ijepa.data.sources.items import (
    DEFAULT_SPLIT,
    LABEL,
    UNKNOWN,
    Found,
    LabelColumn,
    Labels,
    Packed,
    Request,
    Source,
    as_png,
    packed,
)
from ijepa.errors import IjepaError

SPLITS = ("train", "val", "valid", "validation", "test", "unlabeled")  # of a `split` argument
MOST_TEXT = 200  # of a message of theirs
# What classes of torchvision raise for files that are missing or damaged.
THEIRS = (
    RuntimeError, ValueError, TypeError, LookupError, AttributeError, AssertionError,
    ImportError, OSError, EOFError, SyntaxError, pickle.UnpicklingError,
)  # fmt: skip


def torchvision_set(name: str, where: Path) -> Source:
    """Images as PNG, pixels kept; nothing is downloaded."""

    def digest() -> str:
        """From the class, and the names, sizes and times of all files."""
        total = hashlib.sha256(name.encode())
        for path in sorted(path for path in where.rglob("*") if path.is_file()):
            facts = path.stat()
            line = f"{path.relative_to(where)}\0{facts.st_size}\0{facts.st_mtime_ns}\n"
            total.update(line.encode(errors="surrogateescape"))
        return total.hexdigest()

    def find(asked: Request) -> Found:
        """Encode what the class gives, each split by its own `train` or `split` argument."""
        opened = _opened(name, where)
        labels = {split: _labels(name, data) for split, data in opened.items()}

        def images(first: int) -> Generator[Packed]:
            yield from islice(every(), first, None)

        def every() -> Iterator[Packed]:
            for split, data in opened.items():
                for number in range(len(data)):
                    image, target = _pair(name, data, number)
                    known = {
                        label: _class(name, data, classes, target)
                        for label, classes in labels[split].items()
                    }
                    file = f"{number:07d}.png"
                    yield split, file, f"{split}/{file}", as_png(image), known, {}

        task = f"encode {name} images"
        items = packed(images, asked, task)
        return labels, lambda _: items, Counter()

    return Source(f"{name} in {where}", digest, find, where)


def _opened(name: str, where: Path) -> dict[str, Any]:
    """The data set of each split that is there."""
    from torchvision import datasets  # beside torch, seconds that no other source needs

    kind: Any = getattr(datasets, name, None)
    if name not in datasets.__all__:
        raise IjepaError(
            f"torchvision.datasets has no {name!r}; it has {', '.join(datasets.__all__)}."
        )
    _check_root_is_enough(name, kind)
    found, reason = {}, "it knows no split"
    for split, choice in _choices(kind).items():
        try:
            found[split] = kind(where, **choice)
        except THEIRS as error:
            reason = _in_words(error)
    if not found:
        raise IjepaError(f"torchvision finds no {name} in {where}: {reason}.")
    return found


def _check_root_is_enough(name: str, kind: Any) -> None:  # noqa: ANN401  # a class of theirs
    parameters = inspect.signature(kind).parameters.values() if inspect.isclass(kind) else ()
    needed = {
        one.name
        for one in parameters
        if one.default is one.empty and one.kind not in (one.VAR_POSITIONAL, one.VAR_KEYWORD)
    }
    names = {one.name for one in parameters}
    if "root" not in names or needed - {"root", "split", "train"}:
        more = ", ".join(sorted(needed - {"root"})) or "other arguments"
        raise IjepaError(
            f"torchvision's {name} is not made from a folder alone, but from {more}; list its "
            f"images in a .csv with a column `path` and one a label."
        )


def _choices(kind: Any) -> dict[str, dict[str, Any]]:  # noqa: ANN401  # a class of theirs
    """Arguments by split."""
    parameters = inspect.signature(kind).parameters
    fixed = {"download": False} if "download" in parameters else {}
    if "train" in parameters:
        return {name: {"train": name == "train", **fixed} for name in ("train", "test")}
    if "split" in parameters:
        return {name: {"split": name, **fixed} for name in SPLITS}
    return {DEFAULT_SPLIT: fixed}


def _labels(name: str, data: Any) -> Labels:  # noqa: ANN401  # torchvision's classes share no type
    """Class names where the class has them; without integer targets, none."""
    if not isinstance(_pair(name, data, 0)[1], int | np.integer):
        return {}
    if names := _class_names(data):
        return {LABEL: [str(name) for name in names]}
    column = LabelColumn(LABEL, name)
    for number in range(len(data)):
        column.add(int(_pair(name, data, number)[1]), f"{name}, image {number}")
    return {LABEL: column.names()}


def _class_names(data: Any) -> Any:  # noqa: ANN401  # as they have them
    return getattr(data, "classes", None) or getattr(data, "categories", None)


def _class(name: str, data: Any, classes: list[str], target: Any) -> int:  # noqa: ANN401  # theirs
    """Class number of a target: their own where they name their classes, else by its value."""
    try:
        number = int(target)
        number = number if _class_names(data) or number < 0 else classes.index(str(number))
    except (TypeError, ValueError) as error:
        raise IjepaError(f"{name}: {target!r:.40} is not a class.") from error
    if not UNKNOWN <= number < len(classes):
        raise IjepaError(f"{name}: class {number} is none of its {len(classes):,}.")
    return number


def _pair(name: str, data: Any, number: int) -> tuple[Image.Image, Any]:  # noqa: ANN401  # theirs
    try:
        image, target = data[number]
    except THEIRS as error:
        raise IjepaError(
            f"torchvision's {name} gives no image with a class for {number} ({_in_words(error)}); "
            f"list its images in a .csv with a column `path` and one a label."
        ) from error
    if not isinstance(image, Image.Image):
        raise IjepaError(f"{name} gives a {type(image).__name__}, not an image.")
    return image, target


def _in_words(error: Exception) -> str:
    return " ".join(str(error).split())[:MOST_TEXT].rstrip(".") or type(error).__name__
