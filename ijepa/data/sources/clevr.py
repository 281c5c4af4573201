"""CLEVR's layout, and the labels of Clevr/Count and Clevr/Dist made from its scenes."""

import bisect
import codecs
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ijepa.data.sources.folders import unwrap
from ijepa.data.sources.items import Contents, Item, Labels, chosen_splits, is_image, kind_of
from ijepa.data.sources.trees import Entry, Tree
from ijepa.errors import IjepaError

MIN_OBJECTS, MAX_OBJECTS = 3, 10
DISTANCES = (8.0, 8.5, 9.0, 9.5, 10.0)  # upper bounds of the classes but the last, inclusive
COLOURS = ("blue", "brown", "cyan", "gray", "green", "purple", "red", "yellow")
SHAPES = ("cube", "cylinder", "sphere")
CLASSES = sorted(f"{colour} {shape}" for colour in COLOURS for shape in SHAPES)
LABELS: Labels = {
    "class": CLASSES,
    "count": [str(count) for count in range(MIN_OBJECTS, MAX_OBJECTS + 1)],
    "dist": [*(f"<= {bound:g}" for bound in DISTANCES), f"> {DISTANCES[-1]:g}"],
}
CHUNK_BYTES = 2**20
SCENES = "_scenes.json"
_SEPARATORS = re.compile(r"[\s,]*")
_LIST = re.compile(r'"scenes"\s*:\s*\[')


class Labelled(NamedTuple):
    """Labels of one scene, and the distance that one of them stands for."""

    labels: dict[str, int]
    nearest_depth: float


def is_clevr(tree: Tree) -> bool:
    """Do images and scenes lie where CLEVR has them, perhaps all in one folder?"""
    return any(entry is not None for entry in _find_scenes(tree)[1].values())


def read_clevr(tree: Tree, asked: tuple[str, ...]) -> Contents:
    """`images/<split>/*.png` with labels from `scenes/CLEVR_<split>_scenes.json`.

    A split without scenes, as CLEVR's test, has no labels.

    Raises:
        IjepaError: not this layout, no such split, or scenes and images that do not fit together.
    """
    wrapper, scenes = _find_scenes(tree)
    if not any(scenes.values()):
        raise IjepaError(
            f"{tree.where} is not laid out as CLEVR; expected images/<split>/*.png and "
            f"scenes/CLEVR_<split>_scenes.json."
        )
    splits = {split: LABELS if entry else {} for split, entry in scenes.items()}
    chosen = chosen_splits(splits, asked, tree.where)
    wanted = {split: entry for split, entry in scenes.items() if split in chosen}
    left_out = Counter(tree.left_out())
    return Contents(splits, _items(tree, f"{wrapper}images/", wanted, left_out), left_out)


def label_scene(scene: Mapping[str, Any]) -> Labelled:
    """Labels of a scene.

    `count` is the number of objects less 3. `dist` is the class of the smallest depth in
    `pixel_coords`: (0, 8], (8, 8.5], ... (10, 100]. `class` is colour and shape of that object.

    Source: google-research/task_adaptation `data/clevr.py`; VISSL's
    `create_clevr_dist_data_files.py` gives the same, ties included. `class` is ours.

    Raises:
        KeyError, IndexError, TypeError, ValueError: this is not a CLEVR scene.
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
    return Labelled(labels, depth)


def read_scenes(entry: Entry) -> Iterator[dict[str, Any]]:
    """The scenes of a file one by one; CLEVR's file as a whole would take gigabytes of memory.

    Raises:
        IjepaError: the file is cut short, or holds something else.
    """
    chunks = _chunks(entry)
    decoder = json.JSONDecoder()
    text, at = _list_of_scenes(chunks, entry), 0
    while True:
        at = _SEPARATORS.match(text, at).end()  # type: ignore[union-attr]  # matches anything
        if text.startswith("]", at):
            return
        try:
            scene, at = decoder.raw_decode(text, at)
        except json.JSONDecodeError as error:
            more = next(chunks, "")
            if not more:
                raise _damaged(entry) from error
            text, at = text[at:] + more, 0
            continue
        yield scene


class _Scenes:
    """Labels by image; in files that list images in order, at most one scene is in memory."""

    def __init__(self, entry: Entry) -> None:
        self._entry = entry
        self._coming = enumerate(read_scenes(entry))
        self._waiting: dict[str, Labelled] = {}

    def pop(self, image: str) -> Labelled:
        """Labels of an image."""
        while image not in self._waiting:
            if not self._advance():
                raise IjepaError(f"{image} has no scene in {self._entry.path}; copy both again.")
        return self._waiting.pop(image)

    def check_all_used(self) -> None:
        """Refuse scenes whose images are missing: some files were not copied."""
        while self._advance():
            pass
        if self._waiting:
            raise IjepaError(
                f"{len(self._waiting):,} scenes of {self._entry.path} have no image, such as "
                f"{min(self._waiting)}; copy the images again."
            )

    def _advance(self) -> bool:
        number, scene = next(self._coming, (-1, {}))
        if number < 0:
            return False
        try:
            self._waiting[str(scene["image_filename"])] = label_scene(scene)
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise IjepaError(
                f"{self._entry.path}: scene {number} is not a CLEVR scene ({error!r}); "
                f"expected image_filename and objects with colour, shape and pixel_coords."
            ) from error
        return True


def _find_scenes(tree: Tree) -> tuple[str, dict[str, Entry | None]]:
    """The folder around everything, and the file of scenes of each split of images."""
    wrapper, outline = unwrap(tree.outline(), ("images",))
    splits = sorted({parts[1] for parts in outline if parts[0] == "images" and len(parts) == 3})
    return wrapper, {split: tree.find(f"{wrapper}scenes/CLEVR_{split}{SCENES}") for split in splits}


def _items(
    tree: Tree, images: str, wanted: Mapping[str, Entry | None], left_out: Counter[str]
) -> Iterator[Item]:
    scenes = {split: _Scenes(entry) for split, entry in wanted.items() if entry}
    for entry in tree.entries():
        split, _, name = entry.path.removeprefix(images).partition("/")
        if not (is_image(name) and entry.path.startswith(images) and split in wanted):
            if not entry.path.endswith(SCENES):
                left_out[kind_of(entry.path)] += 1
            continue
        place = (split, name, entry.path, entry.file, entry.offset, entry.size_bytes)
        if split in scenes:
            found = scenes[split].pop(name)
            yield Item(*place, found.labels, {"nearest_depth": found.nearest_depth})
        else:
            yield Item(*place, {}, {})
    for read in scenes.values():
        read.check_all_used()


def _list_of_scenes(chunks: Iterator[str], entry: Entry) -> str:
    """What follows the bracket that opens the list."""
    text = ""
    for chunk in chunks:
        text += chunk
        if found := _LIST.search(text):
            return text[found.end() :]
    raise _damaged(entry)


def _chunks(entry: Entry) -> Iterator[str]:
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    left = entry.size_bytes
    with Path(entry.file).open("rb") as file:
        file.seek(entry.offset)
        while left > 0 and (chunk := file.read(min(CHUNK_BYTES, left))):
            left -= len(chunk)
            yield decoder.decode(chunk)


def _damaged(entry: Entry) -> IjepaError:
    return IjepaError(f"{entry.path} is cut short or holds no list of scenes; copy it again.")
