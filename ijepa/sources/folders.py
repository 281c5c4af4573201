"""Class folders, with or without split folders above them, and flat folders without labels."""

from collections.abc import Iterator
from dataclasses import dataclass

from ijepa.errors import IjepaError
from ijepa.sources.items import (
    DEFAULT_SPLIT,
    IMAGE_SUFFIXES,
    SPLIT_NAMES,
    Contents,
    Item,
    Labels,
    check_split_name,
    chosen_splits,
    is_image,
    named,
)
from ijepa.sources.trees import IMAGE, Outline, Tree

LABEL = "class"


@dataclass(frozen=True)
class Layout:
    """How paths tell split and class.

    Attributes:
        wrapper: the one folder that holds everything, with a slash behind; or empty.
        splits: the splits, each with whether its images lie in class folders.
        has_split_folders: else all is one split.
        classes: all class folders, sorted, over all splits.
    """

    wrapper: str
    splits: dict[str, bool]
    has_split_folders: bool
    classes: list[str]

    @property
    def labels(self) -> dict[str, Labels]:
        """What each split is labelled with."""
        return {
            split: {LABEL: named(self.classes)} if labelled else {}
            for split, labelled in self.splits.items()
        }


def read_folders(tree: Tree, asked: tuple[str, ...]) -> Contents:
    """Images by class folder: `[split/]class/.../name.jpg`, or `[split/]name.jpg` unlabelled.

    As in torchvision's ImageFolder, classes are numbered in sorted order, over all splits together.

    Raises:
        IjepaError: no image, no such split, or folders that do not say what they are.
    """
    layout = layout_of(tree.outline(), asked, tree.where)
    splits = layout.labels
    return Contents(splits, _items(tree, layout, chosen_splits(splits, asked, tree.where)))


def layout_of(outline: Outline, asked: tuple[str, ...], where: str) -> Layout:
    """Tell splits from classes; folders named in `asked` are splits, whatever their name.

    Raises:
        IjepaError: no image, or it cannot be told.
    """
    if not outline:
        raise IjepaError(
            f"{where} holds no image; images end in {' '.join(sorted(IMAGE_SUFFIXES))}."
        )
    known = SPLIT_NAMES | set(asked)
    wrapper, outline = unwrap(outline, known)
    tops = {parts[0] for parts in outline}
    beside = tops - known
    if tops & known and beside and not set(asked) & tops:
        raise _mixed(where, tops & known, beside)
    has_split_folders = bool(tops & known)
    groups = _by_split(outline, known) if has_split_folders else {DEFAULT_SPLIT: outline}
    splits = {split: _is_labelled(group, split, where) for split, group in sorted(groups.items())}
    classes = {parts[0] for split, group in groups.items() if splits[split] for parts in group}
    return Layout(wrapper, splits, has_split_folders, sorted(classes))


def unwrap(outline: Outline, known: set[str] | frozenset[str] = SPLIT_NAMES) -> tuple[str, Outline]:
    """Take off one folder that holds all the others, as archives often have."""
    tops = {parts[0] for parts in outline}
    deep = any(len(parts) > 2 for parts in outline)
    if len(tops) != 1 or tops & known or not deep:
        return "", outline
    return f"{tops.pop()}/", {parts[1:] for parts in outline}


def _by_split(outline: Outline, known: set[str] | frozenset[str]) -> dict[str, Outline]:
    groups: dict[str, Outline] = {}
    for split, *rest in outline:
        if split in known:
            groups.setdefault(split, set()).add(tuple(rest))
    return groups


def _is_labelled(outline: Outline, split: str, where: str) -> bool:
    depths = {len(parts) > 1 for parts in outline}
    if len(depths) > 1:
        classes = sorted(parts[0] for parts in outline if len(parts) > 1)
        raise IjepaError(
            f"{where}, split {split}: some images lie in folders ({classes[0]}, ...), others "
            f"beside them; move them apart, or list the images in a CSV."
        )
    return depths.pop()


def _items(tree: Tree, layout: Layout, splits: set[str]) -> Iterator[Item]:
    class_ids = {name: number for number, name in enumerate(layout.classes)}
    for entry in tree.entries():
        if not (is_image(entry.path) and entry.path.startswith(layout.wrapper)):
            continue
        name = entry.path[len(layout.wrapper) :]
        split = DEFAULT_SPLIT
        if layout.has_split_folders:
            split, _, name = name.partition("/")
        if split not in splits:
            continue
        labels = {}
        if layout.splits[split]:
            labels[LABEL] = class_ids[name.partition("/")[0]]
        place = (entry.path, entry.file, entry.offset, entry.size_bytes)
        yield Item(check_split_name(split, tree.where), name, *place, labels, {})


def _mixed(where: str, splits: set[str], others: set[str]) -> IjepaError:
    shown = ["loose images" if name == IMAGE else name for name in sorted(others)[:3]]
    options = " ".join(f"--split {name}" for name in sorted(splits))
    return IjepaError(
        f"{where}: {', '.join(sorted(splits))} look like splits, {', '.join(shown)} do not; "
        f"choose with {options}, or name a folder inside."
    )
