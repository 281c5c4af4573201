"""Every kind of source by name: `kind:path`, or a path alone whose layout tells."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from ijepa.data.index import refuse_shard_set
from ijepa.data.sources import lists
from ijepa.data.sources.clevr import find_scenes, read_clevr
from ijepa.data.sources.dense import LAYOUTS, published_labels, read_published
from ijepa.data.sources.folders import read_folders
from ijepa.data.sources.items import Listing, Request, Source, no_members
from ijepa.data.sources.names import MOST_PARTS, expanded
from ijepa.data.sources.scenes import rendered_scenes
from ijepa.data.sources.tables import PARQUET, is_table, read_tables, table_source
from ijepa.data.sources.torchvision_sets import torchvision_set
from ijepa.data.sources.trees import (
    COMPRESSED,
    PLAIN,
    Tree,
    archive_suffix,
    digest_of,
    tree_digest,
    walk,
)
from ijepa.data.sources.webdataset_tars import is_labelled, read_webdataset
from ijepa.errors import IjepaError
from ijepa.text import did_you_mean

# What torchvision calls each CIFAR, the folder that its archive holds, and a file in there.
CIFAR = {
    "cifar10": ("CIFAR10", "cifar-10-batches-py", "batches.meta"),
    "cifar100": ("CIFAR100", "cifar-100-python", "meta"),
}


def open_source(text: str, *, folders_are_classes: bool = False) -> Source:
    """Understand a path, tars with braces as in `set-{000..009}.tar`, or `kind:path`.

    If `folders_are_classes`, the outermost folders of a path alone are classes, never splits.
    """
    kind, colon, rest = text.partition(":")
    is_kind, is_list = bool(colon) and kind in KINDS, Path(text).suffix.lower() in lists.LISTS
    if folders_are_classes and (is_kind or is_list):
        raise IjepaError(f"--folders-are-classes is for folders and archives, not for {text}.")
    refuse_shard_set(Path(rest if is_kind else text))
    if is_kind:
        return KINDS[kind](rest)
    if colon and not Path(text).exists():
        kinds = ", ".join(sorted(KINDS))
        raise IjepaError(
            f"There is no source {text!r}{did_you_mean(kind, KINDS)}; name a path, or kind:path "
            f"with one of {kinds}."
        )
    if text.lower().endswith(PARQUET) and not Path(text).is_dir():
        return table_source(text)
    if is_list and Path(text).is_file():
        return lists.listed_images(Path(text))
    find = partial(_by_layout, folders_are_classes=folders_are_classes)
    return replace(_tree(text, find), has_members=True)


def _by_layout(tree: Tree, request: Request, *, folders_are_classes: bool) -> Listing:
    _refuse_pickles(tree)
    if not request.member and any(find_scenes(tree)[1].values()):
        return read_clevr(tree, request)
    tables = [] if tree.outline else [one for one in tree.entries() if is_table(one.path)]
    if tables and not tree.is_packed:
        return read_tables(tables, tree.where, request)
    if not folders_are_classes and tree.is_packed and (request.member or is_labelled(tree)):
        return read_webdataset(tree, request)
    if request.member:
        raise no_members(tree.where)
    return read_folders(tree, request, folders_are_classes=folders_are_classes)


def _cifar(text: str, kind: str) -> Source:
    """The published files as torchvision reads them once their checksums are right, or folders."""
    name, folder, _ = CIFAR[kind]
    where = Path(text).parent if Path(text).name == folder else Path(text)
    if (where / folder).is_dir():
        source = torchvision_set(f"{name}:{where}")
        return replace(source, digest=lambda: digest_of(walk(where / folder)))

    def find(tree: Tree, request: Request) -> Listing:
        _refuse_pickles(tree)
        return read_folders(tree, request)

    return _tree(text, find)


def _refuse_pickles(tree: Tree) -> None:
    """Say how to name CIFAR's published files, which only `_cifar` reads, from a folder."""
    for kind, (_, folder, file) in CIFAR.items():
        if tree.find(f"{folder}/{file}"):
            unpack = f"unpack it (tar -xf {tree.where}) and " if tree.is_packed else ""
            raise IjepaError(
                f"{tree.where} holds CIFAR's own files; {unpack}name {kind}:PATH, where PATH is "
                f"the folder that holds {folder}."
            )


def _tree(text: str, find: Callable[[Tree, Request], Listing]) -> Source:
    """Files in a folder or an archive, or in the archives of `set-{000..009}.tar`."""
    parts: Sequence[Path] = ()
    if "{" in text and not Path(text).exists():
        parts = [_tree_path(name) for name in expanded(text, MOST_PARTS)]
        if folder := next((path for path in parts if path.is_dir()), None):
            raise IjepaError(f"{text} names {folder}, a folder; braces name archives.")
    where = parts[0] if parts else _tree_path(text)

    def found(request: Request) -> Listing:
        tree = Tree(where, request.work, request.progress, parts, arrays=request.arrays)
        return find(tree, request)

    return Source(str(where), lambda: tree_digest(where, parts), found, where)


def _tree_path(text: str) -> Path:
    where = Path(text)
    if not text or not where.exists():
        raise IjepaError(f"There is no data set at {text!r}.")
    if not where.is_dir() and not archive_suffix(where.name):
        raise IjepaError(
            f"{text} is neither a folder nor an archive nor a list; names of archives end in "
            f"{', '.join((PLAIN, *COMPRESSED))}, of lists in {', '.join(lists.LISTS)}."
        )
    return where


def _folder(text: str, read: Callable[[Path], Source]) -> Source:
    if not text or not Path(text).is_dir():
        raise IjepaError(f"There is no folder {text!r}; unpack the archives of the data set there.")
    return read(Path(text))


def _published(text: str, kind: str) -> Source:
    """A data set with maps, of which the digest tells every file: lists in text choose images."""
    source = _tree(text, partial(read_published, kind=kind))
    if Path(text).is_dir():
        source = replace(source, digest=lambda: digest_of(walk(Path(text))))
    return replace(source, dense=published_labels(kind, Path(text)))


KINDS: dict[str, Callable[[str], Source]] = {
    **{kind: partial(_cifar, kind=kind) for kind in CIFAR},
    "clevr": lambda text: _tree(text, read_clevr),
    "imagenet": lambda text: lists.imagenet(_tree_path(text)),
    "imagenet22k": lambda text: _tree(text, partial(read_folders, folders_are_classes=True)),
    "inat18": lambda text: _folder(text, lists.inat18),
    "parquet": table_source,
    "places205": lambda text: _folder(text, lists.places205),
    "places365": lambda text: _folder(text, lists.places365),
    "scenes": rendered_scenes,
    "torchvision": torchvision_set,
    "webdataset": lambda text: replace(_tree(text, read_webdataset), has_members=True),
    **{kind: partial(_published, kind=kind) for kind in LAYOUTS},
}
