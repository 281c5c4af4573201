"""Class folders, with or without split folders above them, and flat folders without labels."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from ijepa.data.sources.items import (
    DEFAULT_SPLIT,
    IMAGE_SUFFIXES,
    SPLITS,
    Contents,
    Item,
    Labels,
    check_split_name,
    chosen_splits,
    class_name,
    is_image,
    kind_of,
    split_folders,
)
from ijepa.data.sources.trees import IMAGE, Outline, Tree
from ijepa.errors import IjepaError

LABEL = "class"
SHOWN = 3  # names in an error


@dataclass(frozen=True)
class Layout:
    """How paths tell split and class.

    Attributes:
        folders: the split by the start of a path, with a slash behind; an empty start is any path.
        splits: the splits, each with whether its images lie in class folders.
        classes: all class folders, sorted, over all splits.
    """

    folders: Mapping[str, str]
    splits: Mapping[str, bool]
    classes: list[str]

    @property
    def labels(self) -> dict[str, Labels]:
        """What each split is labelled with."""
        return {
            split: {LABEL: self.classes} if labelled else {}
            for split, labelled in self.splits.items()
        }


def read_folders(
    tree: Tree, asked: tuple[str, ...], *, folders_are_classes: bool = False
) -> Contents:
    """Images by class folder: `[split/]class/.../name.jpg`, or `[split/]name.jpg` unlabelled.

    As in torchvision's ImageFolder, classes are numbered in sorted order, over all splits together.

    Args:
        tree: what to read.
        asked: the splits to read; empty means all.
        folders_are_classes: there are no splits, whatever the folders are called.

    Raises:
        IjepaError: no image, no such split, or folders that do not say what they are.
    """
    outline, left_out = tree.outline(), Counter(tree.left_out())
    if not outline:
        raise _empty(tree)
    layout = layout_of(outline, asked, tree.where, folders_are_classes=folders_are_classes)
    splits = layout.labels
    chosen = chosen_splits(splits, asked, tree.where)
    return Contents(splits, _items(tree, layout, chosen, left_out), left_out)


def layout_of(
    outline: Outline, asked: tuple[str, ...], where: str, *, folders_are_classes: bool = False
) -> Layout:
    """Tell splits from classes; folders named in `asked` are splits, whatever their name.

    Raises:
        IjepaError: it cannot be told.
    """
    wrapper, outline = unwrap(outline, asked)
    inside: dict[str, Outline] = {}
    for first, *rest in outline:
        inside.setdefault(first, set()).add(tuple(rest))
    known = {} if folders_are_classes else _known(inside, asked)
    beside = inside.keys() - known.keys()
    wanted = {*asked, *(SPLITS.get(name.lower(), name) for name in asked)}
    if known and beside and not wanted & {*known, *known.values()}:
        if not _are_classes(inside, known):
            raise _mixed(where, known, beside)
        known = {}
    if not known and not folders_are_classes:
        _refuse_equal_folders(inside, where)
    groups, folders = {DEFAULT_SPLIT: outline}, {wrapper: DEFAULT_SPLIT}
    if known:
        groups, folders = {}, {}
        for folder, split in known.items():
            again, below = _unwrap_twice(folder, inside[folder])
            groups.setdefault(split, set()).update(below)
            folders[f"{wrapper}{folder}/{again}"] = check_split_name(split, where)
    splits = {split: _is_labelled(group, split, where) for split, group in sorted(groups.items())}
    found = {parts[0] for split, group in groups.items() if splits[split] for parts in group}
    return Layout(folders, splits, sorted({class_name(name) for name in found}))


def unwrap(outline: Outline, splits: tuple[str, ...] = ()) -> tuple[str, Outline]:
    """Take off one folder that holds all the others, as archives often have; no split folder."""
    tops = {parts[0] for parts in outline}
    deep = any(len(parts) > 2 for parts in outline)
    if len(tops) != 1 or tops & set(splits) or split_folders(tops) or not deep:
        return "", outline
    return f"{tops.pop()}/", {parts[1:] for parts in outline}


def _known(inside: Mapping[str, Outline], asked: tuple[str, ...]) -> dict[str, str]:
    """The folders that are splits, and what those are called."""
    usual = split_folders(inside.keys() - {IMAGE})
    named = {name: name for name in asked if name in inside and name not in usual}
    return {folder: usual.get(folder) or named[folder] for folder in sorted({**usual, **named})}


def _are_classes(inside: Mapping[str, Outline], splits: Mapping[str, str]) -> bool:
    """Is a folder that is called as a split a class, for all folders hold images alone?"""
    flat = all(group == {(IMAGE,)} for group in inside.values())
    return flat and len(splits) == 1 and len(inside) > 1


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


def _unwrap_twice(folder: str, outline: Outline) -> tuple[str, Outline]:
    """Take off a folder of the split's own name within it: `seg_train/seg_train/`."""
    tops = {parts[0] for parts in outline}
    if tops != {folder} or not all(len(parts) > 1 for parts in outline):
        return "", outline
    return f"{folder}/", {parts[1:] for parts in outline}


def _is_labelled(outline: Outline, split: str, where: str) -> bool:
    depths = {len(parts) > 1 for parts in outline}
    if len(depths) > 1:
        classes = sorted(parts[0] for parts in outline if len(parts) > 1)
        raise IjepaError(
            f"{where}, split {split}: some images lie in folders ({classes[0]}, ...), others "
            f"beside them; move them apart, or list the images in a CSV."
        )
    return depths.pop()


def _items(tree: Tree, layout: Layout, splits: set[str], left_out: Counter[str]) -> Iterator[Item]:
    class_ids = {name: number for number, name in enumerate(layout.classes)}
    for entry in tree.entries():
        if not is_image(entry.path):
            left_out[kind_of(entry.path)] += 1
            continue
        start = next((start for start in layout.folders if entry.path.startswith(start)), None)
        if start is None:
            left_out["images outside of the chosen splits' folders"] += 1
            continue
        split, name = layout.folders[start], entry.path[len(start) :]
        if split not in splits:
            left_out[f"images of the split {split}, which --split does not name"] += 1
            continue
        labels = {}
        if layout.splits[split]:
            labels[LABEL] = class_ids[class_name(name.partition("/")[0])]
        place = (entry.path, entry.file, entry.offset, entry.size_bytes)
        yield Item(split, name, *place, labels, {})


def _empty(tree: Tree) -> IjepaError:
    kinds = Counter(kind_of(entry.path) for entry in tree.entries()).most_common(SHOWN)
    found = ", ".join(f"{number:,} {kind}" for kind, number in kinds)
    return IjepaError(
        f"{tree.where} holds no image{f' but {found}' if found else ''}; images end in "
        f"{' '.join(sorted(IMAGE_SUFFIXES))}."
    )


def _mixed(where: str, splits: Mapping[str, str], others: set[str]) -> IjepaError:
    shown = sorted("loose images" if name == IMAGE else name for name in others)
    options = " ".join(f"--split {name}" for name in sorted(splits))
    return IjepaError(
        f"{where}: {', '.join(sorted(splits))} look like splits, {_some(shown)} do not. To read "
        f"the splits alone: {options}; if all are classes: --folders-are-classes."
    )


def _some(names: list[str]) -> str:
    return ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")
