"""What the files of a tree mean: class folders, CLEVR's layout, or WebDataset samples of others."""

import bisect
import itertools
import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from typing import Any

from ijepa.data.sources.items import (
    DEFAULT_SPLIT,
    FAULT,
    Item,
    LabelledItem,
    Labels,
    Listing,
    Request,
    number_labels,
)
from ijepa.data.sources.names import (
    LABEL,
    class_name,
    class_numbers,
    is_image,
    kind_of,
    split_folders,
    suffix_of,
)
from ijepa.data.sources.trees import IMAGE, Entry, Outline, Tree
from ijepa.errors import IjepaError
from ijepa.files import parse_json
from ijepa.text import some

SHOWN = 3  # names in an error

# Of CLEVR; distances are upper bounds of the classes but the last, inclusive.
MIN_OBJECTS, MAX_OBJECTS = 3, 10
DISTANCES = (8.0, 8.5, 9.0, 9.5, 10.0)
COLOURS = {
    "gray": (87, 87, 87), "red": (173, 35, 35), "blue": (42, 75, 215), "green": (29, 105, 20),
    "brown": (129, 74, 25), "purple": (129, 38, 192), "cyan": (41, 208, 208),
    "yellow": (255, 238, 51),
}  # fmt: skip
SHAPES = ("cube", "cylinder", "sphere")
CLASSES = sorted(f"{colour} {shape}" for colour in COLOURS for shape in SHAPES)
LABELS: Labels = {
    "class": CLASSES,
    "count": [str(count) for count in range(MIN_OBJECTS, MAX_OBJECTS + 1)],
    "dist": [*(f"<= {bound:g}" for bound in DISTANCES), f"> {DISTANCES[-1]:g}"],
}
SCENES = "_scenes.json"
# The rest of a file of scenes is left out while it is read; it would take gigabytes of memory.
KEPT = {"scenes", "image_filename", "objects", "color", "shape", "pixel_coords"}

# Of WebDataset samples.
LABEL_FILES = (".cls", ".json")
KEYS = ("label", "class", "cls")  # of a JSON object, the first that is there
LOOKED_INTO = 8  # samples, to find out whether JSON holds labels

Facts = tuple[dict[str, int], dict[str, float]]  # labels of an image, and its metadata


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

    def items() -> Iterator[Item]:
        for entry in tree.entries():
            start = next((start for start in starts if entry.path.startswith(start)), None)
            if not tree.is_image(entry.path):
                tree.left_out[kind_of(entry.path)] += 1
            elif start is None:
                tree.left_out["images outside of the chosen splits' folders"] += 1
            else:
                split, name = starts[start], entry.path[len(start) :]
                top = class_name(name.partition("/")[0])
                known = {LABEL: numbers[top]} if labels[split] else {}
                yield Item(split, name, *entry[:4], known)

    return Listing(labels, items(), tree.left_out)


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


def find_scenes(tree: Tree) -> tuple[str, dict[str, Entry | None]]:
    """The folder around everything, and the file of scenes of each split of CLEVR's images."""
    wrapper, outline = unwrap(tree.outline, ("images",))
    splits = sorted({parts[1] for parts in outline if parts[0] == "images" and len(parts) == 3})
    paths = {split: f"{wrapper}scenes/CLEVR_{split}{SCENES}" for split in splits}
    found = tree.find(paths.values())
    return wrapper, {split: found.get(path) for split, path in paths.items()}


def read_clevr(tree: Tree, request: Request) -> Listing:
    """`images/<split>/*.png` with labels from `scenes/CLEVR_<split>_scenes.json`.

    A split without scenes, as CLEVR's test, has no labels.
    """
    wrapper, scenes = find_scenes(tree)
    if not any(scenes.values()):
        expected = "images/<split>/*.png and scenes/CLEVR_<split>_scenes.json"
        raise IjepaError(f"{tree.where} is not laid out as CLEVR; expected {expected}.")
    labels = {split: LABELS if file else {} for split, file in scenes.items()}
    folder = f"{wrapper}images/"

    def images() -> Iterator[Item]:
        known = {split: read_scenes(scenes[split]) for split in request.wanted(labels)}
        for entry in tree.entries():
            split, _, name = entry.path.removeprefix(folder).partition("/")
            if entry.path.startswith(folder) and is_image(name) and split in scenes:
                is_labelled = split in known and scenes[split]
                facts = known[split].pop(name, None) if is_labelled else ({}, {})
                if facts is None:
                    raise IjepaError(f"{entry.path} has no scene; copy images and scenes again.")
                yield Item(split, name, *entry[:4], *facts)
            elif not entry.path.endswith(SCENES):
                tree.left_out[kind_of(entry.path)] += 1
        if unused := [image for of_split in known.values() for image in of_split]:
            lost = f"{len(unused):,} scenes of {tree.where} have no image"
            raise IjepaError(f"{lost}, such as {min(unused)}; copy the images again.")

    return Listing(labels, images(), tree.left_out)


def label_scene(scene: Mapping[str, Any]) -> tuple[dict[str, int], float]:
    """Labels of a scene, and the distance that one of them stands for.

    `count` is the number of objects less 3. `dist` is the class of the smallest depth in
    `pixel_coords`: (0, 8], (8, 8.5], ... (10, 100]. `class` is colour and shape of that object.

    Source: google-research/task_adaptation `data/clevr.py`; VISSL's
    `create_clevr_dist_data_files.py` gives the same, ties included. `class` is ours.
    """
    objects = scene["objects"]
    nearest = min(objects, key=lambda thing: float(thing["pixel_coords"][2]))
    depth = float(nearest["pixel_coords"][2])
    count = len(objects) - MIN_OBJECTS
    if not 0 <= count <= MAX_OBJECTS - MIN_OBJECTS:
        raise ValueError(f"{len(objects)} objects; CLEVR has {MIN_OBJECTS} to {MAX_OBJECTS}")
    labels = {
        "class": CLASSES.index(f"{nearest['color']} {nearest['shape']}"),
        "count": count,
        "dist": bisect.bisect_left(DISTANCES, depth),
    }
    return labels, depth


def read_scenes(file: Entry | None) -> dict[str, Facts]:
    """Labels of a split's images by name, and the distance of the nearest object; none for None."""
    if file is None:
        return {}
    try:
        body = json.loads(
            file.read(), object_hook=lambda part: {key: part[key] for key in KEPT & part.keys()}
        )
        facts = [(one["image_filename"], *label_scene(one)) for one in body["scenes"]]
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise IjepaError(
            f"{file.path} holds no list of CLEVR's scenes, or was cut short ({error!r}); expected "
            f"image_filename and objects with colour, shape and pixel_coords in each."
        ) from error
    return {str(name): (labels, {"nearest_depth": depth}) for name, labels, depth in facts}


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
        shown = ", ".join(name for name, _ in found.most_common(5)) or "no image"
        raise IjepaError(f"{tree.where} has no sample with {request.member}; samples have {shown}.")
    if not names and not request.member:
        raise IjepaError(
            f"{faults[0]}." if faults else
            f"{tree.where} holds no label: expected a .cls, or a .json with 'labels', 'label' or "
            f"'class', beside an image. Its path alone reads class folders."
        )  # fmt: skip
    labels = dict(sorted(names.items()))
    items = numbered(rows(tree.left_out))
    return Listing(dict.fromkeys(sorted(splits), labels), items, tree.left_out)


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
        values: dict[str, Any] = {label: file.text() for label, file in named.items()}
        notes = next((file for name, file in beside.items() if name.endswith("json")), None)
        body = parse_json(notes.text()) if notes else {}
        found = body.get("labels") if isinstance(body, dict) else None
        if isinstance(found, dict) and found:
            return values | found, ""
        for key in KEYS:
            if isinstance(body, dict) and key in body and not isinstance(found, dict):
                return values | {LABEL: body[key]}, ""
        return values | ({LABEL: beside["cls"].text()} if "cls" in beside else {}), ""
    except ValueError as error:
        return {}, f"{notes.path} in {notes.file} is not JSON: {error}" if notes else ""
    except IjepaError as error:
        return {}, str(error)
