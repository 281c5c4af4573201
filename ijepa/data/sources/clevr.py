"""CLEVR's layout, and the labels of Clevr/Count and Clevr/Dist made from its scenes."""

import bisect
import codecs
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import Any

from ijepa.data.sources.folders import unwrap
from ijepa.data.sources.items import Found, Item, Labels, Request, is_image, kind_of
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


def is_clevr(tree: Tree) -> bool:
    """Do images and scenes lie where CLEVR has them, perhaps all in one folder?"""
    return any(_find_scenes(tree)[1].values())


def read_clevr(tree: Tree, _: Request) -> Found:
    """`images/<split>/*.png` with labels from `scenes/CLEVR_<split>_scenes.json`.

    A split without scenes, as CLEVR's test, has no labels.
    """
    wrapper, scenes = _find_scenes(tree)
    if not any(scenes.values()):
        raise IjepaError(
            f"{tree.where} is not laid out as CLEVR; expected images/<split>/*.png and "
            f"scenes/CLEVR_<split>_scenes.json."
        )
    images, left_out = f"{wrapper}images/", Counter(tree.left_out)

    def items(splits: AbstractSet[str]) -> Iterator[Item]:
        labels = {split: _Scenes(scenes[split]) for split in splits}
        for entry in tree.entries():
            split, _, name = entry.path.removeprefix(images).partition("/")
            if entry.path.startswith(images) and is_image(name) and split in scenes:
                known = labels[split].pop(name) if split in splits else ()
                yield Item(split, name, *entry[:4], *known)
            elif not entry.path.endswith(SCENES):
                left_out[kind_of(entry.path)] += 1
        for read in labels.values():
            read.check_all_used()

    return {split: LABELS if entry else {} for split, entry in scenes.items()}, items, left_out


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


def read_scenes(entry: Entry) -> Iterator[dict[str, Any]]:
    """The scenes of a file one by one; CLEVR's file as a whole would take gigabytes of memory."""
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
    """Labels by image, and the distance of its nearest object."""

    def __init__(self, entry: Entry | None) -> None:
        """Read all scenes of a split; it may have none."""
        self._path, self._labels = entry.path if entry else None, {}
        for number, scene in enumerate(read_scenes(entry) if entry else ()):
            try:
                labels, depth = label_scene(scene)
                self._labels[str(scene["image_filename"])] = labels, {"nearest_depth": depth}
            except (KeyError, IndexError, TypeError, ValueError) as error:
                raise IjepaError(
                    f"{self._path}: scene {number} is not a CLEVR scene ({error!r}); expected "
                    f"image_filename and objects with colour, shape and pixel_coords."
                ) from error

    def pop(self, image: str) -> tuple[Any, ...]:
        """Labels and metadata of an image; nothing in a split without scenes."""
        if self._path is None:
            return ()
        if image not in self._labels:
            raise IjepaError(f"{image} has no scene in {self._path}; copy both again.")
        return self._labels.pop(image)

    def check_all_used(self) -> None:
        """Refuse scenes whose images are missing: some files were not copied."""
        if self._labels:
            raise IjepaError(
                f"{len(self._labels):,} scenes of {self._path} have no image, such as "
                f"{min(self._labels)}; copy the images again."
            )


def _find_scenes(tree: Tree) -> tuple[str, dict[str, Entry | None]]:
    """The folder around everything, and the file of scenes of each split of images."""
    wrapper, outline = unwrap(tree.outline, ("images",))
    splits = sorted({parts[1] for parts in outline if parts[0] == "images" and len(parts) == 3})
    paths = {split: f"{wrapper}scenes/CLEVR_{split}{SCENES}" for split in splits}
    found = tree.find(*paths.values())
    return wrapper, {split: found.get(path) for split, path in paths.items()}


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
