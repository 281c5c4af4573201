"""A list of images: CSV or TSV with a header, or one JSON object a line."""

import csv
import hashlib
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from collections.abc import Set as AbstractSet
from pathlib import Path, PurePosixPath
from typing import Any

from ijepa.data.sources.items import (
    DEFAULT_SPLIT,
    Found,
    Item,
    LabelColumn,
    Source,
    check_split_name,
)
from ijepa.data.sources.trees import unlisted
from ijepa.errors import IjepaError
from ijepa.files import parse_json

DELIMITERS = {".csv": ",", ".tsv": "\t"}
LISTS = (*DELIMITERS, ".jsonl")
PATH, SPLIT = "path", "split"

Row = Mapping[str, Any]


def listed_images(where: Path) -> Source:
    """Columns: `path` (relative to the list), perhaps `split`; any other column is a label.

    Classes are numbered in ascending order of integers, or of texts; an empty value, null or -1
    means that the class of an image is not known.
    """

    def digest() -> str:
        """From the list's bytes, and size and time of every image."""
        total = hashlib.sha256(where.read_bytes())
        for number, row in _rows(where):
            facts = _file(where, number, row).stat()
            total.update(b"%d %d\n" % (facts.st_size, facts.st_mtime_ns))
        return total.hexdigest()

    return Source(str(where), digest, lambda _: _find(where), where)


def _find(where: Path) -> Found:
    """One pass for classes and splits, then one for the images."""
    columns: dict[str, LabelColumn] = {}
    splits: set[str] = set()
    for number, row in _rows(where):
        if not splits:
            names = [name for name in row if name not in (PATH, SPLIT)]
            columns = {name: LabelColumn(f"column {name}", str(where)) for name in names}
        splits.add(_split(where, number, row))
        if columns.keys() != row.keys() - {PATH, SPLIT}:
            raise IjepaError(
                f"{where}, line {number}: labels are {_listing(row)}, before they were "
                f"{_listing(columns)}; give every image the same labels."
            )
        for name, column in columns.items():
            column.add(row[name], f"{where}, line {number}, {name}")
    if not splits:
        raise IjepaError(f"{where} lists no image.")

    left_out = Counter[str]()

    def items(_: AbstractSet[str]) -> Iterator[Item]:
        listed = set()
        for number, row in _rows(where):
            known = {label: column.number(row[label]) for label, column in columns.items()}
            file = _file(where, number, row)
            listed.add(os.path.normpath(file.absolute()))
            name = str(PurePosixPath(row[PATH])).lstrip("/")
            place = (name, row[PATH], str(file), 0, file.stat().st_size)
            yield Item(_split(where, number, row), *place, known)
        left_out.update(unlisted(_beside(where, listed), listed))

    labels = {name: column.names() for name, column in columns.items()}
    return dict.fromkeys(sorted(splits), labels), items, left_out


def _beside(where: Path, listed: AbstractSet[str]) -> Iterator[str]:
    """Files below the folder that all listed images have in common, if the list's folder holds it.

    Where images lie all over a disk, nobody means the rest of it; hidden files, links to folders
    and folders that may not be read are passed over.
    """
    common = os.path.commonpath({path.rpartition("/")[0] for path in listed})
    if not Path(common).is_relative_to(os.path.normpath(where.parent.absolute())):
        return
    for folder, _, names in os.walk(common):
        yield from (f"{folder}/{name}" for name in names if not name.startswith("."))


def _split(where: Path, number: int, row: Row) -> str:
    return check_split_name(str(row.get(SPLIT, DEFAULT_SPLIT)), f"{where}, line {number},")


def _file(where: Path, number: int, row: Row) -> Path:
    file = where.parent / str(row[PATH])
    if not file.is_file():
        raise IjepaError(
            f"{where}, line {number}: there is no image {row[PATH]}; paths are relative to the "
            f"folder of the list."
        )
    return file


def _rows(where: Path) -> Iterator[tuple[int, Row]]:
    """Lines with their numbers, each checked for its path."""
    read = _json_rows if where.suffix.lower() == ".jsonl" else _csv_rows
    try:
        for number, row in read(where):
            path = row.get(PATH)
            if not isinstance(path, str) or not path or "\0" in path:
                raise IjepaError(f"{where}, line {number}: {path!r} is not a path.")
            yield number, row
    except (ValueError, csv.Error) as error:
        raise IjepaError(f"{where} is not a list of images in UTF-8: {error}.") from error


def _csv_rows(where: Path) -> Iterator[tuple[int, Row]]:
    with where.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.reader(file, delimiter=DELIMITERS[where.suffix.lower()], strict=True)
        header = next(reader, [])
        if PATH not in header:
            raise IjepaError(
                f"{where} has no column {PATH!r}; its columns are {', '.join(header) or 'none'}."
            )
        _check_header(header, where)
        for row in filter(None, reader):
            if len(row) != len(header):
                raise IjepaError(
                    f"{where}, line {reader.line_num}: {len(row)} values for {len(header)} columns."
                )
            yield reader.line_num, dict(zip(header, row, strict=True))


def _json_rows(where: Path) -> Iterator[tuple[int, Row]]:
    with where.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            row = parse_json(line)
            if not isinstance(row, dict) or PATH not in row:
                raise IjepaError(
                    f'{where}, line {number}: expected an object with "{PATH}", '
                    f"found {line.strip()[:60]}."
                )
            _check_header(list(row), where)
            yield number, row


def _check_header(names: list[str], where: Path) -> None:
    odd = [name for name in names if not name.strip() or "/" in name]
    if odd or len(set(names)) < len(names):
        raise IjepaError(
            f"{where}: columns {', '.join(map(repr, names))}; each needs a name of its own, "
            f"without '/'."
        )


def _listing(row: Mapping[str, object]) -> str:
    return ", ".join(sorted(row.keys() - {PATH, SPLIT})) or "none"
