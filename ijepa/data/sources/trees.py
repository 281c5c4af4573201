"""Files by relative path; here those of a folder, in `archives.py` those of a tar."""

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

from ijepa.data.sources.items import is_image
from ijepa.errors import IjepaError

PICKLES = frozenset(  # CIFAR-10's and CIFAR-100's
    [f"data_batch_{number}" for number in range(1, 6)]
    + ["test_batch", "batches.meta", "train", "test", "meta"]
)
OUTLINE_DEPTH = 5  # a wrapping folder, a split, perhaps once more, a class and the image
IMAGE = "*"  # stands for images in an outline

Outline = set[tuple[str, ...]]


class Entry(NamedTuple):
    """A file of a tree: its relative path and where its bytes lie."""

    path: str
    file: str
    offset: int
    size_bytes: int
    mtime_ns: int


class Tree(Protocol):
    """Files by relative path; hidden ones are left out."""

    @property
    def where(self) -> str:
        """What to call it in messages."""

    def entries(self) -> Iterator[Entry]:
        """Every file, in an order that is always the same."""

    def left_out(self) -> dict[str, int]:
        """Numbers of what is there and is no file of its own, such as links within a tar."""

    def outline(self) -> Outline:
        """Folders that hold images, at most `OUTLINE_DEPTH` deep, with `IMAGE` for the images."""

    def find(self, path: str) -> Entry | None:
        """The file of that path, if there is one."""


@dataclass(frozen=True)
class Folder:
    """A folder on disk; symbolic links are followed."""

    root: Path

    @property
    def where(self) -> str:
        """The folder's path."""
        return str(self.root)

    def entries(self) -> Iterator[Entry]:
        """Every file, each folder sorted by name; at most one folder's names are in memory."""
        return _walk(self.root, "", ())

    def left_out(self) -> dict[str, int]:
        """Nothing: links are followed."""
        return {}

    def outline(self) -> Outline:
        """Read names only, and below the depth only until the first image."""
        return set(_outline(self.root, ()))

    def find(self, path: str) -> Entry | None:
        """Look it up without listing."""
        file = self.root / path
        if not file.is_file():
            return None
        facts = file.stat()
        return Entry(path, str(file), 0, facts.st_size, facts.st_mtime_ns)

    def digest(self) -> str:
        """sha256 over path, size and time of every file that a source may read; reads none."""
        total = hashlib.sha256()
        for entry in self.entries():
            if not is_listed(entry.path.rpartition("/")[2]):
                continue
            line = f"{entry.path}\0{entry.size_bytes}\0{entry.mtime_ns}\n"
            total.update(line.encode(errors="surrogateescape"))
        return total.hexdigest()


def outline_of(path: str) -> tuple[str, ...]:
    """What the image at `path` adds to an outline."""
    return (*path.split("/")[:-1], IMAGE)[:OUTLINE_DEPTH]


def is_hidden(name: str) -> bool:
    """Is it a name that systems write beside a user's own, such as `.DS_Store`?"""
    return name.startswith(".") or name == "__MACOSX"


def is_listed(name: str) -> bool:
    """Could a source want this file?"""
    return is_image(name) or name.endswith((".json", ".cls")) or name in PICKLES


def _walk(folder: Path, below: str, ancestors: tuple[tuple[int, int], ...]) -> Iterator[Entry]:
    ancestors = _guarded(folder, ancestors)
    for entry in _sorted_scan(folder):
        path = f"{below}{entry.name}"
        if entry.is_dir():
            yield from _walk(Path(entry.path), f"{path}/", ancestors)
        else:
            yield from _file(entry, path)


def _file(entry: os.DirEntry[str], path: str) -> Iterator[Entry]:
    if entry.is_file():
        facts = entry.stat()
        yield Entry(path, entry.path, 0, facts.st_size, facts.st_mtime_ns)
    elif entry.is_symlink():
        yield Entry(path, entry.path, 0, 0, 0)  # dangling: counted as an image that does not decode


def _guarded(folder: Path, ancestors: tuple[tuple[int, int], ...]) -> tuple[tuple[int, int], ...]:
    """Ancestors with `folder`; a link back to one of them would never end."""
    facts = folder.stat()
    identity = (facts.st_dev, facts.st_ino)
    if identity in ancestors:
        raise IjepaError(f"{folder} is a symbolic link to a folder that holds it; remove the link.")
    return (*ancestors, identity)


def _sorted_scan(folder: Path) -> list[os.DirEntry[str]]:
    with os.scandir(folder) as scan:
        return sorted((e for e in scan if not is_hidden(e.name)), key=lambda entry: entry.name)


def _outline(folder: Path, parts: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    if len(parts) == OUTLINE_DEPTH:
        if any(is_image(entry.path) for entry in _walk(folder, "", ())):
            yield parts
        return
    has_images = False
    with os.scandir(folder) as scan:
        for entry in scan:
            if is_hidden(entry.name):
                continue
            if entry.is_dir():
                yield from _outline(Path(entry.path), (*parts, entry.name))
            else:
                has_images = has_images or is_image(entry.name)
    if has_images:
        yield (*parts, IMAGE)
