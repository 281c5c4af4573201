"""Class folders, with or without split folders above them, and flat folders without labels."""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from collections.abc import Set as AbstractSet

from ijepa.data.sources.items import DEFAULT_SPLIT, Item, Listing, Request
from ijepa.data.sources.names import LABEL, class_name, class_numbers, kind_of, split_folders
from ijepa.data.sources.trees import IMAGE, Outline, Tree
from ijepa.errors import IjepaError
from ijepa.text import some

SHOWN = 3  # names in an error


def read_folders(tree: Tree, request: Request, *, folders_are_classes: bool = False) -> Listing:
    """Images by class folder: `[split/]class/.../name.jpg`, or `[split/]name.jpg` unlabelled.

    As in torchvision's ImageFolder, classes are numbered in sorted order, over all splits together.
    The folders that `request` names as splits are splits, whatever their name; if
    `folders_are_classes`, there are no splits, whatever the folders are called.
    """
    if not tree.outline:
        kinds = Counter(kind_of(entry.path) for entry in tree.entries()).most_common(SHOWN)
        found = ", ".join(f"{number:,} {kind}" for kind, number in kinds)
        what = f"no image but {found}" if found else "no image"
        raise IjepaError(
            f"{tree.where} holds {what}; images end in .jpg, .png and the like, "
            f"or .npy with --channels."
        )
    wrapper, outline = unwrap(tree.outline, request.splits)
    splits = {} if folders_are_classes else _known_splits(outline, request.splits, tree.where)
    starts, groups = _by_split(outline, wrapper, splits)
    tops = {}
    for split, group in sorted(groups.items()):  # the outermost folders are classes
        tops[split] = folders = {parts[0] for parts in group if len(parts) > 1}
        if folders and (IMAGE,) in group:
            raise IjepaError(
                f"{tree.where}, split {split}: some images lie in folders ({min(folders)}, ...), "
                f"others beside them; move them apart, or list the images in a CSV."
            )
    classes = sorted({class_name(top) for found in tops.values() for top in found})
    labels = {split: {LABEL: classes} if found else {} for split, found in tops.items()}
    numbers = class_numbers(classes)
    left_out = Counter(tree.left_out)

    def items(_: AbstractSet[str]) -> Iterator[Item]:
        for entry in tree.entries():
            start = next((start for start in starts if entry.path.startswith(start)), None)
            if not tree.is_image(entry.path):
                left_out[kind_of(entry.path)] += 1
            elif start is None:
                left_out["images outside of the chosen splits' folders"] += 1
            else:
                split, name = starts[start], entry.path[len(start) :]
                top = class_name(name.partition("/")[0])
                known = {LABEL: numbers[top]} if labels[split] else {}
                yield Item(split, name, *entry[:4], known)

    return labels, items, left_out


def unwrap(outline: Outline, splits: tuple[str, ...] = ()) -> tuple[str, Outline]:
    """Take off a single outer folder, as archives often have, unless it is a split."""
    tops = {parts[0] for parts in outline}
    deep = any(len(parts) > 2 for parts in outline)
    if len(tops) != 1 or tops & set(splits) or split_folders(tops) or not deep:
        return "", outline
    return f"{tops.pop()}/", {parts[1:] for parts in outline}


def _known_splits(outline: Outline, asked: tuple[str, ...], where: str) -> dict[str, str]:
    """The folders that are splits, and what those are called; none if all folders are classes."""
    inside = defaultdict(set)
    for first, *rest in outline:
        inside[first].add(tuple(rest))
    folders = inside.keys() - {IMAGE}
    known = {name: name for name in asked if name in folders} | split_folders(folders)
    known = dict(sorted(known.items()))
    # Folders that hold folders of the same names are hardly classes, but splits or repetitions.
    below = [{parts[0] for parts in group if len(parts) > 1} for group in inside.values()]
    shared, every = set.intersection(*below), set.union(*below)
    if not known and len(below) > 1 and len(shared) > 1 and 2 * len(shared) >= len(every):
        tops = sorted(inside)
        options = " ".join(f"--split {name}" for name in tops[:SHOWN])
        raise IjepaError(
            f"{where}: {some(tops)} hold the same folders, {some(sorted(shared))}. If they are "
            f"splits, name them: {options}; if they are classes: --folders-are-classes."
        )
    others = sorted(inside.keys() - known.keys())
    wanted = {*asked, *split_folders(asked).values()}
    if not known or not others or wanted & {*known, *known.values()}:
        return known
    # One folder called as a split beside others, all of images alone: it is a class, too.
    if len(known) == 1 and all(group == {(IMAGE,)} for group in inside.values()):
        return {}
    shown = some(["loose images" if name == IMAGE else name for name in others])
    options = " ".join(f"--split {name}" for name in known)
    raise IjepaError(
        f"{where}: {', '.join(known)} look like splits, {shown} do not. To read the splits alone: "
        f"{options}; if all are classes: --folders-are-classes."
    )


def _by_split(
    outline: Outline, wrapper: str, known: Mapping[str, str]
) -> tuple[dict[str, str], dict[str, Outline]]:
    """The split by the start of a path, and what lies below these starts by split."""
    if not known:
        return {wrapper: DEFAULT_SPLIT}, {DEFAULT_SPLIT: outline}
    starts: dict[str, str] = {}
    groups: dict[str, Outline] = defaultdict(set)
    for folder, split in known.items():
        start, below = f"{wrapper}{folder}/", {parts[1:] for parts in outline if parts[0] == folder}
        # A folder of the split's own name within it, `seg_train/seg_train/`, is taken off.
        if {parts[0] for parts in below} == {folder} and all(len(parts) > 1 for parts in below):
            start, below = f"{start}{folder}/", {parts[1:] for parts in below}
        starts[start] = split
        groups[split] |= below
    return starts, groups
