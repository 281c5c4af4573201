"""Which image goes into which shard, kept on disk: memory does not grow with the data set."""

import contextlib
import json
import os
import sqlite3
import urllib.parse
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ijepa.config import Config
from ijepa.errors import IjepaError

BLOCK_BYTES = 512
# Besides its content a tar member takes a header, and its end is filled up to a whole block. A
# sample is an image, a `.json` of about one block and a `.cls`.
OVERHEAD_BYTES = 5 * BLOCK_BYTES
REPLACED = "members of an archive that a later one of the same name replaces"
ESCAPED = frozenset('.%~\\"*:<>?|')  # suffixes, our own marks, what some file systems refuse

SCHEMA = """
CREATE TABLE shards (id INTEGER PRIMARY KEY, split TEXT, number INTEGER);
CREATE TABLE images (
    id INTEGER PRIMARY KEY, shard INTEGER, key TEXT, suffix TEXT, file BLOB, offset INTEGER,
    bytes INTEGER, labels TEXT, metadata TEXT
);
CREATE TABLE left_out (reason TEXT, number INTEGER);
"""


class PlannedImage(NamedTuple):
    """An image to be written: its key, where its bytes lie, and what is known about it."""

    key: str
    file: str
    offset: int
    size_bytes: int
    labels: dict[str, int]
    metadata: dict[str, Any]


class PlannedShard(Config):
    """A shard to be written."""

    id: int
    split: str
    number: int
    num_images: int

    @property
    def name(self) -> str:
        """Of its tar."""
        return f"{self.split}-{self.number:06d}.tar"


class NewImage(NamedTuple):
    """An image to be planned; `name` is its path within the split."""

    split: str
    name: str
    file: str
    offset: int
    size_bytes: int
    labels: Mapping[str, int]
    metadata: Mapping[str, Any]


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
        with _reading(self.path) as plan:
            return [
                PlannedShard(id=row[0], split=row[1], number=row[2], num_images=row[3])
                for row in plan.execute(query)
            ]

    def left_out(self) -> dict[str, int]:
        """Numbers of files and images that did not come along, by reason."""
        with _reading(self.path) as plan:
            return dict(plan.execute("SELECT reason, number FROM left_out"))

    def images(self, shard: PlannedShard) -> Iterator[PlannedImage]:
        """Images of a shard, in the order of the source."""
        query = (
            "SELECT key, file, offset, bytes, labels, metadata FROM images WHERE shard = ?"
            " ORDER BY id"
        )
        with _reading(self.path) as plan:
            for key, file, offset, size, labels, metadata in plan.execute(query, (shard.id,)):
                yield PlannedImage(
                    key, os.fsdecode(file), offset, size, json.loads(labels), json.loads(metadata)
                )


def write_plan(
    path: Path, images: Iterable[NewImage], shard_bytes: int, left_out: Counter[str]
) -> ShardPlan:
    """Share `images` out to shards of about `shard_bytes`, in their order.

    Args:
        path: of the plan.
        images: to share out.
        shard_bytes: the size at which a shard is closed.
        left_out: numbers by reason, complete once `images` is read; the plan keeps them.

    Raises:
        IjepaError: two entries of a list name the same image.
    """
    half = path.with_name(path.name + ".tmp")
    half.unlink(missing_ok=True)
    with _building(half) as plan:
        plan.executescript("PRAGMA journal_mode=OFF; PRAGMA synchronous=OFF; BEGIN;" + SCHEMA)
        rows = _rows(plan, images, shard_bytes)
        plan.executemany("INSERT INTO images VALUES (NULL, ?, ?, ?, ?, ?, ?, ?, ?)", rows)
        plan.execute("CREATE INDEX by_key ON images (key)")
        left_out[REPLACED] += _tell_apart(plan)
        plan.executemany("INSERT INTO left_out VALUES (?, ?)", (+left_out).items())
        plan.execute("CREATE INDEX by_shard ON images (shard)")
        plan.execute("COMMIT")
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


def _rows(
    plan: sqlite3.Connection, images: Iterable[NewImage], shard_bytes: int
) -> Iterator[tuple[object, ...]]:
    open_shards: dict[str, _OpenShard] = {}
    for image in images:
        size_bytes = -(-image.size_bytes // BLOCK_BYTES) * BLOCK_BYTES + OVERHEAD_BYTES
        shard = open_shards.get(image.split)
        if shard is None or shard.bytes + size_bytes > shard_bytes:
            number = shard.number + 1 if shard else 0
            cursor = plan.execute(
                "INSERT INTO shards (split, number) VALUES (?, ?)", (image.split, number)
            )
            shard = open_shards[image.split] = _OpenShard(cursor.lastrowid or 0, number)
        shard.bytes += size_bytes
        place = (os.fsencode(image.file), image.offset, image.size_bytes)
        known = (json.dumps(dict(image.labels)), json.dumps(dict(image.metadata)))
        yield (shard.id, *sample_key(image.split, image.name), *place, *known)


class _OpenShard:
    """A shard that still takes images."""

    def __init__(self, identity: int, number: int) -> None:
        self.id, self.number, self.bytes = identity, number, 0


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


def _escaped(text: str) -> str:
    return "".join(
        "".join(f"%{byte:02X}" for byte in letter.encode(errors="surrogateescape"))
        if letter in ESCAPED or not letter.isprintable()
        else letter
        for letter in text
    )


@contextlib.contextmanager
def _building(path: Path) -> Iterator[sqlite3.Connection]:
    try:
        with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as plan:
            yield plan
    except sqlite3.OperationalError as error:
        raise IjepaError(
            f"The list of images cannot be written to {path} ({error}); see that there is space on "
            f"its disk and in the system's temporary folder."
        ) from error


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[sqlite3.Connection]:
    uri = f"file:{urllib.parse.quote(os.fsencode(path.resolve()))}?mode=ro&immutable=1"
    with contextlib.closing(sqlite3.connect(uri, uri=True)) as plan:
        yield plan
