"""Decide which image goes into which shard, on disk: memory does not grow with the data set."""

import contextlib
import hashlib
import json
import os
import sqlite3
import urllib.parse
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from ijepa.data.shards import read_lines
from ijepa.data.sources.items import Item
from ijepa.errors import IjepaError

BLOCK_BYTES = 512
# Besides its content a tar member takes a header, and its end is filled up to a whole block. A
# sample is an image, a `.json` of about one block and a `.cls`.
OVERHEAD_BYTES = 5 * BLOCK_BYTES
REPLACED = "members of an archive that a later one of the same name replaces"
ESCAPED = frozenset('.%~\\"*:<>?|')  # suffixes, our own marks, what some file systems refuse
SHOWN_LINES = 3  # in an error

SCHEMA = """
PRAGMA journal_mode=OFF; PRAGMA synchronous=OFF; BEGIN;
CREATE TABLE shards (id INTEGER PRIMARY KEY, split TEXT, number INTEGER);
CREATE TABLE images (
    id INTEGER PRIMARY KEY, shard INTEGER, key TEXT, suffix TEXT, file BLOB, offset INTEGER,
    bytes INTEGER, labels TEXT, metadata TEXT
);
CREATE TABLE left_out (reason TEXT, number INTEGER);
CREATE TEMP TABLE drawn (place BLOB, image TEXT);
"""


class PlannedShard(NamedTuple):
    """A shard to write."""

    id: int
    split: str
    number: int
    num_images: int

    @property
    def name(self) -> str:
        """Name of its tar."""
        return f"{self.split}-{self.number:06d}.tar"


# Key, file, offset, size in bytes, labels and metadata of an image to write, see `Item`.
PlannedImage = tuple[str, str, int, int, dict[str, int], dict[str, Any]]


class ShardPlan:
    """A finished plan on disk; any number of processes may read it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def shards(self) -> list[PlannedShard]:
        """All shards, split by split."""
        query = (
            "SELECT shards.id, split, number, COUNT(images.id) FROM shards"
            " LEFT JOIN images ON shard = shards.id GROUP BY shards.id ORDER BY split, number"
        )
        return [PlannedShard(*row) for row in self._read(query)]

    def left_out(self) -> dict[str, int]:
        """Numbers of files and images that did not come along, by reason."""
        return dict(self._read("SELECT reason, number FROM left_out"))

    def images(self, shard: PlannedShard) -> Iterator[PlannedImage]:
        """Images of a shard, in the order of the source."""
        query = (
            "SELECT key, file, offset, bytes, labels, metadata FROM images WHERE shard = ?"
            " ORDER BY id"
        )
        for key, file, offset, size, labels, metadata in self._read(query, shard.id):
            yield key, os.fsdecode(file), offset, size, json.loads(labels), json.loads(metadata)

    def _read(self, query: str, *values: object) -> Iterator[Any]:
        uri = f"file:{urllib.parse.quote(os.fsencode(self.path.resolve()))}?mode=ro&immutable=1"
        with contextlib.closing(sqlite3.connect(uri, uri=True)) as plan:
            yield from plan.execute(query, values)


class Subset:
    """The samples to keep: keys, paths or file names, one a line, with or without a suffix.

    Raises:
        IjepaError: there is no such file, or it is empty.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._lines = path, set(read_lines(path))
        self._found: set[str] = set()

    def holds(self, item: Item) -> bool:
        """Does a line name this image? A file name alone names all images called so."""
        key, _ = sample_key(item.split, item.name)
        file = PurePosixPath(item.path)
        names = {key, item.path, str(file.with_suffix("")), item.name, file.name, file.stem}
        found = names & self._lines
        self._found |= found
        return bool(found)

    def check_all_found(self) -> None:
        """Refuse a list of which some lines name no image.

        Raises:
            IjepaError: naming the first of them.
        """
        lost = sorted(self._lines - self._found)
        if lost:
            raise IjepaError(
                f"{self._path}: {len(lost):,} of {len(self._lines):,} lines name no image of the "
                f"source, such as {', '.join(lost[:SHOWN_LINES])}; write keys, paths or file names."
            )


def write_plan(
    path: Path,
    items: Iterable[Item],
    shard_bytes: int,
    left_out: Counter[str],
    *,
    shuffle: bool = False,
) -> ShardPlan:
    """Divide images into shards of about `shard_bytes`.

    Args:
        path: where to write the plan.
        items: the images.
        shard_bytes: the size at which a shard is closed.
        left_out: numbers by reason, complete once `items` is read; the plan keeps them.
        shuffle: order images by a hash of their names, so that shards mix classes: streams are
            shuffled a buffer at a time.

    Raises:
        IjepaError: two entries of a list name the same image, or the disk is full.
    """
    half = path.with_name(path.name + ".tmp")
    half.unlink(missing_ok=True)
    try:
        with contextlib.closing(sqlite3.connect(half, isolation_level=None)) as plan:
            plan.executescript(SCHEMA)
            rows = _rows(plan, _shuffled(plan, items) if shuffle else items, shard_bytes)
            plan.executemany("INSERT INTO images VALUES (NULL, ?, ?, ?, ?, ?, ?, ?, ?)", rows)
            plan.execute("CREATE INDEX by_key ON images (key)")
            left_out[REPLACED] += _tell_apart(plan)
            plan.executemany("INSERT INTO left_out VALUES (?, ?)", (+left_out).items())
            plan.execute("CREATE INDEX by_shard ON images (shard)")
            plan.execute("COMMIT")
    except sqlite3.OperationalError as error:
        raise IjepaError(
            f"The list of images cannot be written to {path} ({error}); see that there is space on "
            f"its disk and in the system's temporary folder."
        ) from error
    with half.open("rb") as file:
        os.fsync(file.fileno())
    half.replace(path)
    return ShardPlan(path)


def sample_key(split: str, name: str) -> tuple[str, str]:
    """Key and suffix of the image `name` of a split.

    The key is `<split>/<name without suffix>`, percent-encoded where WebDataset readers or file
    systems would stumble; `/`, spaces and letters of any script stay as they are.
    """
    stem, _, suffix = name.rpartition(".")
    if not stem or not suffix or "/" in suffix:
        stem, suffix = name, ""
    return f"{split}/{_escaped(stem)}", _escaped(suffix)


def readable(text: str) -> str:
    """Escape bytes that are not UTF-8, so that a name can be hashed and printed."""
    return text.encode(errors="backslashreplace").decode()


def _escaped(text: str) -> str:
    return "".join(
        "".join(f"%{byte:02X}" for byte in letter.encode(errors="surrogateescape"))
        if letter in ESCAPED or not letter.isprintable()
        else letter
        for letter in text
    )


def _shuffled(plan: sqlite3.Connection, items: Iterable[Item]) -> Iterator[Item]:
    """Items ordered by a hash of their names, whatever the order of the source."""

    def row(item: Item) -> tuple[bytes, str]:
        name = f"{item.split}/{item.name}".encode(errors="surrogateescape")
        return hashlib.sha256(name).digest(), json.dumps(item)

    plan.executemany("INSERT INTO drawn VALUES (?, ?)", map(row, items))
    for (text,) in plan.execute("SELECT image FROM drawn ORDER BY place, rowid"):
        yield Item(*json.loads(text))


def _rows(
    plan: sqlite3.Connection, items: Iterable[Item], shard_bytes: int
) -> Iterator[tuple[object, ...]]:
    """Rows of the table `images`; a shard that the next image would overfill is closed."""
    opened: dict[str, list[int]] = {}  # by split: row, number and bytes of the last shard
    for item in items:
        size_bytes = -(-item.size_bytes // BLOCK_BYTES) * BLOCK_BYTES + OVERHEAD_BYTES
        shard = opened.get(item.split)
        if shard is None or shard[2] + size_bytes > shard_bytes:
            number = shard[1] + 1 if shard else 0
            made = plan.execute("INSERT INTO shards VALUES (NULL, ?, ?)", (item.split, number))
            shard = opened[item.split] = [made.lastrowid or 0, number, 0]
        shard[2] += size_bytes
        place = (os.fsencode(item.file), item.offset, item.size_bytes)
        metadata = {"file": readable(item.path), **item.metadata}
        known = (json.dumps(item.labels), json.dumps(metadata))
        yield (shard[0], *sample_key(item.split, item.name), *place, *known)


def _tell_apart(plan: sqlite3.Connection) -> int:
    """Make keys unique: `a.jpg` beside `a.png` become `a~jpg` and `a~png`; number left out."""
    same_key = "SELECT key FROM images GROUP BY key HAVING COUNT(*) > 1"
    plan.execute(f"CREATE TEMP TABLE shared AS {same_key}")
    twins = (
        "SELECT MIN(id), MAX(id), key, file, MIN(offset) <> MAX(offset), MIN(file) = MAX(file)"
        " FROM images WHERE key IN shared GROUP BY key, suffix HAVING COUNT(*) > 1"
    )
    for first, last, key, file, *within_an_archive in plan.execute(twins).fetchall():
        if not all(within_an_archive):
            raise IjepaError(
                f"{os.fsdecode(file)} (sample {key}) is listed twice, as images {first} and "
                f"{last}; take one of them out."
            )
    # In tar, a later member replaces an earlier one of the same name.
    replaced = plan.execute(
        "DELETE FROM images WHERE key IN shared AND EXISTS (SELECT 1 FROM images AS later"
        " WHERE later.key = images.key AND later.suffix = images.suffix AND later.id > images.id)"
    )
    plan.execute("DELETE FROM shared")
    plan.execute(f"INSERT INTO shared {same_key}")
    plan.execute("UPDATE images SET key = key || '~' || suffix WHERE key IN shared")
    return replaced.rowcount
