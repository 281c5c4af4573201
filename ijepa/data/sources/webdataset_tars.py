"""WebDataset tars of others: an image with its labels in a `.cls` or a `.json` beside it."""

import itertools
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from ijepa.data.sources.items import (
    DEFAULT_SPLIT,
    FAULT,
    Item,
    LabelledItem,
    Listing,
    Request,
    number_labels,
)
from ijepa.data.sources.names import LABEL, kind_of, split_folders, suffix_of
from ijepa.data.sources.trees import Entry, Tree
from ijepa.errors import IjepaError
from ijepa.files import parse_json

LABEL_FILES = (".cls", ".json")
KEYS = ("label", "class", "cls")  # of a JSON object, the first that is there
MAX_LABEL_BYTES = 2**20
SHOWN = 5  # members, in an error
LOOKED_INTO = 8  # samples, to find out whether JSON holds labels


def is_labelled(tree: Tree) -> bool:
    """Do label files stand beside the first images? In no folder, unreadable ones are some, too."""
    for path, _, files in itertools.islice(_samples(tree, Counter(), None), LOOKED_INTO):
        values, fault = _values(files)
        if values or (fault and "/" not in path):
            return True
    return False


def read_webdataset(tree: Tree, request: Request) -> Listing:
    """Samples as WebDataset groups them: neighbours whose names agree up to the first dot.

    Labels are those of `labels` in the JSON object, else the first of its `label`, `class` and
    `cls`, else the text or the number in `.cls`, each called `class` unless `labels` names it;
    `fine.cls` is a label `fine`. An outermost folder called as a split is one. A sample whose label
    cannot be read counts as a bad image.
    """
    folders = split_folders({parts[0] for parts in tree.outline if len(parts) > 1})
    faults = list[str]()

    def rows(left_out: Counter[str]) -> Iterator[LabelledItem]:
        for path, images, beside in _samples(tree, left_out, request.member):
            if len(images) > 1:
                raise IjepaError(
                    f"{tree.where}: sample {path} holds several images ({', '.join(images)}); "
                    f"choose one with --member {next(iter(images))}."
                )
            image = next(iter(images.values()))
            top, _, rest = path.partition("/")
            split, name = (folders[top], rest) if top in folders else (DEFAULT_SPLIT, path)
            values, fault = _values(beside)
            faults.extend([fault] if fault and not faults else [])
            facts = {FAULT: fault} if fault else {}
            place = next((file.path for file in beside.values()), image.path)
            yield Item(split, name, *image[:4], metadata=facts), values, place

    splits, names, numbered = number_labels(lambda: rows(Counter()), tree.where)
    if not splits and request.member:
        found = Counter(_member(one) for one in tree.entries() if tree.is_image(one.path))
        shown = ", ".join(name for name, _ in found.most_common(SHOWN)) or "no image"
        raise IjepaError(f"{tree.where} has no sample with {request.member}; samples have {shown}.")
    if not names and not request.member:
        raise IjepaError(
            f"{faults[0]}." if faults else
            f"{tree.where} holds no label: expected a .cls, or a .json with 'labels', 'label' or "
            f"'class', beside an image. Its path alone reads class folders."
        )  # fmt: skip
    left_out = Counter(tree.left_out)
    labels = dict(sorted(names.items()))
    return dict.fromkeys(sorted(splits), labels), lambda _: numbered(rows(left_out)), left_out


def _member(entry: Entry) -> str:
    """`left.png` of `a/0001.left.png`."""
    return entry.path.rpartition("/")[2].partition(".")[2].lower()


def _samples(
    tree: Tree, left_out: Counter[str], member: str | None
) -> Iterator[tuple[str, dict[str, Entry], dict[str, Entry]]]:
    """Each sample's path, its images, and the files that tell its labels, by member.

    There are several images only where none is chosen by `member`.
    """

    def key(entry: Entry) -> str:
        folder, slash, name = entry.path.rpartition("/")
        return f"{folder}{slash}{name.partition('.')[0]}"

    for sample, group in itertools.groupby(tree.entries(), key):
        entries = list(group)
        images = {_member(entry): entry for entry in entries if tree.is_image(entry.path)}
        chosen = {k: one for k, one in images.items() if not member or k == member.lower()}
        files = [entry for entry in entries if suffix_of(entry.path) in LABEL_FILES]
        beside = {_member(entry): entry for entry in files} if chosen else {}
        taken = {*chosen.values(), *beside.values()}
        left_out.update(kind_of(entry.path) for entry in entries if entry not in taken)
        if chosen:
            path = next(iter(chosen.values())).path
            is_named = not member and len(chosen) == 1
            yield path if is_named else f"{sample}{suffix_of(path)}", chosen, beside
        elif images:
            left_out[f"samples without {member}"] += 1


def _values(beside: Mapping[str, Entry]) -> tuple[dict[str, Any], str]:
    """Values by label, none if the files hold none; and why they cannot be read, if they cannot."""
    try:
        named = {name[:-4]: file for name, file in beside.items() if name.endswith(".cls")}
        values: dict[str, Any] = {label: _text(file) for label, file in named.items()}
        notes = next((file for name, file in beside.items() if name.endswith("json")), None)
        body = parse_json(_text(notes)) if notes else {}
        found = body.get("labels") if isinstance(body, dict) else None
        if isinstance(found, dict) and found:
            return values | found, ""
        for key in KEYS:
            if isinstance(body, dict) and key in body and not isinstance(found, dict):
                return values | {LABEL: body[key]}, ""
        return values | ({LABEL: _text(beside["cls"])} if "cls" in beside else {}), ""
    except ValueError as error:
        return {}, f"{notes.path} in {notes.file} is not JSON: {error}" if notes else ""
    except IjepaError as error:
        return {}, str(error)


def _text(entry: Entry) -> str:
    if entry.size_bytes > MAX_LABEL_BYTES:
        size = f"has {entry.size_bytes:,} bytes; a label has at most {MAX_LABEL_BYTES:,}"
        raise IjepaError(f"{entry.path} in {entry.file} {size}")
    try:
        return entry.read().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise IjepaError(f"{entry.path} in {entry.file} is not UTF-8: {error}") from error
