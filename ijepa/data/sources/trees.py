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
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple, Self

from ijepa.data.sources.names import is_image, kind_of, split_folders
from ijepa.errors import IjepaError
from ijepa.files import naming
from ijepa.progress import Progress

OUTLINE_DEPTH = 5  # a wrapping folder, a split, perhaps once more, a class and the image
IMAGE = "*"  # stands for images in an outline
CHUNK_BYTES = 4 * 2**20
MAX_LABEL_BYTES = 2**20
REPORT_FILES = 10_000
SERIES = re.compile(r"(?P<name>.*?)[-_.]?(?P<number>\d+)", re.ASCII | re.DOTALL)
PLAIN = ".tar"
COMPRESSED: dict[str, Callable[[Path], Any]] = {
    ".tar.gz": gzip.open, ".tgz": gzip.open, ".tar.bz2": bz2.open, ".tar.xz": lzma.open,
}  # fmt: skip

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
        with naming(Path(self.file)), Path(self.file).open("rb", buffering=0) as file:
            return os.pread(file.fileno(), self.size_bytes, self.offset)

    def text(self) -> str:
        """Its bytes as UTF-8; an `IjepaError` if they are not, or too many for a label."""
        if self.size_bytes > MAX_LABEL_BYTES:
            size = f"has {self.size_bytes:,} bytes; a label has at most {MAX_LABEL_BYTES:,}"
            raise IjepaError(f"{self.path} in {self.file} {size}")
        try:
            return self.read().decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise IjepaError(f"{self.path} in {self.file} is not UTF-8: {error}") from error


class Tree:
    """Files of a folder, an archive, or several archives by relative path; without hidden ones.

    Compressed archives are unpacked to `work` once, each as one plain tar; plain ones are read in
    place. Several archives, `parts` or those of a folder or within an archive, are one tree: each
    is a folder of its own name, or of the part of it that a numbered series has in common.
    `left_out` counts what is no file of its own, such as links within a tar, and what its reader
    passes over; with `arrays`, `.npy` files are images.
    """

    def __init__(
        self,
        where: Path,
        work: Path,
        progress: Progress,
        parts: Sequence[Path] = (),
        *,
        arrays: bool = False,
    ) -> None:
        """List the files once, in a file in `work`: memory does not grow with their number."""
        parts = parts or _archives(where)
        tars = [_plain_tar(part, work / f"plain-{n}.tar", progress) for n, part in enumerate(parts)]
        self.where, self.is_packed = str(where), bool(parts)
        self.is_image = functools.partial(is_image, arrays=arrays)
        self._tars, self._list = [str(tar) for tar in tars], work / "members.jsonl"
        self.left_out = Counter[str]()
        with self._list.open("w") as lines:
            for number, line in enumerate(_lines(where, parts, tars, self.left_out), start=1):
                lines.write(json.dumps(line) + "\n")
                if number % REPORT_FILES == 0:
                    progress("list files", number, None)

    def entries(self) -> Iterator[Entry]:
        """Every file, in an order that is always the same."""
        with self._list.open() as lines:
            yield from map(self._entry, lines)

    @functools.cached_property
    def outline(self) -> Outline:
        """Folders that hold images, at most `OUTLINE_DEPTH` deep, with `IMAGE` for the images."""
        paths = (entry.path for entry in self.entries() if self.is_image(entry.path))
        return {(*path.split("/")[:-1], IMAGE)[:OUTLINE_DEPTH] for path in paths}

    def find(self, paths: Iterable[str]) -> dict[str, Entry]:
        """Those of some files that are there; in tar, later ones replace earlier ones."""
        wanted = set(paths)
        found = (entry for entry in self.entries() if entry.path in wanted) if wanted else ()
        return {entry.path: entry for entry in found}

    def _entry(self, line: str) -> Entry:
        path, tar, offset, size_bytes = json.loads(line)
        file = self._tars[tar] if tar >= 0 else f"{self.where}/{path}"
        return Entry(path, file, offset, size_bytes)


def digest_of(files: Iterable[Entry], start: bytes = b"") -> str:
    """Changes whenever the name, size or time of a file does; no file is read."""
    total = hashlib.sha256(start)
    for path, _, _, size_bytes, mtime_ns in files:
        total.update(f"{path}\0{size_bytes}\0{mtime_ns}\n".encode(errors="surrogateescape"))
    return total.hexdigest()


def tree_digest(where: Path, parts: Sequence[Path] = (), *, every: bool = False) -> str:
    """Digest of the files of a folder that a source could read, or of archives.

    With `every`, of all files of a folder, for kinds whose lists of classes have any name.
    """
    if every and where.is_dir():
        return digest_of(walk(where))
    if parts := parts or _archives(where):
        facts = [(part.name, part.stat()) for part in parts]
        text = "".join(f"{name}\0{one.st_size}\0{one.st_mtime_ns}" for name, one in facts)
        return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()
    return digest_of(one for one in walk(where) if _is_listed(one.path))


def archive_suffix(name: str) -> str:
    """`.tar.gz` and so on; empty if it is not an archive by its name."""
    return next((end for end in (PLAIN, *COMPRESSED) if name.lower().endswith(end)), "")


def walk(
    folder: Path, below: str = "", ancestors: tuple[tuple[int, int], ...] = ()
) -> Iterator[Entry]:
    """Every file of a folder, each folder sorted by name; symbolic links are followed.

    A link to nothing is an empty file, and so counts as an image that does not decode.
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


def _is_hidden(name: str) -> bool:
    """Is it a name that systems write beside a user's own, such as `.DS_Store`?"""
    return name.startswith(".") or name == "__MACOSX"


def _is_listed(path: str) -> bool:
    """Could a source want this file?"""
    name = path.rpartition("/")[2]
    others = (".json", ".cls", ".parquet", ".arrow")
    return is_image(name, arrays=True) or name.endswith(others)


def _archives(where: Path) -> Sequence[Path]:
    """The archive itself, or those of a folder that holds nothing else that a source reads."""
    if not where.is_dir():
        return (where,)
    archives = sorted(
        path for path in where.iterdir() if archive_suffix(path.name) and path.is_file()
    )
    if not archives or any(_is_listed(entry.path) for entry in walk(where)):
        return ()
    return [path for path in archives if not _is_hidden(path.name)]


def _plain_tar(archive: Path, plain: Path, progress: Progress) -> Path:
    """The archive itself, or `plain`, to which it is unpacked: whole or not there."""
    suffix = archive_suffix(archive.name)
    if suffix == PLAIN or plain.exists():
        return archive if suffix == PLAIN else plain
    half = plain.with_suffix(".tmp")
    try:
        with COMPRESSED[suffix](archive) as packed, half.open("wb") as file:
            while chunk := packed.read(CHUNK_BYTES):
                file.write(chunk)
                progress(f"unpack {archive.name} MB", file.tell() // 10**6, None)
    except (EOFError, zlib.error, lzma.LZMAError, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # else so gzip and bz2 say that it is not theirs
        raise _damaged(archive, error) from error
    return half.replace(plain)


def _part_folders(names: Sequence[str]) -> list[str]:
    """The folder that each of several archives stands for, with a slash behind; or empty.

    Numbers that follow one another (`train-000000`, `train-000001`) are parts of one folder, which
    is none if there is no other. Any other archive is a folder: `n01440764.tar` holds a class.
    """
    stems = [name[: -len(archive_suffix(name))] for name in names]
    matches = [SERIES.fullmatch(stem) for stem in stems]
    numbers: dict[str, set[int]] = defaultdict(set)
    for match in filter(None, matches):
        numbers[match["name"]].add(int(match["number"]))
    series = {
        name for name, found in numbers.items() if max(found) - min(found) + 1 == len(found) > 1
    }
    folders = [
        match["name"] if match and match["name"] in series else stem
        for stem, match in zip(stems, matches, strict=True)
    ]
    if len(set(folders)) == 1 and not split_folders(folders):
        return [""] * len(folders)
    return [f"{folder}/" if folder else "" for folder in folders]


def _lines(
    where: Path, parts: Sequence[Path], tars: Sequence[Path], left_out: Counter[str]
) -> Iterator[tuple[str, int, int, int]]:
    """Path, number of its tar (-1: none), offset and size of each file; tars of tars are opened."""
    if not parts:
        yield from ((entry.path, -1, 0, entry.size_bytes) for entry in walk(where))
        return
    folders = _part_folders([part.name for part in parts]) if len(parts) > 1 else [""]
    for number, (tar, part, folder) in enumerate(zip(tars, parts, folders, strict=True)):
        members = functools.partial(_members, tar, part, left_out)
        inner, holds_images = [], False
        for path, offset, size in members(0, tar.stat().st_size):
            holds_images = holds_images or _is_listed(path)
            if path.lower().endswith(PLAIN):
                inner.append((path, offset, size))
            else:
                yield folder + path, number, offset, size
        if holds_images:
            left_out[kind_of(PLAIN)] += len(inner)
            continue
        below = _part_folders([path for path, _, _ in inner])
        for (_, start, length), name in zip(inner, below, strict=True):
            for path, offset, size in members(start, length):
                yield f"{folder}{name}{path}", number, offset, size


def _members(
    tar: Path, where: Path, left_out: Counter[str], start: int, size: int
) -> Iterator[tuple[str, int, int]]:
    """Path, offset and size of each file of a plain tar, or of one within it."""
    try:
        with tar.open("rb") as file:
            file.seek(start)
            with tarfile.open(fileobj=file, mode="r:", tarinfo=StrictHeader) as archive:
                for member in archive:
                    archive.members = []  # type: ignore[attr-defined]  # else it keeps them all
                    if member.offset_data + member.size > start + size:
                        raise tarfile.ReadError("unexpected end of data")
                    parts = [part for part in member.name.split("/") if part not in ("", ".")]
                    if not parts or any(map(_is_hidden, parts)) or member.isdir():
                        continue
                    if member.isreg() and not member.issparse():
                        yield "/".join(parts), member.offset_data, member.size
                    else:
                        left_out["links within an archive"] += 1
            _refuse_more(file, archive.offset, start + size)
    except tarfile.TarError as error:
        raise _damaged(where, error) from error


def _refuse_more(file: IO[bytes], at: int, end: int) -> None:
    """Refuse what stands behind the end mark, as a second archive does, where tarfile stops."""
    file.seek(at)
    while chunk := file.read(max(0, min(CHUNK_BYTES, end - file.tell()))):
        if chunk.count(0) < len(chunk):
            raise tarfile.ReadError(
                f"something follows the end mark at byte {at:,}; if archives were joined, unpack "
                f"it with `tar --ignore-zeros -xf`"
            )


class StrictHeader(tarfile.TarInfo):
    """One that is damaged or missing is an error, where tarfile would take it for the end."""

    @classmethod
    def fromtarfile(cls, tar: tarfile.TarFile) -> Self:
        """As tarfile's."""
        try:
            return super().fromtarfile(tar)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]  # the end mark
            raise
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(f"no end mark, but {error}") from error


def _damaged(archive: Path, error: Exception) -> IjepaError:
    reason = str(error) or "unexpected end"
    return IjepaError(f"{archive} is not a whole archive ({reason}); copy it again.")
