"""Every kind of source by name: `kind:path`, or a path alone whose layout tells."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

from ijepa.data.shards import expanded
from ijepa.data.sources.archives import OPENERS, Archive, archive_suffix, open_tree, tree_digest
from ijepa.data.sources.cifar import CIFAR10, CIFAR100, Cifar, as_cifar, find_cifar, read_cifar
from ijepa.data.sources.clevr import is_clevr, read_clevr
from ijepa.data.sources.folders import read_folders
from ijepa.data.sources.imagenet import ImageNet
from ijepa.data.sources.items import Contents
from ijepa.data.sources.listed import LISTS, ListedImages, is_list
from ijepa.data.sources.published import PublishedLists, inat18, places205, places365
from ijepa.data.sources.scenes import parse_spec, render_scenes
from ijepa.data.sources.torchvision_sets import TorchvisionSet
from ijepa.data.sources.trees import Tree
from ijepa.data.sources.webdataset_tars import is_labelled, read_webdataset
from ijepa.errors import IjepaError
from ijepa.progress import Progress

MOST_PARTS = 100_000  # archives that braces name


class Source(Protocol):
    """A data set that can be read image by image."""

    @property
    def where(self) -> Path | None:
        """The user's own file or folder; None if there is none."""

    def digest(self) -> str:
        """Changes whenever what is read may have changed; found out without reading images."""

    def read(self, work: Path, splits: tuple[str, ...], workers: int, report: Progress) -> Contents:
        """List the images of `splits` (empty: all); `work` keeps what must be made for that."""


@dataclass(frozen=True)
class FileTree:
    """Files in a folder or in archives, understood by `reader`.

    Attributes:
        where: the folder or the archive; of several archives the first.
        reader: lists the images.
        parts: the archives, if they are several.
    """

    where: Path
    reader: Callable[[Tree, tuple[str, ...]], Contents]
    parts: tuple[Path, ...] = ()

    def digest(self) -> str:
        """From names, sizes and times."""
        return tree_digest(self.where, self.parts)

    def read(self, work: Path, splits: tuple[str, ...], _: int, report: Progress) -> Contents:
        """Compressed archives are unpacked first."""
        return self.reader(open_tree(self.where, work, report, self.parts), splits)


@dataclass(frozen=True)
class PublishedCifar:
    """CIFAR's pickled files; or the same images as class folders, which others hand on."""

    where: Path
    published: Cifar

    def digest(self) -> str:
        """From names, sizes and times."""
        return tree_digest(self.where)

    def read(self, work: Path, splits: tuple[str, ...], _: int, report: Progress) -> Contents:
        """Pickled pixels become PNG first."""
        tree = open_tree(self.where, work, report)
        if find_cifar(tree, self.published) is not None:
            return read_cifar(tree, self.published, splits, work, report)
        return as_cifar(read_folders(tree, splits), self.published, splits, str(self.where))


@dataclass(frozen=True)
class ScenesSource:
    """CLEVR scenes that we draw ourselves."""

    spec: str
    where: None = None

    def digest(self) -> str:
        """From the specification alone."""
        return hashlib.sha256(parse_spec(self.spec).model_dump_json().encode()).hexdigest()

    def read(self, work: Path, splits: tuple[str, ...], workers: int, report: Progress) -> Contents:
        """Render, then read as any CLEVR."""
        folder = work / "scenes"
        render_scenes(parse_spec(self.spec), folder, workers, report)
        return read_clevr(open_tree(folder, work, report), splits)


def open_source(text: str, *, folders_are_classes: bool = False) -> Source:
    """Understand what the user named.

    Args:
        text: a path, tars with braces as in `set-{000..009}.tar`, or `kind:path`.
        folders_are_classes: of a path alone, the outermost folders are classes, never splits.

    Raises:
        IjepaError: no such kind, or nothing there.
    """
    kind, colon, rest = text.partition(":")
    is_kind = bool(colon) and kind in KINDS
    if folders_are_classes and (is_kind or is_list(Path(text))):
        raise IjepaError(f"--folders-are-classes is for folders and archives, not for {text}.")
    if is_kind:
        return KINDS[kind](rest)
    if colon and not Path(text).exists():
        raise IjepaError(
            f"There is no source {text!r}; name a path, or kind:path with one of "
            f"{', '.join(sorted(KINDS))}."
        )
    if is_list(Path(text)) and Path(text).is_file():
        return ListedImages(Path(text))
    return _file_tree(text, partial(_by_layout, folders_are_classes=folders_are_classes))


def _file_tree(text: str, reader: Callable[[Tree, tuple[str, ...]], Contents]) -> FileTree:
    parts = _with_braces(text)
    return FileTree(parts[0], reader, parts) if parts else FileTree(_tree_path(text), reader)


def _with_braces(text: str) -> tuple[Path, ...]:
    """The archives of `set-{000..009}.tar`; none if it is no such pattern."""
    if "{" not in text or Path(text).exists():
        return ()
    paths = tuple(_tree_path(name) for name in expanded(text, MOST_PARTS))
    if folder := next((path for path in paths if path.is_dir()), None):
        raise IjepaError(f"{text} names {folder}, a folder; braces name archives.")
    return paths


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


def _by_layout(tree: Tree, splits: tuple[str, ...], *, folders_are_classes: bool) -> Contents:
    for kind, published in (("cifar10", CIFAR10), ("cifar100", CIFAR100)):
        if find_cifar(tree, published) is not None:
            raise IjepaError(f"{tree.where} holds CIFAR's own files; name it {kind}:{tree.where}.")
    if is_clevr(tree):
        return read_clevr(tree, splits)
    if not folders_are_classes and isinstance(tree, Archive) and is_labelled(tree):
        return read_webdataset(tree, splits)
    return read_folders(tree, splits, folders_are_classes=folders_are_classes)


def _torchvision(text: str) -> TorchvisionSet:
    name, colon, where = text.partition(":")
    if not colon:
        raise IjepaError(
            f"torchvision:{text} names no folder; write torchvision:FashionMNIST:PATH, where PATH "
            f"is what the class takes as root."
        )
    return TorchvisionSet(name, _folder_path(where))


def _folder_path(text: str) -> Path:
    where = Path(text)
    if not text or not where.is_dir():
        raise IjepaError(f"There is no folder {text!r}; unpack the archives of the data set there.")
    return where


KINDS: dict[str, Callable[[str], Source]] = {
    "cifar10": lambda text: PublishedCifar(_tree_path(text), CIFAR10),
    "cifar100": lambda text: PublishedCifar(_tree_path(text), CIFAR100),
    "clevr": lambda text: FileTree(_tree_path(text), read_clevr),
    "imagenet": lambda text: ImageNet(_tree_path(text)),
    "imagenet22k": lambda text: _file_tree(text, partial(read_folders, folders_are_classes=True)),
    "inat18": lambda text: PublishedLists(_folder_path(text), inat18),
    "places205": lambda text: PublishedLists(_folder_path(text), places205),
    "places365": lambda text: PublishedLists(_folder_path(text), places365),
    "scenes": ScenesSource,
    "torchvision": _torchvision,
    "webdataset": lambda text: _file_tree(text, read_webdataset),
}
