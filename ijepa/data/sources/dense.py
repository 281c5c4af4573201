"""Maps beside images: a folder of masks or depth maps, and ADE20K's, VOC's and NYU's layouts."""

import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from ijepa.config import StrPath
from ijepa.data.decode import DenseLabel
from ijepa.data.sources.items import Item, Listing, Place, Request, Source
from ijepa.data.sources.names import SPLITS, kind_of, read_lines, without_suffix
from ijepa.data.sources.tables import is_table
from ijepa.data.sources.trees import Entry, Tree, digest_of, walk
from ijepa.errors import IjepaError
from ijepa.files import fingerprint_of

MASKS, DEPTH = "seg", "depth"  # names of dense labels
NAMES = "classes.txt"  # in a folder of masks: the names of classes 0, 1, ..., one a line
ADE_NAMES, ADE_CLASSES = "objectInfo150.txt", 150  # index, ratio, train, val, stuff, name
ADE_IMAGE = re.compile(r"(.*/|)images/(training|validation)/([^/]+)\.jpg")
VOC_LIST = re.compile(r"(.*/|)ImageSets/Segmentation/(train|val)\.txt")
NYU_IMAGE = re.compile(
    r"(?:.*/|)(?P<top>sync|official_splits/train|official_splits/test)/(?P<scene>[^/]+)/"
    r"rgb_(?P<number>\d+)\.jpg"
)
VOC_NAMES = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair",
    "cow", "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa",
    "train", "tvmonitor",
)  # fmt: skip


def with_maps(source: Source, folders: Mapping[str, StrPath], ignored: int, scale: float) -> Source:
    """A source with a map for each image in folders by label: `depth`, or any other of classes.

    A map has the name of its image, below the image's path or its path within the split; that of a
    row of a table, the name of the row's key. One that is missing is an image that does not decode.
    """
    paths = {name: Path(folder) for name, folder in folders.items()}
    labels = dict(source.dense)
    for name, folder in paths.items():
        if not folder.is_dir():
            raise IjepaError(f"There is no folder {folder} of {name} maps.")
        images = source.where
        if images and images.resolve() in (folder.resolve(), *folder.resolve().parents):
            raise IjepaError(
                f"{folder} lies in {images}, so its maps would be images, too; name the folder of "
                f"the images alone, such as {images}/images."
            )
        labels[name] = (
            DenseLabel(kind="depth", scale=scale)
            if name == DEPTH
            else DenseLabel(names=_class_names(folder / NAMES), ignored=ignored)
        )

    def find(request: Request) -> Listing:
        splits, images, left_out = source.find(request)

        def mapped() -> Iterator[Item]:
            for item in images:
                maps = {name: _place(folder, item) for name, folder in paths.items()}
                yield item._replace(dense=item.dense | maps)

        return Listing(splits, mapped(), left_out)

    def digest() -> str:
        files = [digest_of(walk(folder)) for folder in paths.values()]
        facts = [label.model_dump(mode="json") for label in labels.values()]
        return fingerprint_of([source.digest(), files, facts])

    return replace(source, find=find, digest=digest, dense=labels)


def _class_names(path: Path) -> tuple[str, ...] | None:
    """Names of classes 0, 1, ..., one a line; None without such a file."""
    if not path.is_file():
        return None
    names = [
        line.strip() for line in path.read_text(errors="backslashreplace").rstrip().split("\n")
    ]
    for number, name in enumerate(names):
        if not name or name in names[:number]:
            raise IjepaError(
                f"{path}, line {number + 1}: expected the name of class {number}, found "
                f"{f'{name!r} for the second time' if name else 'nothing'}."
            )
    return tuple(names)


def _place(folder: Path, item: Item) -> Place:
    """Where the map of an image lies; of no bytes if it is missing."""
    table, row, _ = item.path.rpartition(", row ")
    names = [item.name] if row and is_table(table) else [item.path, item.name]
    # Below the folder, also for a list's absolute paths and those with `..`.
    below = (os.path.normpath(f"/{without_suffix(name)[0].lstrip('/')}")[1:] for name in names)
    stems = dict.fromkeys(below)
    tried = [folder / f"{stem}{end}" for stem in stems for end in (".png", ".PNG", ".npy")]
    found = next((path for path in tried if path.is_file()), None)
    return str(found or tried[0]), 0, found.stat().st_size if found else 0


# Split, name within it, path of the image and path of its map, of images of a published data set.
Pair = tuple[str, str, str, str]


def published_labels(kind: str, where: Path) -> dict[str, DenseLabel]:
    """Dense labels of `ade20k`, `voc` or `nyu`."""
    if kind == "nyu":
        return {DEPTH: DenseLabel(kind="depth")}
    if kind == "voc":
        return {MASKS: DenseLabel(names=VOC_NAMES)}
    lines = read_lines(where / ADE_NAMES)[1:] if (where / ADE_NAMES).is_file() else ()
    names = [line.rpartition("\t")[2] for line in lines] or [str(n + 1) for n in range(ADE_CLASSES)]
    return {MASKS: DenseLabel(names=tuple(names), first=1, ignored=0)}


def read_published(tree: Tree, _: Request, kind: str) -> Listing:
    """ADE20K's `images/{training,validation}` with `annotations`; VOC's and NYU's layouts.

    VOC's splits are those of `ImageSets/Segmentation`. NYU depth v2 is laid out as BTS does:
    `<scene>/rgb_*.jpg` beside `sync_depth_*.png` in millimetres, in `sync` or
    `official_splits/train`, and in `official_splits/test`.
    """
    find, expected = LAYOUTS[kind]
    files = {entry.path: entry for entry in tree.entries()}
    pairs = sorted(find(files))
    if not pairs:
        raise IjepaError(f"{tree.where} is not laid out as {kind}; expected {expected}.")
    taken = {path for pair in pairs for path in pair[2:]}
    label = next(iter(published_labels(kind, Path(tree.where))))
    left_out = tree.left_out + Counter(kind_of(path) for path in files if path not in taken)

    def images() -> Iterator[Item]:
        for split, name, image, path in pairs:
            item, values = (
                files.get(one, Entry(one, f"{tree.where}/{one}", 0, 0)) for one in (image, path)
            )
            yield Item(split, name, *item[:4], dense={label: values[1:4]})

    return Listing({pair[0]: {} for pair in pairs}, images(), left_out)


def _ade20k(files: Mapping[str, Entry]) -> Iterator[Pair]:
    for match in filter(None, map(ADE_IMAGE.fullmatch, files)):
        top, split, name = match.groups()
        yield SPLITS[split], f"{name}.jpg", match[0], f"{top}annotations/{split}/{name}.png"


def _voc(files: Mapping[str, Entry]) -> Iterator[Pair]:
    lists = [match for match in map(VOC_LIST.fullmatch, files) if match]
    if len({match[1] for match in lists}) > 1:
        raise IjepaError(f"{lists[0][0]} and {lists[-1][0]} are of several years; name one folder.")
    for match in lists:
        top, split = match.groups()
        for name in files[match[0]].text().split():
            image, mask = f"{top}JPEGImages/{name}.jpg", f"{top}SegmentationClass/{name}.png"
            yield split, f"{name}.jpg", image, mask


def _nyu(files: Mapping[str, Entry]) -> Iterator[Pair]:
    found = [match for match in map(NYU_IMAGE.fullmatch, files) if match]
    tops = {match["top"] for match in found}
    for match in found:
        top, scene, number = match["top"], match["scene"], match["number"]
        if top != "official_splits/train" or "sync" not in tops:  # where they are once more
            split = "test" if top == "official_splits/test" else "train"
            map_path = f"{match[0].rpartition('/')[0]}/sync_depth_{number}.png"
            yield split, f"{scene}/rgb_{number}.jpg", match[0], map_path


LAYOUTS: dict[str, tuple[Callable[[Mapping[str, Entry]], Iterator[Pair]], str]] = {
    "ade20k": (_ade20k, "images/{training,validation}/*.jpg and annotations/*/*.png"),
    "voc": (_voc, "JPEGImages, SegmentationClass and ImageSets/Segmentation/{train,val}.txt"),
    "nyu": (_nyu, "{sync,official_splits/test}/<scene>/rgb_*.jpg and sync_depth_*.png"),
}
