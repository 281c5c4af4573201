"""Files by relative path, of a folder or of tar archives: listed once, bytes read in place."""

import bz2
import functools
import gzip
import hashlib
import json
import lzma
import os
import re
import tarfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from functools import partial
from pathlib import Path
from typing import IO, Any, NamedTuple

from ijepa.data.sources.items import is_image, kind_of, split_folders
from ijepa.errors import IjepaError
from ijepa.files import write_json
from ijepa.progress import Progress

PICKLES = frozenset(  # CIFAR-10's and CIFAR-100's
    [f"data_batch_{number}" for number in range(1, 6)]
    + ["test_batch", "batches.meta", "train", "test", "meta"]
)
OUTLINE_DEPTH = 5  # a wrapping folder, a split, perhaps once more, a class and the image
IMAGE = "*"  # stands for images in an outline
CHUNK_BYTES = 4 * 2**20
REPORT_MEMBERS = 10_000
SERIES = re.compile(r"(?P<name>.*?)[-_.]?(?P<number>\d+)", re.ASCII | re.DOTALL)
OPENERS: dict[str, Callable[[Path], Any]] = {
    ".tar": partial(Path.open, mode="rb"),
    ".tar.gz": gzip.open,
    ".tgz": gzip.open,
    ".tar.bz2": bz2.open,
    ".tar.xz": lzma.open,
}

Outline = set[tuple[str, ...]]


class Entry(NamedTuple):
    """A file of a tree: its relative path, and where its bytes lie."""

    path: str
    file: str
    offset: int
    size_bytes: int
    mtime_ns: int = 0

    def read(self) -> bytes:
        """All its bytes."""
        with Path(self.file).open("rb") as file:
            return os.pread(file.fileno(), self.size_bytes, self.offset)


class Tree:
    """Files by relative path, as a list in `spool` has them; hidden ones are left out.

    Attributes:
        where: what to call it in messages.
        is_packed: are these archives?
        left_out: numbers of what is there and is no file of its own, such as links within a tar.
    """

    def __init__(self, where: str, tars: Sequence[Path], spool: Path) -> None:
        """Read the list as often as it is asked for; a line holds the number of a tar, or -1."""
        self.where, self._tars, self._spool = where, [str(tar) for tar in tars], spool
        self.is_packed = bool(tars)
        self.left_out: dict[str, int] = json.loads(_left_out_path(spool).read_text())

    def entries(self) -> Iterator[Entry]:
        """Every file, in an order that is always the same."""
        with self._spool.open() as lines:
            yield from map(self._entry, lines)

    @functools.cached_property
    def outline(self) -> Outline:
        """Folders that hold images, at most `OUTLINE_DEPTH` deep, with `IMAGE` for the images."""
        paths = (entry.path for entry in self.entries() if is_image(entry.path))
        return {(*path.split("/")[:-1], IMAGE)[:OUTLINE_DEPTH] for path in paths}

    def find(self, *paths: str) -> dict[str, Entry]:
        """Those of some files that are there; in tar, later ones replace earlier ones."""
        starts = tuple(f"[{json.dumps(path)}, " for path in paths)
        with self._spool.open() as lines:
            found = (self._entry(line) for line in lines if line.startswith(starts))
            return {entry.path: entry for entry in found}

    def _entry(self, line: str) -> Entry:
        path, tar, offset, size_bytes = json.loads(line)
        file = self._tars[tar] if tar >= 0 else f"{self.where}/{path}"
        return Entry(path, file, offset, size_bytes)


def open_tree(where: Path, work: Path, progress: Progress, parts: tuple[Path, ...] = ()) -> Tree:
    """Open a folder, or archives with the help of files in `work`.

    Compressed archives are unpacked to `work` once, each as one plain tar; plain ones are read in
    place. Several archives, those of a folder or within an archive, are one tree: each is a folder
    of its own name, or of the part of it that a numbered series has in common.

    Args:
        where: a folder or an archive.
        work: where to unpack, and to keep the list of files.
        progress: hears of both.
        parts: the archives to read, if they are several.
    """
    parts = parts or _archives(where)
    tars = []
    for number, part in enumerate(parts):
        tar = part if archive_suffix(part) == ".tar" else work / f"plain-{number}.tar"
        if not tar.exists():
            _decompress(part, tar, progress)
        tars.append(tar)
    spool, left_out = work / "members.jsonl", Counter[str]()
    if not spool.exists():
        half = spool.with_suffix(".tmp")
        with half.open("w") as lines:
            if parts:
                found = _members_of_all(parts, tars, progress, left_out)
            else:
                found = ((entry.path, -1, 0, entry.size_bytes) for entry in walk(where))
            lines.writelines(json.dumps(line) + "\n" for line in found)
        write_json(_left_out_path(spool), left_out)
        half.replace(spool)
    return Tree(str(where), tars, spool)


def tree_digest(where: Path, parts: tuple[Path, ...] = ()) -> str:
    """Changes whenever the folder's listing, or an archive's name, size or time, does."""
    total = hashlib.sha256()
    parts = parts or _archives(where)
    for part in parts:
        facts = part.stat()
        text = f"{part.name}\0{facts.st_size}\0{facts.st_mtime_ns}"
        total.update(text.encode(errors="surrogateescape"))
    for entry in () if parts else walk(where):
        if _is_listed(entry.path):
            line = f"{entry.path}\0{entry.size_bytes}\0{entry.mtime_ns}\n"
            total.update(line.encode(errors="surrogateescape"))
    return total.hexdigest()


def archive_suffix(path: Path) -> str | None:
    """`.tar.gz` and so on; None if it is not an archive by its name."""
    return next((suffix for suffix in OPENERS if path.name.lower().endswith(suffix)), None)


def walk(
    folder: Path, below: str = "", ancestors: tuple[tuple[int, int], ...] = ()
) -> Iterator[Entry]:
    """Every file of a folder, each folder sorted by name; symbolic links are followed.

    A link to nothing is an empty file, and so counts as an image that does not decode.

    Raises:
        IjepaError: a link leads back to a folder that holds it, which would never end.
    """
    facts = folder.stat()
    identity = (facts.st_dev, facts.st_ino)
    if identity in ancestors:
        raise IjepaError(f"{folder} is a symbolic link to a folder that holds it; remove the link.")
    with os.scandir(folder) as scan:
        entries = sorted((e for e in scan if not _is_hidden(e.name)), key=lambda entry: entry.name)
    for entry in entries:
        path = f"{below}{entry.name}"
        if entry.is_dir():
            yield from walk(Path(entry.path), f"{path}/", (*ancestors, identity))
        elif entry.is_file():
            facts = entry.stat()
            yield Entry(path, entry.path, 0, facts.st_size, facts.st_mtime_ns)
        elif entry.is_symlink():
            yield Entry(path, entry.path, 0, 0)


def unlisted(files: Iterable[str], listed: AbstractSet[str]) -> dict[str, int]:
    """Count the images among `files` that a list of a data set's images does not name.

    Args:
        files: paths.
        listed: paths that are named, normalised as `files` are.
    """
    unnamed = sum(is_image(file) and file not in listed for file in files)
    return {"images that no list of the data set names": unnamed} if unnamed else {}


def _is_hidden(name: str) -> bool:
    """Is it a name that systems write beside a user's own, such as `.DS_Store`?"""
    return name.startswith(".") or name == "__MACOSX"


def _is_listed(path: str) -> bool:
    """Could a source want this file?"""
    name = path.rpartition("/")[2]
    return is_image(name) or name.endswith((".json", ".cls")) or name in PICKLES


def _archives(where: Path) -> tuple[Path, ...]:
    """The archive itself, or those of a folder that holds nothing else that a source reads."""
    if not where.is_dir():
        return (where,)
    found = sorted(path for path in where.iterdir() if archive_suffix(path) and path.is_file())
    if not found or any(_is_listed(entry.path) for entry in walk(where)):
        return ()
    return tuple(path for path in found if not _is_hidden(path.name))


def _left_out_path(spool: Path) -> Path:
    return spool.with_suffix(".left_out.json")


def _part_folders(names: Sequence[str]) -> list[str]:
    """The folder that each of several archives stands for, with a slash behind; or empty.

    Numbers that follow one another (`train-000000`, `train-000001`) are parts of one folder, which
    is none if there is no other. Any other archive is a folder: `n01440764.tar` holds a class.
    """
    stems = [name[: -len(archive_suffix(Path(name)) or "")] for name in names]
    matches = [SERIES.fullmatch(stem) for stem in stems]
    series: dict[str, list[int]] = {}
    for match in filter(None, matches):
        series.setdefault(match["name"], []).append(int(match["number"]))
    parts = {
        name
        for name, found in series.items()
        if len(found) > 1 and sorted(found) == list(range(min(found), min(found) + len(found)))
    }
    folders = [
        match["name"] if match and match["name"] in parts else stem
        for stem, match in zip(stems, matches, strict=True)
    ]
    if len(set(folders)) == 1 and not split_folders(folders):
        return [""] * len(folders)
    return [f"{folder}/" if folder else "" for folder in folders]


def _decompress(archive: Path, plain: Path, progress: Progress) -> None:
    """Unpack to one plain tar; whole under its name or not there."""
    half = plain.with_name(plain.name + ".tmp")
    try:
        with OPENERS[archive_suffix(archive) or ""](archive) as packed, half.open("wb") as file:
            while chunk := packed.read(CHUNK_BYTES):
                file.write(chunk)
                progress(f"unpack {archive.name} MB", file.tell() // 10**6, None)
    except (EOFError, zlib.error, lzma.LZMAError) as error:
        raise _damaged(archive, str(error)) from error
    except OSError as error:
        if error.errno is not None:
            raise
        raise _damaged(archive, str(error)) from error  # so gzip and bz2 say that it is not theirs
    half.replace(plain)


def _members_of_all(
    parts: Sequence[Path], tars: Sequence[Path], progress: Progress, left_out: Counter[str]
) -> Iterator[tuple[str, int, int, int]]:
    """Path, number of the tar, offset and size; of tars that hold tars alone, what those hold."""
    folders = _part_folders([part.name for part in parts]) if len(parts) > 1 else [""]
    for number, (tar, part, folder) in enumerate(zip(tars, parts, folders, strict=True)):
        listed = partial(_members, tar, part, progress, left_out)
        inner: list[tuple[str, int, int]] = []
        holds_images = False
        for path, offset, size in listed(0, tar.stat().st_size):
            holds_images = holds_images or _is_listed(path)
            if path.lower().endswith(".tar"):
                inner.append((path, offset, size))
            else:
                yield folder + path, number, offset, size
        if holds_images:
            left_out[kind_of(".tar")] += len(inner)
            continue
        below = _part_folders([path for path, _, _ in inner])
        for (_, start, length), name in zip(inner, below, strict=True):
            for path, offset, size in listed(start, length):
                yield f"{folder}{name}{path}", number, offset, size


def _members(
    tar: Path, where: Path, progress: Progress, left_out: Counter[str], start: int, size: int
) -> Iterator[tuple[str, int, int]]:
    """Path, offset and size of each file of a plain tar, or of one within it."""
    try:
        with tar.open("rb") as file:
            file.seek(start)
            with tarfile.open(fileobj=file, mode="r:") as archive:
                for number, member in enumerate(archive, start=1):
                    archive.members = []  # type: ignore[attr-defined]  # else it keeps them all
                    if number % REPORT_MEMBERS == 0:
                        progress(f"list {where.name}", number, None)
                    if member.offset_data + member.size > start + size:
                        raise tarfile.ReadError("unexpected end of data")
                    parts = [part for part in member.name.split("/") if part not in ("", ".")]
                    if not parts or any(map(_is_hidden, parts)) or member.isdir():
                        continue
                    if member.isreg() and not member.issparse():
                        yield "/".join(parts), member.offset_data, member.size
                    else:
                        left_out["links within an archive"] += 1
                file.seek(archive.offset)
            _check_end(file, start + size)
    except tarfile.TarError as error:
        raise _damaged(where, str(error)) from error


def _check_end(file: IO[bytes], end: int) -> None:
    """Refuse what tarfile passes over: a damaged header taken for the end, a second archive."""
    at = file.tell()
    if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
        raise tarfile.ReadError(f"no end mark at byte {at:,}")
    while file.tell() < end and (chunk := file.read(min(CHUNK_BYTES, end - file.tell()))):
        if chunk.count(0) < len(chunk):
            raise tarfile.ReadError(
                f"something follows the end mark at byte {at:,}; if archives were joined, unpack "
                f"it with `tar --ignore-zeros -xf`"
            )


def _damaged(archive: Path, reason: str) -> IjepaError:
    return IjepaError(
        f"{archive} is not a whole archive ({reason or 'unexpected end'}); copy it again."
    )
