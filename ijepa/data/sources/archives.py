"""Tar archives, read in place by offset."""

import bz2
import gzip
import hashlib
import json
import lzma
import re
import tarfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any, NamedTuple

from ijepa.data.sources.items import is_image, kind_of, split_folders
from ijepa.data.sources.trees import Entry, Folder, Outline, Tree, is_hidden, is_listed, outline_of
from ijepa.errors import IjepaError
from ijepa.progress import Progress

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


@dataclass(frozen=True)
class Archive:
    """Plain tars read in place, by the list of their members in `spool` (JSON, one a line).

    Attributes:
        where: what to call it in messages.
        tars: the files; a member is known by the place of its tar in them.
        spool: the list of members; numbers of what it leaves out stand beside it.
    """

    where: str
    tars: tuple[Path, ...]
    spool: Path

    def entries(self) -> Iterator[Entry]:
        """Every file, in the order of the archive."""
        with self.spool.open() as lines:
            for line in lines:
                yield self._entry(line)

    def left_out(self) -> dict[str, int]:
        """Links, which are not followed."""
        found: dict[str, int] = json.loads(_left_out_path(self.spool).read_text())
        return found

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
        path, tar, offset, size_bytes = json.loads(line)
        return Entry(path, str(self.tars[tar]), offset, size_bytes, 0)


def archive_suffix(path: Path) -> str | None:
    """`.tar.gz` and so on; None if it is not an archive by its name."""
    return next((suffix for suffix in OPENERS if path.name.lower().endswith(suffix)), None)


def archives_in(folder: Path) -> tuple[Path, ...]:
    """The archives of a folder that holds nothing else that a source reads; else none."""
    found = sorted(path for path in folder.iterdir() if archive_suffix(path) and path.is_file())
    if not found or any(is_listed(Path(entry.path).name) for entry in Folder(folder).entries()):
        return ()
    return tuple(path for path in found if not is_hidden(path.name))


def open_tree(where: Path, work: Path, progress: Progress, parts: tuple[Path, ...] = ()) -> Tree:
    """Open a folder, or archives with the help of files in `work`.

    Compressed archives are unpacked to `work` once, each as one plain tar; plain ones are read in
    place. Several archives, those of a folder or within an archive, are one tree: each is a folder
    of its own name, or of the part of it that a numbered series has in common.

    Args:
        where: a folder or an archive.
        work: where to unpack, and to keep lists of members.
        progress: hears of both.
        parts: the archives to read, if they are several.

    Raises:
        IjepaError: an archive is damaged or cut short.
    """
    parts = parts or (archives_in(where) if where.is_dir() else (where,))
    if not parts:
        return Folder(where)
    tars = []
    for number, part in enumerate(parts):
        tar = part if archive_suffix(part) == ".tar" else work / f"plain-{number}.tar"
        if not tar.exists():
            _decompress(part, tar, progress)
        tars.append(tar)
    spool = work / "members.jsonl"
    if not spool.exists():
        _list_members(parts, tars, spool, progress)
    return Archive(str(where), tuple(tars), spool)


def tree_digest(where: Path, parts: tuple[Path, ...] = ()) -> str:
    """Changes whenever the folder's listing, or an archive's name, size or time, does."""
    parts = parts or (archives_in(where) if where.is_dir() else (where,))
    if not parts:
        return Folder(where).digest()
    total = hashlib.sha256()
    for part in parts:
        facts = part.stat()
        text = f"{part.name}\0{facts.st_size}\0{facts.st_mtime_ns}"
        total.update(text.encode(errors="surrogateescape"))
    return total.hexdigest()


def part_folders(names: Sequence[str]) -> list[str]:
    """The folder that each of several archives stands for, with a slash behind; or empty.

    Numbers that follow one another (`train-000000`, `train-000001`) are parts of one folder, which
    is none if there is no other. Any other archive is a folder: `n01440764.tar` holds a class.
    """
    stems = [name[: -len(archive_suffix(Path(name)) or "")] for name in names]
    series: dict[str, list[int]] = {}
    matches = [SERIES.fullmatch(stem) for stem in stems]
    for match in filter(None, matches):
        series.setdefault(match["name"], []).append(int(match["number"]))
    parts = {name for name, found in series.items() if len(found) > 1 and _follow(found)}
    folders = [
        match["name"] if match and match["name"] in parts else stem
        for stem, match in zip(stems, matches, strict=True)
    ]
    if len(set(folders)) == 1 and not split_folders(folders):
        return [""] * len(folders)
    return [f"{folder}/" if folder else "" for folder in folders]


def _follow(numbers: list[int]) -> bool:
    return sorted(numbers) == list(range(min(numbers), min(numbers) + len(numbers)))


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


def _list_members(
    parts: Sequence[Path], tars: Sequence[Path], spool: Path, progress: Progress
) -> None:
    """Write the list of members; of an archive that holds archives alone, those of all of them."""
    left_out = Counter[str]()
    half = spool.with_name(spool.name + ".tmp")
    folders = part_folders([part.name for part in parts]) if len(parts) > 1 else [""]
    with half.open("w") as lines:
        for number, (tar, part, folder) in enumerate(zip(tars, parts, folders, strict=True)):
            packed = _Packed(tar, part, progress, left_out)
            inner: list[tuple[str, int, int]] = []
            is_set = False
            for path, offset, size in packed.files():
                is_set = is_set or is_listed(path.rpartition("/")[2])
                if path.lower().endswith(".tar"):
                    inner.append((path, offset, size))
                else:
                    lines.write(json.dumps([folder + path, number, offset, size]) + "\n")
            if is_set:
                left_out[kind_of(".tar")] += len(inner)
                continue
            below = part_folders([path for path, _, _ in inner])
            for (_, start, length), name in zip(inner, below, strict=True):
                for path, offset, size in packed.files(start, length):
                    line = [f"{folder}{name}{path}", number, offset, size]
                    lines.write(json.dumps(line) + "\n")
    _left_out_path(spool).write_text(json.dumps(left_out))
    half.replace(spool)


def _left_out_path(spool: Path) -> Path:
    return spool.with_suffix(".left_out.json")


class _Packed(NamedTuple):
    """A plain tar, and what is told of it."""

    tar: Path
    where: Path
    progress: Progress
    left_out: Counter[str]

    def files(self, start: int = 0, size: int | None = None) -> Iterator[tuple[str, int, int]]:
        """Path, offset and size of each file; `start` and `size` choose a tar within the tar."""
        end = self.tar.stat().st_size if size is None else start + size
        try:
            with self.tar.open("rb") as file:
                file.seek(start)
                for number, member in enumerate(_members(file), start=1):
                    if number % REPORT_MEMBERS == 0:
                        self.progress(f"list {self.where.name}", number, None)
                    if member.offset_data + member.size > end:
                        raise tarfile.ReadError("unexpected end of data")
                    parts = [part for part in member.name.split("/") if part not in ("", ".")]
                    if not parts or any(is_hidden(part) for part in parts) or member.isdir():
                        continue
                    if member.isreg() and not member.issparse():
                        yield "/".join(parts), member.offset_data, member.size
                    else:
                        self.left_out["links within an archive"] += 1
                _check_end(file, end)
        except tarfile.TarError as error:
            raise _damaged(self.where, str(error)) from error


def _members(file: IO[bytes]) -> Iterator[tarfile.TarInfo]:
    """Members in order, none kept; `file` stands at the end afterwards."""
    with tarfile.open(fileobj=file, mode="r:") as archive:
        for member in archive:
            yield member
            archive.members = []  # type: ignore[attr-defined]  # else it remembers them all
        file.seek(archive.offset)


def _check_end(file: IO[bytes], end: int) -> None:
    """Tarfile alone takes a damaged header for the end, and passes over a second, joined archive.

    Raises:
        ReadError: there is no end mark, or something follows it.
    """
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
