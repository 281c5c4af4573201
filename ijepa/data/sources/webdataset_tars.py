"""WebDataset tars of others: an image with its labels in a `.cls` or a `.json` beside it."""

import contextlib
import itertools
from collections import Counter
from collections.abc import Iterator, Mapping

from ijepa.data.sources.items import DEFAULT_SPLIT, Found, Item, Request, Valued, number_labels
from ijepa.data.sources.names import LABEL, is_image, kind_of, split_folders, suffix_of
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
    folders = split_folders({parts[0] for parts in tree.outline if len(parts) > 1})

    def rows(left_out: Counter[str]) -> Iterator[Valued]:
        for image, beside in _samples(tree, left_out):
            top, _, rest = image.path.partition("/")
            split, name = (folders[top], rest) if top in folders else (DEFAULT_SPLIT, image.path)
            place = next((file.path for file in beside.values()), image.path)
            yield Item(split, name, *image[:4]), _values(beside), place

    splits, names, numbered = number_labels(lambda: rows(Counter()), tree.where)
    if not names:
        expected = "a .cls, or a .json with 'labels', 'label' or 'class', beside an image"
        raise IjepaError(
            f"{tree.where} holds no label: expected {expected}. Its path alone reads class folders."
        )
    left_out = Counter(tree.left_out)
    labels = dict(sorted(names.items()))
    return dict.fromkeys(sorted(splits), labels), lambda _: numbered(rows(left_out)), left_out


def _samples(tree: Tree, left_out: Counter[str]) -> Iterator[tuple[Entry, dict[str, Entry]]]:
    """Each image with the files that tell its labels, by suffix."""

    def key(entry: Entry) -> str:
        folder, slash, name = entry.path.rpartition("/")
        return f"{folder}{slash}{name.partition('.')[0]}"

    for _, group in itertools.groupby(tree.entries(), key):
        entries = list(group)
        image = next((entry for entry in entries if is_image(entry.path)), None)
        beside = {suffix_of(one.path): one for one in entries if suffix_of(one.path) in LABEL_FILES}
        taken = {image, *beside.values()} if image else set()
        left_out.update(kind_of(entry.path) for entry in entries if entry not in taken)
        if image:
            yield image, beside


def _values(beside: Mapping[str, Entry]) -> Mapping[str, object]:
    """Values by label; empty if the files hold none."""
    if ".json" in beside:
        file = beside[".json"]
        try:
            body = parse_json(_text(file))
        except ValueError as error:
            raise IjepaError(f"{file.path} in {file.file} is not JSON: {error}.") from error
        body = body if isinstance(body, dict) else {}
        found = body.get("labels")
        if isinstance(found, dict) and found:
            return found
        for key in KEYS:
            if key in body and not isinstance(found, dict):
                return {LABEL: body[key]}
    return {LABEL: _text(beside[".cls"])} if ".cls" in beside else {}


def _text(entry: Entry) -> str:
    if entry.size_bytes > MAX_LABEL_BYTES:
        size = f"has {entry.size_bytes:,} bytes; a label has at most {MAX_LABEL_BYTES:,}"
        raise IjepaError(f"{entry.path} in {entry.file} {size}.")
    try:
        return entry.read().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise IjepaError(f"{entry.path} in {entry.file} is not UTF-8: {error}.") from error
