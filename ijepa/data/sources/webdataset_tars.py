"""WebDataset tars of others: an image with its labels in a `.cls` or a `.json` beside it."""

import contextlib
import itertools
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from ijepa.data.sources.items import (
    DEFAULT_SPLIT,
    Contents,
    Item,
    LabelColumn,
    Labels,
    check_split_name,
    chosen_splits,
    is_image,
    kind_of,
    split_folders,
)
from ijepa.data.sources.trees import Entry, Tree
from ijepa.errors import IjepaError
from ijepa.stage import parse_json

LABEL = "class"
LABEL_FILES = (".cls", ".json")
KEYS = ("label", "class", "cls")  # of a JSON object, the first that is there
MAX_LABEL_BYTES = 2**20
LOOKED_INTO = 8  # samples, to find out whether JSON holds labels


class _Sample(NamedTuple):
    """An image and the files that tell its labels."""

    image: Entry
    labels: list[Entry]


def is_labelled(tree: Tree) -> bool:
    """Do label files stand beside the first images?"""
    for sample in itertools.islice(_samples(tree, Counter()), LOOKED_INTO):
        with contextlib.suppress(IjepaError):  # any other file that ends in .json
            if _values(sample):
                return True
    return False


def read_webdataset(tree: Tree, asked: tuple[str, ...]) -> Contents:
    """Samples as WebDataset groups them: neighbours whose names agree up to the first dot.

    Labels are those of `labels` in the JSON object, else the first of its `label`, `class` and
    `cls`, else the text or the number in `.cls`, each called `class` unless `labels` names it. An
    outermost folder called as a split is one.

    Raises:
        IjepaError: no labelled image, no such split, or a label that is none.
    """
    left_out = Counter(tree.left_out())
    columns: dict[str, LabelColumn] = {}
    tops = set()
    for sample in _samples(tree, Counter()):
        tops.add(sample.image.path.partition("/")[0] if "/" in sample.image.path else "")
        for name, value in _values(sample).items():
            column = columns.setdefault(name, LabelColumn(f"label {name!r}", tree.where))
            column.add(value, sample.labels[0].path)
    if not columns:
        raise IjepaError(
            f"{tree.where} holds no label: no .cls and no .json with 'labels', 'label' or 'class' "
            f"beside an image. Name its path alone to read class folders."
        )
    folders = split_folders(tops - {""})
    labels: Labels = {name: column.names() for name, column in sorted(columns.items())}
    splits = {check_split_name(folders.get(top, DEFAULT_SPLIT), tree.where) for top in tops}
    there = dict.fromkeys(sorted(splits), labels)
    chosen = chosen_splits(there, asked, tree.where)
    return Contents(there, _items(tree, folders, columns, chosen, left_out), left_out)


def _items(
    tree: Tree,
    folders: Mapping[str, str],
    columns: Mapping[str, LabelColumn],
    chosen: set[str],
    left_out: Counter[str],
) -> Iterator[Item]:
    for sample in _samples(tree, left_out):
        path, file, offset, size, _ = sample.image
        top, _, rest = path.partition("/")
        split, name = (folders[top], rest) if top in folders else (DEFAULT_SPLIT, path)
        if split not in chosen:
            left_out[f"images of the split {split}, which --split does not name"] += 1
            continue
        values = _values(sample)
        known = {label: column.number(values.get(label)) for label, column in columns.items()}
        yield Item(split, name, path, file, offset, size, known, {})


def _samples(tree: Tree, left_out: Counter[str]) -> Iterator[_Sample]:
    for _, group in itertools.groupby(tree.entries(), key=_key):
        entries = list(group)
        images = [entry for entry in entries if is_image(entry.path)]
        beside = [entry for entry in entries if entry.path.lower().endswith(LABEL_FILES)]
        labels = beside if images else []
        taken = {*images[:1], *labels}
        left_out.update(kind_of(entry.path) for entry in entries if entry not in taken)
        if images:
            yield _Sample(images[0], labels)


def _key(entry: Entry) -> str:
    folder, slash, name = entry.path.rpartition("/")
    return f"{folder}{slash}{name.partition('.')[0]}"


def _values(sample: _Sample) -> dict[str, object]:
    """Values by label; empty if the files hold none."""
    texts = {entry.path.lower()[entry.path.rfind(".") :]: entry for entry in sample.labels}
    found: dict[str, object] = {}
    if ".json" in texts:
        found = _json_values(texts[".json"])
    if not found and ".cls" in texts:
        found = {LABEL: _text(texts[".cls"]).strip()}
    return found


def _json_values(entry: Entry) -> dict[str, object]:
    try:
        body = parse_json(_text(entry))
    except ValueError as error:
        raise IjepaError(f"{entry.path} in {entry.file} is not JSON: {error}.") from error
    if not isinstance(body, dict):
        return {}
    if isinstance(body.get("labels"), dict):
        return {str(name): value for name, value in body["labels"].items()}
    key = next((key for key in KEYS if key in body), None)
    return {LABEL: body[key]} if key else {}


def _text(entry: Entry) -> str:
    if entry.size_bytes > MAX_LABEL_BYTES:
        raise IjepaError(
            f"{entry.path} in {entry.file} has {entry.size_bytes:,} bytes; a label has at most "
            f"{MAX_LABEL_BYTES:,}."
        )
    with Path(entry.file).open("rb") as file:
        try:
            return os.pread(file.fileno(), entry.size_bytes, entry.offset).decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise IjepaError(f"{entry.path} in {entry.file} is not UTF-8: {error}.") from error
