"""Images in an order drawn by their names, through a file: memory does not grow with the data set.

Shards that are streamed are shuffled a buffer at a time, so they should not hold one class each.
"""

import contextlib
import hashlib
import json
import sqlite3
from collections.abc import Iterable, Iterator
from pathlib import Path

from ijepa.data.plan import NewImage


def shuffled(path: Path, images: Iterable[NewImage]) -> Iterator[NewImage]:
    """The same images, the same order for the same names; `path` is a file to work in."""
    path.unlink(missing_ok=True)
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as file:
        file.executescript(
            "PRAGMA journal_mode=OFF; PRAGMA synchronous=OFF; BEGIN;"
            "CREATE TABLE images (place BLOB, image TEXT);"
        )
        rows = ((_place(image), _as_text(image)) for image in images)
        file.executemany("INSERT INTO images VALUES (?, ?)", rows)
        for (text,) in file.execute("SELECT image FROM images ORDER BY place, rowid"):
            yield NewImage(*json.loads(text))
    path.unlink()


def _place(image: NewImage) -> bytes:
    name = f"{image.split}/{image.name}"
    return hashlib.sha256(name.encode(errors="surrogateescape")).digest()


def _as_text(image: NewImage) -> str:
    return json.dumps(image._replace(labels=dict(image.labels), metadata=dict(image.metadata)))
