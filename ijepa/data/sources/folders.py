"""Class folders, with or without split folders above them, and flat folders without labels."""

from collections import Counter
from collections.abc import Iterator, Mapping
from collections.abc import Set as AbstractSet
from typing import NamedTuple

from ijepa.data.sources.items import (
    DEFAULT_SPLIT,
    IMAGE_SUFFIXES,
    LABEL,
    SPLITS,
    Found,
    Item,
    Request,
    check_split_name,
    class_name,
    is_image,
    kind_of,
    split_folders,
)
from ijepa.data.sources.trees import IMAGE, Outline, Tree
from ijepa.errors import IjepaError

SHOWN = 3  # names in an error


class Layout(NamedTuple):
    """How paths tell split and class.

    Attributes:
        folders: the split by the start of a path, with a slash behind; an empty start is any path.
        splits: the splits, each with whether its images lie in class folders.
        classes: all class folders, sorted, over all splits.
    """

    folders: Mapping[str, str]
    splits: Mapping[str, bool]
    classes: list[str]


def read_folders(tree: Tree, asked: Request, *, folders_are_classes: bool = False) -> Found:
    """Images by class folder: `[split/]class/.../name.jpg`, or `[split/]name.jpg` unlabelled.

    As in torchvision's ImageFolder, classes are numbered in sorted order, over all splits together.

    Args:
        tree: what to read.
        asked: the folders that it names as splits are splits, whatever their name.
        folders_are_classes: there are no splits, whatever the folders are called.
    """
    if not tree.outline:
        kinds = Counter(kind_of(entry.path) for entry in tree.entries()).most_common(SHOWN)
        found = ", ".join(f"{number:,} {kind}" for kind, number in kinds)
        raise IjepaError(
            f"{tree.where} holds no image{f' but {found}' if found else ''}; images end in "
            f"{' '.join(sorted(IMAGE_SUFFIXES))}."
        )
    layout = _layout(tree.outline, asked.splits, tree.where, folders_are_classes)
    labels = {
        split: {LABEL: layout.classes} if labelled else {}
        for split, labelled in layout.splits.items()
    }
    numbers = {name: number for number, name in enumerate(layout.classes)}
    left_out = Counter(tree.left_out)

    def items(_: AbstractSet[str]) -> Iterator[Item]:
        for entry in tree.entries():
            if not is_image(entry.path):
                left_out[kind_of(entry.path)] += 1
                continue
            start = next((start for start in layout.folders if entry.path.startswith(start)), None)
            if start is None:
                left_out["images outside of the chosen splits' folders"] += 1
                continue
            split, name = layout.folders[start], entry.path[len(start) :]
            known = {label: numbers[class_name(name.partition("/")[0])] for label in labels[split]}
            yield Item(split, name, *entry[:4], known)

    return labels, items, left_out


def unwrap(outline: Outline, splits: tuple[str, ...] = ()) -> tuple[str, Outline]:
    """Take off one folder that holds all the others, as archives often have; no split folder."""
    tops = {parts[0] for parts in outline}
    deep = any(len(parts) > 2 for parts in outline)
    if len(tops) != 1 or tops & set(splits) or split_folders(tops) or not deep:
        return "", outline
    return f"{tops.pop()}/", {parts[1:] for parts in outline}


def _layout(
    outline: Outline, asked: tuple[str, ...], where: str, folders_are_classes: bool
) -> Layout:
    """Tell splits from classes."""
    wrapper, outline = unwrap(outline, asked)
    inside: dict[str, Outline] = {}
    for first, *rest in outline:
        inside.setdefault(first, set()).add(tuple(rest))
    known = {} if folders_are_classes else _known_splits(inside, asked, where)
    if not known and not folders_are_classes:
        _refuse_equal_folders(inside, where)
    groups, folders = {DEFAULT_SPLIT: outline}, {wrapper: DEFAULT_SPLIT}
    if known:
        groups, folders = {}, {}
        for folder, split in known.items():
            again, below = "", inside[folder]
            # A folder of the split's own name within it, `seg_train/seg_train/`, is taken off.
            if {parts[0] for parts in below} == {folder} and all(len(p) > 1 for p in below):
                again, below = f"{folder}/", {parts[1:] for parts in below}
            groups.setdefault(split, set()).update(below)
            folders[f"{wrapper}{folder}/{again}"] = check_split_name(split, where)
    splits = {split: _is_labelled(group, split, where) for split, group in sorted(groups.items())}
    found = {parts[0] for split, group in groups.items() if splits[split] for parts in group}
    return Layout(folders, splits, sorted({class_name(name) for name in found}))


def _known_splits(
    inside: Mapping[str, Outline], asked: tuple[str, ...], where: str
) -> dict[str, str]:
    """The folders that are splits, and what those are called; none if all folders are classes."""
    usual = split_folders(inside.keys() - {IMAGE})
    known = {name: name for name in asked if name in inside} | usual
    known = {name: known[name] for name in sorted(known)}
    others = inside.keys() - known.keys()
    wanted = {*asked, *(SPLITS.get(name.lower(), name) for name in asked)}
    if not known or not others or wanted & {*known, *known.values()}:
        return known
    # One folder called as a split beside others, all of images alone: it is a class, too.
    if len(known) == 1 and all(group == {(IMAGE,)} for group in inside.values()):
        return {}
    shown = sorted("loose images" if name == IMAGE else name for name in others)
    options = " ".join(f"--split {name}" for name in known)
    raise IjepaError(
        f"{where}: {', '.join(known)} look like splits, {_some(shown)} do not. To read "
        f"the splits alone: {options}; if all are classes: --folders-are-classes."
    )


def _refuse_equal_folders(inside: Mapping[str, Outline], where: str) -> None:
    """Folders that hold folders of the same names are hardly classes, but splits or repetitions."""
    folders = [{parts[0] for parts in group if len(parts) > 1} for group in inside.values()]
    shared, every = set.intersection(*folders), set.union(*folders)
    if len(folders) < 2 or len(shared) < 2 or 2 * len(shared) < len(every):
        return
    tops = sorted(inside)
    options = " ".join(f"--split {name}" for name in tops[:SHOWN])
    raise IjepaError(
        f"{where}: {_some(tops)} hold the same folders, {_some(sorted(shared))}. If they are "
        f"splits, name them: {options}; if they are classes: --folders-are-classes."
    )


def _is_labelled(outline: Outline, split: str, where: str) -> bool:
    depths = {len(parts) > 1 for parts in outline}
    if len(depths) > 1:
        classes = sorted(parts[0] for parts in outline if len(parts) > 1)
        raise IjepaError(
            f"{where}, split {split}: some images lie in folders ({classes[0]}, ...), others "
            f"beside them; move them apart, or list the images in a CSV."
        )
    return depths.pop()


def _some(names: list[str]) -> str:
    return ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")
