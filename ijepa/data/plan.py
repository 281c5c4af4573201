"""Decide which image goes into which shard, on disk: memory does not grow with the data set."""

import contextlib
import hashlib
import json
import os
import re
import shutil
import sqlite3
import urllib.parse
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from ijepa.data.sources.items import PROGRESS_EVERY, Item
from ijepa.data.sources.names import sample_key
from ijepa.data.sources.tables import RowReader, in_table
from ijepa.errors import IjepaError
from ijepa.files import link_or_copy, sibling
from ijepa.progress import Progress
from ijepa.records import read_record, remove_output
from ijepa.stage import StagePlan, is_fresh
from ijepa.text import some

BLOCK_BYTES = 512
# Besides its content a tar member takes a header, and its end is filled up to a whole block. A
# sample is an image, a `.json` of about one block and a `.cls`.
OVERHEAD_BYTES = 5 * BLOCK_BYTES
REPLACED = "members of an archive that a later one of the same name replaces"
PART = re.compile(r"\.part-(?P<number>\d+)-of-(?P<count>\d+)")  # behind the name of the set

SCHEMA = """
PRAGMA journal_mode=OFF; PRAGMA synchronous=OFF; BEGIN;
CREATE TABLE images (
    id INTEGER PRIMARY KEY, split TEXT, shard INTEGER, key TEXT, suffix TEXT, item TEXT
);
CREATE TABLE left_out (reason TEXT, number INTEGER);
CREATE TEMP TABLE drawn (place BLOB, item TEXT);
"""


class PlannedShard(NamedTuple):
    """A shard to write."""

    plan: Path  # lists its images
    split: str
    planned: int  # its number in the plan, where shards may have lost all of their images
    number: int
    num_images: int

    @property
    def tar(self) -> Path:
        """Where it is written."""
        return self.plan.with_name(f"{self.split}-{self.number:06d}.tar")

    def images(self) -> Iterator[tuple[str, Item]]:
        """Keys and images, in the order of the source."""
        query = "SELECT key, item FROM images WHERE split = ? AND shard = ? ORDER BY id"
        for key, text in _read(self.plan, query, self.split, self.planned):
            yield key, Item(*json.loads(text))


def read_plan(path: Path) -> tuple[list[PlannedShard], dict[str, int]]:
    """Shards, split by split; and numbers of files and images that were left out, by reason."""
    query = (
        "SELECT split, shard, RANK() OVER (PARTITION BY split ORDER BY shard) - 1, COUNT(*)"
        " FROM images GROUP BY split, shard ORDER BY split, shard"
    )
    shards = [PlannedShard(path, *row) for row in _read(path, query)]
    return shards, dict(_read(path, "SELECT reason, number FROM left_out"))


def _read(path: Path, query: str, *values: object) -> Iterator[Any]:
    """Rows of a query; any number of processes may read a plan."""
    uri = f"file:{urllib.parse.quote(os.fsencode(path.resolve()))}?mode=ro&immutable=1"
    with contextlib.closing(sqlite3.connect(uri, uri=True)) as plan:
        yield from plan.execute(query, values)


def write_plan(
    path: Path,
    items: Iterable[Item],
    shard_bytes: int,
    left_out: Counter[str],
    *,
    shuffle: bool = False,
) -> None:
    """Divide images into shards, each closed at `shard_bytes`.

    `left_out` is complete once `items` is read, and kept with the plan. `shuffle` orders images by
    a hash of their names, so that shards mix classes: streams are shuffled a buffer at a time.
    """
    half = sibling(path, ".tmp")
    half.unlink(missing_ok=True)
    try:
        with contextlib.closing(sqlite3.connect(half, isolation_level=None)) as plan:
            plan.executescript(SCHEMA)
            rows = _rows(_shuffled(plan, items) if shuffle else items, shard_bytes)
            plan.executemany("INSERT INTO images VALUES (NULL, ?, ?, ?, ?, ?)", rows)
            plan.execute("CREATE INDEX by_key ON images (key)")
            left_out[REPLACED] += _tell_apart(plan)
            plan.executemany("INSERT INTO left_out VALUES (?, ?)", (+left_out).items())
            plan.execute("CREATE INDEX by_shard ON images (split, shard)")
            plan.execute("COMMIT")
    except sqlite3.OperationalError as error:
        raise IjepaError(
            f"The list of images cannot be written to {path} ({error}); see that there is space on "
            f"its disk and in the system's temporary folder."
        ) from error
    with half.open("rb") as file:
        os.fsync(file.fileno())
    half.replace(path)


def _shuffled(plan: sqlite3.Connection, items: Iterable[Item]) -> Iterator[Item]:
    """Items ordered by a hash of their names, whatever the order of the source."""
    names = ((f"{item.split}/{item.name}".encode(errors="surrogateescape"), item) for item in items)
    drawn = ((hashlib.sha256(name).digest(), json.dumps(item)) for name, item in names)
    plan.executemany("INSERT INTO drawn VALUES (?, ?)", drawn)
    for (text,) in plan.execute("SELECT item FROM drawn ORDER BY place, rowid"):
        yield Item(*json.loads(text))


def _rows(items: Iterable[Item], shard_bytes: int) -> Iterator[tuple[str, int, str, str, str]]:
    """Rows of the table `images`; a shard that the next image would overfill is closed."""
    opened: dict[str, tuple[int, int]] = {}  # by split: number and bytes of its last shard
    for item in items:
        size_bytes = -(-item.size_bytes // BLOCK_BYTES) * BLOCK_BYTES + OVERHEAD_BYTES
        for *_, map_bytes in item.dense.values():  # and a header each
            size_bytes += (-(-map_bytes // BLOCK_BYTES) + 1) * BLOCK_BYTES
        shard, filled = opened.get(item.split, (-1, shard_bytes))
        if filled + size_bytes > shard_bytes:
            shard, filled = shard + 1, 0
        opened[item.split] = shard, filled + size_bytes
        yield item.split, shard, *sample_key(item.split, item.name), json.dumps(item)


def gather(
    shards: Sequence[PlannedShard], member: str | None, pack: Path, progress: Progress
) -> list[PlannedShard]:
    """Copy the images of shuffled Parquet files into the file `pack`, once, row after row.

    Each shard has rows of all of these files, which would be decoded again for every shard. Any
    other shards are returned as they are.
    """
    if not shards or not in_table(next(shards[0].images())[1]):
        return list(shards)
    plan, done = shards[0].plan, 0
    gathered, half = plan.with_suffix(".gathered.db"), plan.with_suffix(".gathered.tmp")
    if not gathered.exists():
        shutil.copy(plan, half)
        chosen, total = {one[1:3] for one in shards}, sum(one.num_images for one in shards)
        place = "json_extract(item, '$[3]'), json_extract(item, '$[4]')"
        images = _read(plan, f"SELECT id, split, shard, item FROM images ORDER BY {place}")
        opened = sqlite3.connect(half, isolation_level=None)
        with contextlib.closing(opened) as changed, pack.open("wb") as file:
            changed.execute("BEGIN")
            reader = RowReader(member)
            for number, split, shard, text in images:
                item = Item(*json.loads(text))
                if (split, shard) not in chosen or not in_table(item):
                    continue
                content, start = reader.read(item.file, item.offset), file.tell()
                file.write(content)
                item = item._replace(file=str(pack), offset=start, size_bytes=len(content))
                update = "UPDATE images SET item = ? WHERE id = ?"
                changed.execute(update, (json.dumps(item), number))
                done += 1
                if done % PROGRESS_EVERY == 0 or done == total:
                    progress("unpack images", done, total)
            changed.execute("COMMIT")
        half.replace(gathered)
    return [shard._replace(plan=gathered) for shard in shards]


def _tell_apart(plan: sqlite3.Connection) -> int:
    """Make keys unique: `a.jpg` beside `a.png` become `a~jpg` and `a~png`; number left out."""
    same_key = "SELECT key FROM images GROUP BY key HAVING COUNT(*) > 1"
    plan.execute(f"CREATE TEMP TABLE shared AS {same_key}")
    twins = (
        "SELECT MIN(id), MAX(id), key, MIN(item), MAX(item) FROM images WHERE key IN shared"
        " GROUP BY key, suffix HAVING COUNT(*) > 1"
    )
    for first, last, key, *texts in plan.execute(twins).fetchall():
        one, other = (Item(*json.loads(text)) for text in texts)
        if one.file != other.file or one.offset == other.offset:  # not members of one archive
            raise IjepaError(
                f"{one.file} (sample {key}) is listed twice, as images {first} and {last}; take "
                f"one of them out."
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


def part_plan(whole: StagePlan, part: str) -> StagePlan:
    """The plan of part `3/16` of a set: a folder beside that of the set."""
    number, _, count = part.partition("/")
    out = sibling(whole.out, f".part-{int(number)}-of-{int(count)}")
    return replace(whole, out=out, inputs={**whole.inputs, "part": out.suffix})


def shards_of_part(shards: Sequence[PlannedShard], part: str) -> list[PlannedShard]:
    """The shards of a part: consecutive ones, so that the rows of a table are read once."""
    number, count = map(int, part.split("/"))
    if count > len(shards):
        raise IjepaError(
            f"{count:,} parts are more than the set has shards, {len(shards):,}; make fewer parts."
        )
    first, last = ((place * len(shards)) // count for place in (number - 1, number))
    return list(shards[first:last])


def link_parts(whole: StagePlan, folder: Path) -> None:
    """Give the shards of all parts, and the reports on them, a second name in the work folder.

    They are copied where the disk has no hard links. An `IjepaError` names a part that is missing,
    damaged, or of another source or other settings.
    """
    plans = _part_plans(whole)
    for number, plan in enumerate(plans, start=1):
        if plan.out.is_dir() and not is_fresh(plan):
            record = read_record(plan.out)
            why = plan.changes(record) if record else "it is not of `ijepa shard --part`"
            raise IjepaError(
                f"{plan.out} is no part of this set: {why or 'a file of it was changed'}. Give the "
                f"options with which the parts were made; or remove it, and run this command with "
                f"--part {number}/{len(plans)}."
            )
    if not plans:
        raise IjepaError(
            f"There are no parts of {whole.out} to merge. Write each of N parts with the same "
            f"command and --part 1/N, 2/N, ... in place of --merge, then merge them."
        )
    if missing := [n for n, plan in enumerate(plans, start=1) if not plan.out.is_dir()]:
        raise IjepaError(
            f"{whole.out} cannot be merged: parts {some(missing, 5)} of {len(plans):,} are "
            f"missing; run the same command with --part {missing[0]}/{len(plans)} in place of "
            f"--merge, and so on."
        )
    for file in (file for plan in plans for file in plan.out.glob("*.tar*")):
        link_or_copy(file, folder / file.name)


def remove_parts(whole: StagePlan) -> None:
    """Remove the parts of a set that is whole."""
    for plan in filter(is_fresh, _part_plans(whole)):
        remove_output(plan.out)


def _part_plans(whole: StagePlan) -> list[StagePlan]:
    """The plans of parts 1, 2, ..., as many as the names of those that are there say."""
    folder, name = whole.out.absolute().parent, whole.out.name
    names = [path.name.removeprefix(name) for path in folder.glob("*.part-*-of-*")]
    counts = {int(match["count"]) for match in map(PART.fullmatch, names) if match}
    if len(counts) > 1:
        raise IjepaError(
            f"{whole.out} has parts of several divisions, into {some(sorted(counts), 5)}; remove "
            f"those that you do not want."
        )
    count = max(counts, default=0)
    return [part_plan(whole, f"{number}/{count}") for number in range(1, count + 1)]
