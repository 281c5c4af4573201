"""CLEVR's layout, and the labels of Clevr/Count and Clevr/Dist made from its scenes."""

import bisect
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from collections.abc import Set as AbstractSet
from typing import Any

from ijepa.data.sources.folders import unwrap
from ijepa.data.sources.items import Item, Labels, Listing, Request
from ijepa.data.sources.names import is_image, kind_of
from ijepa.data.sources.trees import Entry, Tree
from ijepa.errors import IjepaError

MIN_OBJECTS, MAX_OBJECTS = 3, 10
DISTANCES = (8.0, 8.5, 9.0, 9.5, 10.0)  # upper bounds of the classes but the last, inclusive
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

Facts = tuple[dict[str, int], dict[str, float]]  # labels of an image, and its metadata


def find_scenes(tree: Tree) -> tuple[str, dict[str, Entry | None]]:
    """The folder around everything, and the file of scenes of each split of CLEVR's images."""
    wrapper, outline = unwrap(tree.outline, ("images",))
    splits = sorted({parts[1] for parts in outline if parts[0] == "images" and len(parts) == 3})
    paths = {split: f"{wrapper}scenes/CLEVR_{split}{SCENES}" for split in splits}
    found = tree.find(*paths.values())
    return wrapper, {split: found.get(path) for split, path in paths.items()}


def read_clevr(tree: Tree, _: Request) -> Listing:
    """`images/<split>/*.png` with labels from `scenes/CLEVR_<split>_scenes.json`.

    A split without scenes, as CLEVR's test, has no labels.
    """
    wrapper, scenes = find_scenes(tree)
    if not any(scenes.values()):
        expected = "images/<split>/*.png and scenes/CLEVR_<split>_scenes.json"
        raise IjepaError(f"{tree.where} is not laid out as CLEVR; expected {expected}.")
    labels = {split: LABELS if file else {} for split, file in scenes.items()}
    folder, left_out = f"{wrapper}images/", Counter(tree.left_out)

    def images(splits: AbstractSet[str]) -> Iterator[Item]:
        known = {split: read_scenes(scenes[split]) for split in splits}
        for entry in tree.entries():
            split, _, name = entry.path.removeprefix(folder).partition("/")
            if entry.path.startswith(folder) and is_image(name) and split in scenes:
                is_labelled = split in splits and scenes[split]
                facts = known[split].pop(name, None) if is_labelled else ({}, {})
                if facts is None:
                    raise IjepaError(f"{entry.path} has no scene; copy images and scenes again.")
                yield Item(split, name, *entry[:4], *facts)
            elif not entry.path.endswith(SCENES):
                left_out[kind_of(entry.path)] += 1
        if unused := [image for of_split in known.values() for image in of_split]:
            lost = f"{len(unused):,} scenes of {tree.where} have no image"
            raise IjepaError(f"{lost}, such as {min(unused)}; copy the images again.")

    return labels, images, left_out


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
        scenes = list(body["scenes"])
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise IjepaError(
            f"{file.path} is cut short or holds no list of scenes; copy it again."
        ) from error
    found = {}
    for number, scene in enumerate(scenes):
        try:
            labels, depth = label_scene(scene)
            found[str(scene["image_filename"])] = labels, {"nearest_depth": depth}
        except (LookupError, TypeError, ValueError) as error:
            raise IjepaError(
                f"{file.path}: scene {number} is not a CLEVR scene ({error!r}); expected "
                f"image_filename and objects with colour, shape and pixel_coords."
            ) from error
    return found
