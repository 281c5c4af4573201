"""Every kind of source by name: `kind:path`, or a path alone whose layout tells."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

from ijepa.data.names import expanded
from ijepa.data.sources.cifar import CIFAR10, CIFAR100, Cifar, as_cifar, find_cifar, read_cifar
from ijepa.data.sources.clevr import is_clevr, read_clevr
from ijepa.data.sources.folders import read_folders
from ijepa.data.sources.items import Found, Request, Source
from ijepa.data.sources.listed import LISTS, listed_images
from ijepa.data.sources.published import imagenet, inat18, places205, places365, published_lists
from ijepa.data.sources.scenes import rendered_scenes
from ijepa.data.sources.torchvision_sets import torchvision_set
from ijepa.data.sources.trees import OPENERS, Tree, archive_suffix, open_tree, tree_digest
from ijepa.data.sources.webdataset_tars import is_labelled, read_webdataset
from ijepa.errors import IjepaError

MOST_PARTS = 100_000  # archives that braces name


def open_source(text: str, *, folders_are_classes: bool = False) -> Source:
    """Understand what the user named.

    Args:
        text: a path, tars with braces as in `set-{000..009}.tar`, or `kind:path`.
        folders_are_classes: of a path alone, the outermost folders are classes, never splits.

    Raises:
        IjepaError: no such kind, or nothing there.
    """
    kind, colon, rest = text.partition(":")
    is_kind, is_list = bool(colon) and kind in KINDS, Path(text).suffix.lower() in LISTS
    if folders_are_classes and (is_kind or is_list):
        raise IjepaError(f"--folders-are-classes is for folders and archives, not for {text}.")
    if is_kind:
        return KINDS[kind](rest)
    if colon and not Path(text).exists():
        raise IjepaError(
            f"There is no source {text!r}; name a path, or kind:path with one of "
            f"{', '.join(sorted(KINDS))}."
        )
    if is_list and Path(text).is_file():
        return listed_images(Path(text))
    return _files(text, partial(_by_layout, folders_are_classes=folders_are_classes))


def _files(text: str, find: Callable[[Tree, Request], Found]) -> Source:
    """Files in a folder or an archive, or in the archives of `set-{000..009}.tar`."""
    parts: tuple[Path, ...] = ()
    if "{" in text and not Path(text).exists():
        parts = tuple(_tree_path(name) for name in expanded(text, MOST_PARTS))
        if folder := next((path for path in parts if path.is_dir()), None):
            raise IjepaError(f"{text} names {folder}, a folder; braces name archives.")
    where = parts[0] if parts else _tree_path(text)
    return Source(
        name=str(where),
        digest=lambda: tree_digest(where, parts),
        find=lambda asked: find(open_tree(where, asked.work, asked.progress, parts), asked),
        where=where,
    )


def _by_layout(tree: Tree, asked: Request, *, folders_are_classes: bool) -> Found:
    for kind, published in (("cifar10", CIFAR10), ("cifar100", CIFAR100)):
        if find_cifar(tree, published) is not None:
            raise IjepaError(f"{tree.where} holds CIFAR's own files; name it {kind}:{tree.where}.")
    if is_clevr(tree):
        return read_clevr(tree, asked)
    if not folders_are_classes and tree.is_packed and is_labelled(tree):
        return read_webdataset(tree, asked)
    return read_folders(tree, asked, folders_are_classes=folders_are_classes)


def _cifar(text: str, published: Cifar) -> Source:
    """CIFAR's pickled files; or the same images as class folders, which others hand on."""

    def find(tree: Tree, asked: Request) -> Found:
        if find_cifar(tree, published) is not None:
            return read_cifar(tree, asked, published)
        return as_cifar(read_folders(tree, asked), published, tree.where)

    return _files(text, find)


def _tree_path(text: str) -> Path:
    where = Path(text)
    if not text or not where.exists():
        raise IjepaError(f"There is no data set at {text!r}.")
    if not where.is_dir() and archive_suffix(where) is None:
        raise IjepaError(
            f"{text} is neither a folder nor an archive nor a list; names of archives end in "
            f"{', '.join(OPENERS)}, of lists in {', '.join(LISTS)}."
        )
    return where


def _torchvision(text: str) -> Source:
    name, colon, where = text.partition(":")
    if not colon:
        raise IjepaError(
            f"torchvision:{text} names no folder; write torchvision:FashionMNIST:PATH, where PATH "
            f"is what the class takes as root."
        )
    return torchvision_set(name, _folder_path(where))


def _folder_path(text: str) -> Path:
    where = Path(text)
    if not text or not where.is_dir():
        raise IjepaError(f"There is no folder {text!r}; unpack the archives of the data set there.")
    return where


KINDS: dict[str, Callable[[str], Source]] = {
    "cifar10": lambda text: _cifar(text, CIFAR10),
    "cifar100": lambda text: _cifar(text, CIFAR100),
    "clevr": lambda text: _files(text, read_clevr),
    "imagenet": lambda text: imagenet(_tree_path(text)),
    "imagenet22k": lambda text: _files(text, partial(read_folders, folders_are_classes=True)),
    "inat18": lambda text: published_lists(_folder_path(text), inat18),
    "places205": lambda text: published_lists(_folder_path(text), places205),
    "places365": lambda text: published_lists(_folder_path(text), places365),
    "scenes": rendered_scenes,
    "torchvision": _torchvision,
    "webdataset": lambda text: _files(text, read_webdataset),
}
