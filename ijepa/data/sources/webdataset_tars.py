"""WebDataset tars of others: an image with its labels in a `.cls` or a `.json` beside it."""

import contextlib
import itertools
from collections import Counter
from collections.abc import Iterator
from collections.abc import Set as AbstractSet

from ijepa.data.sources.items import (
    DEFAULT_SPLIT,
    LABEL,
    Found,
    Item,
    LabelColumn,
    Request,
    is_image,
    kind_of,
    split_folders,
)
from ijepa.data.sources.trees import Entry, Tree
from ijepa.errors import IjepaError
from ijepa.files import parse_json

LABEL_FILES = (".cls", ".json")
KEYS = ("label", "class", "cls")  # of a JSON object, the first that is there
MAX_LABEL_BYTES = 2**20
LOOKED_INTO = 8  # samples, to find out whether JSON holds labels


def is_labelled(tree: Tree) -> bool:
    """Do label files stand beside the first images?"""
    for _, beside in itertools.islice(_samples(tree, Counter()), LOOKED_INTO):
        with contextlib.suppress(IjepaError):  # any other file that ends in .json
            if _values(beside):
                return True
    return False


def read_webdataset(tree: Tree, _: Request) -> Found:
    """Samples as WebDataset groups them: neighbours whose names agree up to the first dot.

    Labels are those of `labels` in the JSON object, else the first of its `label`, `class` and
    `cls`, else the text or the number in `.cls`, each called `class` unless `labels` names it. An
    outermost folder called as a split is one.
    """
    columns: dict[str, LabelColumn] = {}
    tops = set()
    for image, beside in _samples(tree, Counter()):
        tops.add(image.path.partition("/")[0] if "/" in image.path else "")
        for name, value in _values(beside).items():
            column = columns.setdefault(name, LabelColumn(f"label {name!r}", tree.where))
            column.add(value, beside[0].path)
    if not columns:
        raise IjepaError(
            f"{tree.where} holds no label: no .cls and no .json with 'labels', 'label' or 'class' "
            f"beside an image. Name its path alone to read class folders."
        )
    folders, left_out = split_folders(tops - {""}), Counter(tree.left_out)

    def items(_splits: AbstractSet[str]) -> Iterator[Item]:
        for image, beside in _samples(tree, left_out):
            top, _, rest = image.path.partition("/")
            split, name = (folders[top], rest) if top in folders else (DEFAULT_SPLIT, image.path)
            values = _values(beside)
            known = {label: column.number(values.get(label)) for label, column in columns.items()}
            yield Item(split, name, *image[:4], known)

    labels = {name: column.names() for name, column in sorted(columns.items())}
    splits = sorted({folders.get(top, DEFAULT_SPLIT) for top in tops})
    return dict.fromkeys(splits, labels), items, left_out


def _samples(tree: Tree, left_out: Counter[str]) -> Iterator[tuple[Entry, list[Entry]]]:
    """Each image with the files that tell its labels."""
    for _, group in itertools.groupby(tree.entries(), key=_key):
        entries = list(group)
        images = [entry for entry in entries if is_image(entry.path)]
        beside = [entry for entry in entries if entry.path.lower().endswith(LABEL_FILES)]
        taken = {*images[:1], *beside} if images else set()
        left_out.update(kind_of(entry.path) for entry in entries if entry not in taken)
        if images:
            yield images[0], beside


def _key(entry: Entry) -> str:
    folder, slash, name = entry.path.rpartition("/")
    return f"{folder}{slash}{name.partition('.')[0]}"


def _values(beside: list[Entry]) -> dict[str, object]:
    """Values by label; empty if the files hold none."""
    files = {entry.path.lower()[entry.path.rfind(".") :]: entry for entry in beside}
    found: dict[str, object] = {}
    if ".json" in files:
        found = _json_values(files[".json"])
    if not found and ".cls" in files:
        found = {LABEL: _text(files[".cls"]).strip()}
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
    try:
        return entry.read().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise IjepaError(f"{entry.path} in {entry.file} is not UTF-8: {error}.") from error
