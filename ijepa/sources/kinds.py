"""Every kind of source by name: `kind:path`, or a path alone whose layout tells."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from ijepa.errors import IjepaError
from ijepa.progress import Progress
from ijepa.sources.archives import OPENERS, archive_suffix, open_tree, tree_digest
from ijepa.sources.clevr import is_clevr, read_clevr
from ijepa.sources.folders import read_folders
from ijepa.sources.items import Contents
from ijepa.sources.trees import Tree


class Source(Protocol):
    """A data set that can be read image by image."""

    def digest(self) -> str:
        """Changes whenever what is read may have changed; found out without reading images."""

    def read(self, work: Path, splits: tuple[str, ...], workers: int, report: Progress) -> Contents:
        """List the images of `splits` (empty: all); `work` keeps what must be made for that."""


TreeReader = Callable[[Tree, tuple[str, ...]], Contents]


@dataclass(frozen=True)
class TreeSource:
    """Files in a folder or an archive, understood by `reader`."""

    where: Path
    reader: TreeReader

    def digest(self) -> str:
        """From names, sizes and times."""
        return tree_digest(self.where)

    def read(self, work: Path, splits: tuple[str, ...], _: int, report: Progress) -> Contents:
        """Compressed archives are unpacked first."""
        return self.reader(open_tree(self.where, work, report), splits)


@dataclass(frozen=True)
class ScenesSource:
    """CLEVR scenes that we draw ourselves."""

    spec: str

    def digest(self) -> str:
        """From the specification alone."""
        from ijepa.sources.scenes import parse_spec

        return hashlib.sha256(parse_spec(self.spec).model_dump_json().encode()).hexdigest()

    def read(self, work: Path, splits: tuple[str, ...], workers: int, report: Progress) -> Contents:
        """Render, then read as any CLEVR."""
        from ijepa.sources.scenes import parse_spec, render_scenes

        folder = work / "scenes"
        render_scenes(parse_spec(self.spec), folder, workers, report)
        return read_clevr(open_tree(folder, work, report), splits)


def open_source(text: str) -> Source:
    """Understand what the user named.

    Raises:
        IjepaError: no such kind, or nothing there.
    """
    kind, colon, rest = text.partition(":")
    if colon and not Path(text).exists():
        if kind not in KINDS:
            raise IjepaError(
                f"There is no source {text!r}; name a path, or kind:path with one of "
                f"{', '.join(sorted(KINDS))}."
            )
        return KINDS[kind](rest)
    return _tree(_by_layout)(text)


def _tree(reader: TreeReader) -> Callable[[str], Source]:
    def opened(text: str) -> Source:
        where = Path(text)
        if not where.exists():
            raise IjepaError(f"There is no data set at {text or 'an empty path'}.")
        if not where.is_dir() and archive_suffix(where) is None:
            raise IjepaError(
                f"{text} is neither a folder nor an archive; archives end in {', '.join(OPENERS)}."
            )
        return TreeSource(where, reader)

    return opened


def _by_layout(tree: Tree, splits: tuple[str, ...]) -> Contents:
    return read_clevr(tree, splits) if is_clevr(tree) else read_folders(tree, splits)


KINDS: dict[str, Callable[[str], Source]] = {
    "clevr": _tree(read_clevr),
    "imagenet": _tree(read_folders),
    "scenes": ScenesSource,
}
