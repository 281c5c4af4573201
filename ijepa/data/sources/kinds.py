"""Every kind of source by name: `kind:path`, or a path alone whose layout tells.

Those of torchvision are here, too: any data set of `torchvision.datasets` that is on disk.
"""

import inspect
import pickle
from collections import Counter
from collections.abc import Callable, Generator, Sequence
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ijepa.data.decode import BROKEN
from ijepa.data.sources import dense, layouts, lists, tables, trees
from ijepa.data.sources.items import (
    DEFAULT_SPLIT,
    Listing,
    NewImage,
    Request,
    Source,
    as_png,
    no_members,
    packed,
)
from ijepa.data.sources.names import LABEL, UNKNOWN, expanded
from ijepa.data.sources.scenes import rendered_scenes
from ijepa.errors import IjepaError
from ijepa.files import fingerprint_of
from ijepa.text import did_you_mean

# What torchvision calls each CIFAR, the folder that its archive holds, and a file in there.
CIFAR = {
    "cifar10": ("CIFAR10", "cifar-10-batches-py", "batches.meta"),
    "cifar100": ("CIFAR100", "cifar-100-python", "meta"),
}
Data = Any  # torchvision's classes share no type
SPLITS = ("train", "val", "valid", "validation", "test", "unlabeled")  # of a `split` argument
MOST_TEXT = 200  # of a message of theirs
# What classes of torchvision raise for files that are missing or damaged.
THEIRS = (*BROKEN, ImportError, pickle.UnpicklingError)


def open_source(text: str, *, folders_are_classes: bool = False) -> Source:
    """Understand a path, tars with braces as in `set-{000..009}.tar`, or `kind:path`.

    If `folders_are_classes`, the outermost folders of a path alone are classes, never splits.
    """
    kind, colon, rest = text.partition(":")
    is_kind, is_list = bool(colon) and kind in KINDS, Path(text).suffix.lower() in lists.LISTS
    if folders_are_classes and (is_kind or is_list):
        raise IjepaError(f"--folders-are-classes is for folders and archives, not for {text}.")
    if is_kind:
        source = KINDS[kind](rest)
        return replace(source, digest=lambda: fingerprint_of([kind, source.digest()]))
    if colon and not Path(text).exists():
        kinds = ", ".join(sorted(KINDS))
        raise IjepaError(
            f"There is no source {text!r}{did_you_mean(kind, KINDS)}; name a path, or kind:path "
            f"with one of {kinds}."
        )
    if text.lower().endswith(tables.PARQUET) and not Path(text).is_dir():
        return tables.table_source(text)
    if is_list and Path(text).is_file():
        return lists.listed_images(Path(text))
    find = partial(_by_layout, folders_are_classes=folders_are_classes)
    return replace(_tree(text, find), has_members=True)


def _by_layout(tree: trees.Tree, request: Request, *, folders_are_classes: bool) -> Listing:
    if not tree.outline:
        _refuse_pickles(tree)
    if not request.member and any(layouts.find_scenes(tree)[1].values()):
        return layouts.read_clevr(tree, request)
    files = [] if tree.outline else [one for one in tree.entries() if tables.is_table(one.path)]
    if files and not tree.is_packed:
        return tables.read_tables(files, tree.where, request)
    if not folders_are_classes and tree.is_packed and (request.member or layouts.is_labelled(tree)):
        return layouts.read_webdataset(tree, request)
    if request.member:
        raise no_members(tree.where)
    return layouts.read_folders(tree, request, folders_are_classes=folders_are_classes)


def _cifar(text: str, kind: str) -> Source:
    """The published files as torchvision reads them once their checksums are right, or folders."""
    name, folder, _ = CIFAR[kind]
    where = Path(text).parent if Path(text).name == folder else Path(text)
    if (where / folder).is_dir():
        source = torchvision_set(f"{name}:{where}")
        return replace(source, digest=lambda: trees.digest_of(trees.walk(where / folder)))

    def find(tree: trees.Tree, request: Request) -> Listing:
        _refuse_pickles(tree)
        return layouts.read_folders(tree, request)

    return _tree(text, find)


def _refuse_pickles(tree: trees.Tree) -> None:
    """Say how to name CIFAR's published files, which only `_cifar` reads, from a folder."""
    for kind, (_, folder, file) in CIFAR.items():
        if tree.find([f"{folder}/{file}"]):
            unpack = f"unpack it (tar -xf {tree.where}) and " if tree.is_packed else ""
            raise IjepaError(
                f"{tree.where} holds CIFAR's own files; {unpack}name {kind}:PATH, where PATH is "
                f"the folder that holds {folder}."
            )


def _tree(text: str, find: Callable[[trees.Tree, Request], Listing]) -> Source:
    """Files in a folder or an archive, or in the archives of `set-{000..009}.tar`."""
    parts: Sequence[Path] = ()
    if "{" in text and not Path(text).exists():
        parts = [_tree_path(name) for name in expanded(text)]
        if folder := next((path for path in parts if path.is_dir()), None):
            raise IjepaError(f"{text} names {folder}, a folder; braces name archives.")
    where = parts[0] if parts else _tree_path(text)

    def found(request: Request) -> Listing:
        tree = trees.Tree(where, request.work, request.progress, parts, arrays=request.arrays)
        return find(tree, request)

    return Source(str(where), lambda: trees.tree_digest(where, parts), found, where)


def _tree_path(text: str) -> Path:
    where = Path(text)
    if not text or not where.exists():
        raise IjepaError(f"There is no data set at {text!r}.")
    if not where.is_dir() and not trees.archive_suffix(where.name):
        raise IjepaError(
            f"{text} is neither a folder nor an archive nor a list; names of archives end in "
            f"{', '.join((trees.PLAIN, *trees.COMPRESSED))}, of lists in {', '.join(lists.LISTS)}."
        )
    return where


def _folder(text: str, read: Callable[[Path], Source]) -> Source:
    if not text or not Path(text).is_dir():
        raise IjepaError(f"There is no folder {text!r}; unpack the archives of the data set there.")
    return read(Path(text))


def _published(text: str, kind: str) -> Source:
    source, where = _tree(text, partial(dense.read_published, kind=kind)), Path(text)
    known = dense.published_labels(kind, where)
    return replace(source, digest=lambda: trees.tree_digest(where, every=True), dense=known)


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
        return Listing({split: known[0] for split, known in classes.items()}, items, Counter())

    return Source(
        f"{name} in {where}", lambda: trees.digest_of(trees.walk(where), name.encode()), find, where
    )


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


KINDS: dict[str, Callable[[str], Source]] = {
    **{kind: partial(_cifar, kind=kind) for kind in CIFAR},
    "clevr": lambda text: _tree(text, layouts.read_clevr),
    "imagenet": lambda text: lists.imagenet(_tree_path(text)),
    "imagenet22k": lambda text: _tree(
        text, partial(layouts.read_folders, folders_are_classes=True)
    ),
    "inat18": lambda text: _folder(text, lists.inat18),
    "parquet": tables.table_source,
    "places205": lambda text: _folder(text, lists.places205),
    "places365": lambda text: _folder(text, lists.places365),
    "scenes": rendered_scenes,
    "torchvision": torchvision_set,
    "webdataset": lambda text: replace(_tree(text, layouts.read_webdataset), has_members=True),
    **{kind: partial(_published, kind=kind) for kind in dense.LAYOUTS},
}
