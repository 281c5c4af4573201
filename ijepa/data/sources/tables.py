"""Images in tables, as the Hugging Face hub and `datasets.save_to_disk` store them.

Parquet files, or a folder of Arrow files that `save_to_disk` wrote. A column of images is a struct
of `bytes` and perhaps `path`, or plain bytes. Class names are read from the schema (`huggingface`
metadata), so the library `datasets` is not needed.
"""

import contextlib
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ijepa.data.sources.items import (
    DEFAULT_SPLIT,
    FAULT,
    Item,
    LabelledItem,
    Listing,
    Request,
    Source,
    number_labels,
)
from ijepa.data.sources.names import (
    LABEL,
    check_split_name,
    expanded,
    readable,
    split_folders,
    suffix_of,
)
from ijepa.data.sources.trees import Entry, digest_of, tree_digest, walk
from ijepa.errors import IjepaError, optional
from ijepa.files import parse_json, read_json

PARQUET, ARROW = ".parquet", ".arrow"
IMAGE_COLUMNS = ("image", "img")  # the first that is there, if several hold images
CLASS_COLUMNS = (LABEL, "label", "labels", "cls")  # the first that is there is called `class`
LABEL_COLUMN = re.compile(r"(.+_)?(class|cls|labels?)")
PART = re.compile(
    r"(?P<name>.*?)-(?P<number>\d{5})-of-(?P<count>\d{5})(-[0-9a-f]+)?"
)  # train-00000-of-00004
ROWS, ROWS_OF_IMAGES = 4096, 32  # at once; Parquet decodes pages of about 1,000 rows at most
BUFFER_BYTES = 2**20

Arrow = Any  # objects of pyarrow, which has no types
Place = tuple[int, int]  # `offset` and `size_bytes` of an `Item`


class Columns(NamedTuple):
    """What the columns of a table mean."""

    image: str
    is_struct: bool  # of `bytes` and perhaps `path`; else plain bytes
    has_path: bool
    labels: dict[str, str]  # name of the label by column
    classes: dict[str, list[str]]  # by label: names of classes, of those that have names

    def content(self, batch: Arrow) -> Arrow:
        """The column of image bytes."""
        image = batch.column(self.image)
        return image.field("bytes") if self.is_struct else image


def is_table(path: str) -> bool:
    """Does the name look like that of a Parquet or Arrow file?"""
    return suffix_of(path) in (PARQUET, ARROW)


def in_table(item: Item) -> bool:
    """Is the image a row of a Parquet file, for a `RowReader`? Its `offset` is the row's number."""
    return item.file.lower().endswith(PARQUET)


def table_source(name: str) -> Source:
    """Parquet files, with braces if they are several; or a folder of tables, whatever it holds."""
    paths = [Path(one) for one in ([name] if Path(name).exists() else expanded(name))]
    if missing := next((path for path in paths if not name or not path.exists()), None):
        raise IjepaError(f"There is no data set at '{missing}'.")
    folder = paths[0] if paths[0].is_dir() else None
    if folder:
        files = [entry for entry in walk(folder) if is_table(entry.path)]
    else:
        facts = [(path, path.stat()) for path in paths]
        files = [Entry(p.name, str(p), 0, one.st_size, one.st_mtime_ns) for p, one in facts]
    if not files:
        raise IjepaError(f"{name} holds no {PARQUET} or {ARROW} file.")
    find = partial(read_tables, files, name, is_whole=folder is not None)

    def digest() -> str:  # of a folder also its images, which rows may name
        return tree_digest(folder) if folder else digest_of(files)

    return Source(name, digest, find, paths[0], has_members=True)


def read_tables(
    files: Sequence[Entry], where: str, request: Request, *, is_whole: bool = True
) -> Listing:
    """Rows in the order of the files; the key of an image has its number in the split.

    With `is_whole`, files that are missing of those over which a split is spread are refused.

    ClassLabel columns keep their numbers. Other columns of integers, texts or booleans are labels
    if they are called as one, such as `label` or `fine_label`.
    """
    saved = {folder: _saved(folder) for folder in {Path(entry.file).parent for entry in files}}
    if is_whole:
        _refuse_missing(files, where, saved)
    files = [entry for entry in files if _is_saved(entry, saved)]
    splits = _splits([entry.path for entry in files], where, request.splits)
    columns = _columns_of(files[0].file, request.member)
    for entry in files[1:]:
        if _columns_of(entry.file, request.member) != columns:
            raise IjepaError(
                f"{entry.file} has other columns or classes than {files[0].file}; shard them apart."
            )
    rows = partial(_valued, files, splits, columns)
    found, names, numbered = number_labels(lambda: rows(Counter()), where)
    for label, classes in columns.classes.items():
        if wrong := [one for one in names.get(label, []) if not 0 <= int(one) < len(classes)]:
            raise IjepaError(
                f"{where}: an image is of {label} {wrong[-1]}, but the schema names "
                f"{len(classes):,} classes."
            )
    left_out = Counter[str]()

    def images() -> Iterator[Item]:
        for item in numbered(rows(left_out)):
            named = [one for one in columns.classes if item.labels[one] >= 0]
            stored = {one: int(names[one][item.labels[one]]) for one in named}
            yield item._replace(labels=item.labels | stored)

    labels = {label: columns.classes.get(label, names[label]) for label in sorted(names)}
    return Listing(dict.fromkeys(sorted(found), labels), images(), left_out)


def _valued(
    files: Sequence[Entry], splits: dict[str, str], columns: Columns, left_out: Counter[str]
) -> Iterator[LabelledItem]:
    """Every image with the values of its labels."""
    numbers = Counter[str]()
    for entry in files:
        split = splits[entry.path]
        for row, (place, path, values) in enumerate(_rows(entry.file, columns)):
            at, file = f"{entry.path}, row {row}", entry.file
            facts = {}
            if place is None and path:
                beside = Path(file).parent / path
                is_there = "\0" not in path and beside.is_file()
                file, place = str(beside), (0, beside.stat().st_size if is_there else 0)
                if not is_there:
                    facts = {FAULT: f"the row has no bytes, and there is no {readable(file)}"}
            if place is None:
                left_out["rows without an image"] += 1
            else:
                base = re.split(r"[/\\]", path or "")[-1]
                name = f"{numbers[split]:08d}{base and '/'}{base}"
                yield Item(split, name, at, file, *place, metadata=facts), values, at
            numbers[split] += 1


class RowReader:
    """Bytes of images of Parquet files by row; rows in ascending order are decoded once.

    Memory holds a few pages of one row group, however large that is.
    """

    def __init__(self, member: str | None) -> None:
        """`member` is the column of the images, if it was named."""
        self._member, self._path = member, ""
        self._rows, self._first = range(0), 0  # of the open row group; first that is decoded
        self._held: Arrow = ()
        self._left: Iterator[Arrow] = iter(())

    def read(self, path: str, row: int) -> bytes:
        """The image of a row of a file; an `IjepaError` if the file is damaged."""
        with _reading(path) as pa:
            if path != self._path or row not in self._rows or row < self._first:
                self._open(pa, path, row)
            while row >= self._first + len(self._held):
                self._first += len(self._held)
                self._held = next(self._left, ())
                if not len(self._held):
                    raise IjepaError(f"{path} has no row {row:,} any more: it was changed.")
            image: bytes = self._held[row - self._first].as_py()
        return image

    def _open(self, pa: Arrow, path: str, row: int) -> None:
        """Begin the row group that holds the row."""
        file, first, self._path = _parquet(pa, path), 0, ""
        columns = _columns(pa, file.schema_arrow, self._member, path)
        for group in range(file.metadata.num_row_groups):
            self._rows = range(first, first + file.metadata.row_group(group).num_rows)
            if row in self._rows:
                break
            first = self._rows.stop
        else:
            raise IjepaError(f"{path} has no row {row:,} any more: it was changed.")
        batches = file.iter_batches(ROWS_OF_IMAGES, row_groups=[group], columns=[_leaf(columns)])
        self._left = map(columns.content, batches)
        self._path, self._first, self._held = path, first, ()


def _saved(folder: Path) -> set[str]:
    """Names of the files of a saved data set; none if no `state.json` tells them."""
    state = folder / "state.json"
    files = read_json(state).get("_data_files") if state.is_file() else None
    return {str(one.get("filename")) for one in files or () if isinstance(one, dict)}


def _is_saved(entry: Entry, saved: Mapping[Path, set[str]]) -> bool:
    """Is it a file of the data set, not one that `datasets` caches beside it?"""
    names = saved[Path(entry.file).parent]
    return not names or suffix_of(entry.path) == PARQUET or Path(entry.file).name in names


def _refuse_missing(files: Sequence[Entry], where: str, saved: Mapping[Path, set[str]]) -> None:
    """Refuse a folder that lacks some of the files over which a split is spread."""
    numbers, counts = defaultdict[str, set[int]](set), dict[str, int]()
    for entry in files:
        if part := PART.fullmatch(entry.path.rpartition(".")[0]):
            numbers[part["name"]].add(int(part["number"]))
            counts[part["name"]] = int(part["count"])
    for name, count in counts.items():
        if missing := sorted(set(range(count)) - numbers[name]):
            raise IjepaError(
                f"{where} lacks {len(missing):,} of the {count:,} files of {name}, such as number "
                f"{missing[0]:05d}; copy them too, or name the files that you want."
            )
    there = {Path(entry.file) for entry in files}
    for folder, names in saved.items():
        if lost := {name for name in names if folder / name not in there}:
            raise IjepaError(
                f"{folder}/state.json names {min(lost)}, which is not beside it; copy it, too."
            )


def _splits(paths: Sequence[str], where: str, asked: Sequence[str]) -> dict[str, str]:
    """The split of each file, by its name before the part number or by the nearest folder."""
    names, numbered = {}, set()
    for path in paths:
        *folders, base = path.split("/")
        part = PART.fullmatch(base[: base.rfind(".")])
        names[path] = [part["name"] if part else base[: base.rfind(".")], *reversed(folders)]
        numbered |= {path} if part else set()
    every = {name for some in names.values() for name in some}
    known = {name: name for name in asked if name in every} | split_folders(every)
    splits, sets = {}, defaultdict[str, set[str]](set)
    for path, some in names.items():
        found = next((name for name in some if name in known), "")
        if not found and path in numbered:  # a split of any other name
            found = next((name for name in some if name not in ("data", "")), "")
        split = known.get(found, found or DEFAULT_SPLIT)
        splits[path] = check_split_name(split, f"{where}: {path}")
        sets[split].add("/".join(name for name in some[:0:-1] if name not in (found, "data")))
    most = max(sets.values(), key=len)
    if len(most) > 1:
        several = sorted(most)
        raise IjepaError(
            f"{where} holds several data sets ({', '.join(one or '.' for one in several)}); name "
            f"one, such as {where.rstrip('/')}/{several[-1]}."
        )
    return splits


def _columns_of(file: str, member: str | None) -> Columns:
    with _reading(file) as pa:
        if suffix_of(file) == PARQUET:
            return _columns(pa, _parquet(pa, file).schema_arrow, member, file)
        with pa.memory_map(file) as mapped, pa.ipc.open_stream(mapped) as stream:
            return _columns(pa, stream.schema, member, file)


def _columns(pa: Arrow, schema: Arrow, member: str | None, file: str) -> Columns:
    """The image column and the labels; refuses a table without an image column to choose."""
    types, features = pa.types, dict[str, Any]()
    with contextlib.suppress(ValueError, LookupError, TypeError):
        features = dict(parse_json((schema.metadata or {})[b"huggingface"])["info"]["features"])
    images, labels, classes = {}, {}, {}
    main = next((name for name in CLASS_COLUMNS if name in schema.names), None)
    for column, kind in zip(schema.names, schema.types, strict=True):
        feature, label = features.get(column), LABEL if column == main else column
        names = feature.get("names") if isinstance(feature, dict) else None
        inner = {field.name: field.type for field in kind} if types.is_struct(kind) else {}
        content, plain = inner.get("bytes", kind), getattr(kind, "value_type", kind)
        if types.is_binary(content) or types.is_large_binary(content):
            images[column] = bool(inner), "path" in inner
        elif types.is_integer(kind) and isinstance(names, list):
            labels[column], classes[label] = label, [str(name) for name in names]
        elif LABEL_COLUMN.fullmatch(column) and (
            types.is_integer(plain) or types.is_string(plain) or types.is_boolean(plain)
        ) and not types.is_nested(kind):  # fmt: skip
            labels[column] = label
    usual = [name for name in IMAGE_COLUMNS if name in images]
    chosen = [name for name in images if name == member] if member else usual or list(images)
    if not chosen or (len(chosen) > 1 and not usual):
        raise IjepaError(
            f"{file}: the columns of images are {', '.join(images) or 'none'}, of "
            f"{', '.join(schema.names)}; choose one of images with --member."
        )
    return Columns(chosen[0], *images[chosen[0]], labels, classes)


def _rows(path: str, columns: Columns) -> Iterator[tuple[Place | None, str | None, dict[str, Any]]]:
    """The place of each image, None without bytes, its path, and values by label."""
    read = _parquet_batches if suffix_of(path) == PARQUET else _arrow_batches
    with _reading(path) as pa:
        for places, batch in read(pa, path, columns):
            named = columns.labels.items()
            known = {label: batch.column(column).to_pylist() for column, label in named}
            paths = [None] * len(places)
            if columns.has_path:
                paths = batch.column(columns.image).field("path").to_pylist()
            for row, place in enumerate(places):
                values = {label: of[row] for label, of in known.items()}
                texts = {k: str(v).lower() for k, v in values.items() if isinstance(v, bool)}
                yield place, paths[row], values | texts


def _parquet_batches(
    pa: Arrow, path: str, columns: Columns
) -> Iterator[tuple[list[Place | None], Arrow]]:
    """A place is the row's number in the file, and the mean size of images in the row group.

    No bytes of images are decoded, unless some rows of a group have none.
    """
    file, first, leaf = _parquet(pa, path), 0, _leaf(columns)
    others = [*columns.labels, *([f"{columns.image}.path"] if columns.has_path else [])]
    for group in range(file.metadata.num_row_groups):
        facts = file.metadata.row_group(group)
        chunks = map(facts.column, range(facts.num_columns))
        chunk = next(one for one in chunks if one.path_in_schema == leaf)
        is_full = chunk.is_stats_set and chunk.statistics.null_count == 0
        size_bytes = chunk.total_uncompressed_size // max(1, facts.num_rows)
        rows, wanted = (ROWS, others) if is_full else (ROWS_OF_IMAGES, [*others, leaf])
        for batch in file.iter_batches(rows, row_groups=[group], columns=wanted):
            places = [(first + row, size_bytes) for row in range(batch.num_rows)]
            valid = places if is_full else columns.content(batch).is_valid().to_pylist()
            yield [place if has else None for place, has in zip(places, valid, strict=True)], batch
            first += batch.num_rows


def _arrow_batches(
    pa: Arrow, path: str, columns: Columns
) -> Iterator[tuple[list[Place | None], Arrow]]:
    """A place is that of the bytes in the file, which is mapped into memory."""
    with pa.memory_map(path) as file:
        mapped = file.read_buffer()
        file.seek(0)
        for batch in filter(len, pa.ipc.open_stream(file)):
            image = columns.content(batch)
            _, ends, content = image.buffers()
            width = np.int64 if pa.types.is_large_binary(image.type) else np.int32
            ends = np.frombuffer(ends, width)[image.offset :][: len(image) + 1].astype(np.int64)
            ends += content.address - mapped.address if content else 0
            if not 0 <= ends[0] <= ends[-1] <= mapped.size:
                raise pa.ArrowInvalid("its buffers are compressed")
            places = zip(ends[:-1].tolist(), np.diff(ends).tolist(), strict=True)
            valid = image.is_valid().to_pylist()
            yield [place if has else None for place, has in zip(places, valid, strict=True)], batch


def _leaf(columns: Columns) -> str:
    return f"{columns.image}.bytes" if columns.is_struct else columns.image


def _parquet(pa: Arrow, path: str) -> Arrow:
    return pa.parquet.ParquetFile(path, buffer_size=BUFFER_BYTES, pre_buffer=False)


@contextlib.contextmanager
def _reading(path: str) -> Iterator[Arrow]:
    """Give pyarrow; say in one line that the file is damaged, or that pyarrow is not installed."""
    pyarrow = optional("pyarrow", path)
    optional("pyarrow.parquet", path, "pyarrow")
    try:
        yield pyarrow
    except (pyarrow.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        reason = (str(error).splitlines() or ["unexpected end"])[0].rstrip(".")
        raise IjepaError(
            f"{path} is not a whole {suffix_of(path)[1:]} file ({reason}); copy it again."
        ) from error
