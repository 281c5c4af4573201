"""Tar archives, read in place by offset."""

import bz2
import gzip
import hashlib
import json
import logging
import lzma
import tarfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from ijepa.errors import IjepaError
from ijepa.progress import Progress
from ijepa.sources.items import is_image
from ijepa.sources.trees import Entry, Folder, Outline, Tree, is_hidden, is_listed, outline_of

CHUNK_BYTES = 4 * 2**20

log = logging.getLogger(__name__)


OPENERS: dict[str, Callable[[Path], Any]] = {
    ".tar": partial(Path.open, mode="rb"),
    ".tar.gz": gzip.open,
    ".tgz": gzip.open,
    ".tar.bz2": bz2.open,
    ".tar.xz": lzma.open,
}


@dataclass(frozen=True)
class Archive:
    """A plain tar read in place, by the list of its members in `spool` (JSON, one a line)."""

    where: str
    tar: Path
    spool: Path

    def entries(self) -> Iterator[Entry]:
        """Every file, in the order of the archive."""
        with self.spool.open() as lines:
            for line in lines:
                yield self._entry(line)

    def outline(self) -> Outline:
        """One pass over the list of members."""
        return {outline_of(entry.path) for entry in self.entries() if is_image(entry.path)}

    def find(self, path: str) -> Entry | None:
        """The last member of that name: in tar, later ones replace earlier ones."""
        start = f"[{json.dumps(path)}, "
        with self.spool.open() as lines:
            found = [line for line in lines if line.startswith(start)]
        return self._entry(found[-1]) if found else None

    def _entry(self, line: str) -> Entry:
        path, offset, size_bytes = json.loads(line)
        return Entry(path, str(self.tar), offset, size_bytes, 0)


def archive_suffix(path: Path) -> str | None:
    """`.tar.gz` and so on; None if it is not an archive by its name."""
    return next((suffix for suffix in OPENERS if path.name.lower().endswith(suffix)), None)


def open_tree(where: Path, work: Path, progress: Progress) -> Tree:
    """Open a folder, or an archive with the help of files in `work`.

    A compressed archive is unpacked to `work` once, as one plain tar; a plain one is read in place.

    Raises:
        IjepaError: the archive is damaged or cut short.
    """
    if where.is_dir():
        return Folder(where)
    tar = where if archive_suffix(where) == ".tar" else work / "plain.tar"
    if not tar.exists():
        _decompress(where, tar, progress)
    spool = work / "members.jsonl"
    if not spool.exists():
        _list_members(tar, spool, where, progress)
    return Archive(str(where), tar, spool)


def tree_digest(where: Path) -> str:
    """Changes whenever the folder's listing, or the archive's name, size or time, does."""
    if where.is_dir():
        return Folder(where).digest()
    facts = where.stat()
    text = f"{where.name}\0{facts.st_size}\0{facts.st_mtime_ns}"
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()


def _decompress(archive: Path, plain: Path, progress: Progress) -> None:
    """Unpack to one plain tar; whole under its name or not there."""
    half = plain.with_name(plain.name + ".tmp")
    task = f"unpack {archive.name} MB"
    opener = OPENERS[archive_suffix(archive) or ".tar"]
    try:
        with opener(archive) as packed, half.open("wb") as file:
            while chunk := packed.read(CHUNK_BYTES):
                file.write(chunk)
                progress(task, file.tell() // 10**6, None)
    except (EOFError, zlib.error, lzma.LZMAError) as error:
        raise _damaged(archive, str(error)) from error
    except OSError as error:
        if error.errno is not None:
            raise
        raise _damaged(archive, str(error)) from error  # so gzip and bz2 say that it is not theirs
    half.replace(plain)


def _list_members(tar: Path, spool: Path, where: Path, progress: Progress) -> None:
    half = spool.with_name(spool.name + ".tmp")
    left_out = 0
    with half.open("w") as lines:
        for number, member in enumerate(_members(tar, where), start=1):
            if number % 10_000 == 0:
                progress(f"list {where.name}", number, None)
            parts = [part for part in member.name.split("/") if part not in ("", ".")]
            if any(is_hidden(part) for part in parts) or not (parts and is_listed(parts[-1])):
                continue
            is_plain = member.isreg() and not member.issparse()
            left_out += not (is_plain or member.isdir())
            if is_plain:
                line = ["/".join(parts), member.offset_data, member.size]
                lines.write(json.dumps(line) + "\n")
    if left_out:
        log.warning("%s: left out %d links; archives are read for plain files.", where, left_out)
    half.replace(spool)


def _members(tar: Path, where: Path) -> Iterator[tarfile.TarInfo]:
    """Members in order, none kept; tarfile alone takes a damaged header for the end."""
    try:
        with tarfile.open(tar, "r:") as archive:
            for member in archive:
                yield member
                archive.members = []  # type: ignore[attr-defined]  # else it remembers them all
            end = archive.offset
    except tarfile.TarError as error:
        raise _damaged(where, str(error)) from error
    with tar.open("rb") as file:
        file.seek(end)
        if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            raise _damaged(where, f"no end mark at byte {end:,}")


def _damaged(archive: Path, reason: str) -> IjepaError:
    return IjepaError(
        f"{archive} is not a whole archive ({reason or 'unexpected end'}); copy it again."
    )
