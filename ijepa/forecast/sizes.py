"""How many images, how wide features: read from what is there, else from what will make it."""

from pathlib import Path
from typing import NamedTuple

from ijepa.data.shards import open_shards
from ijepa.data.sources.scenes import parse_spec
from ijepa.paper import IN22K_IMAGES, TABLES

RENDERED = "scenes"
SCENE_CLASSES = {"class": 24, "count": 8, "dist": 6}  # colour and shape; CLEVR's
PHOTOGRAPHS = {"imagenet", "imagenet22k", "inat18", "places205", "places365"}


class ImageSet(NamedTuple):
    """A shard set, there or not.

    Attributes:
        images: by split.
        classes: by label.
        kind: of the source, such as `imagenet`.
        num_bytes: on disk; None if unknown.
    """

    images: dict[str, int]
    classes: dict[str, int]
    kind: str
    num_bytes: int | None


class FeatureSet(NamedTuple):
    """A feature file, there or not."""

    rows: int
    views: int
    dim: int
    layers: int
    classes: dict[str, int]


def image_set(source: str, shards: Path) -> ImageSet | None:
    """What a shard set holds or will hold; None where only reading the source would tell."""
    kind = source.partition(":")[0]
    if shards.is_dir():
        opened = open_shards(shards)
        images = {name: split.samples for name, split in opened.splits.items()}
        classes = {
            name: len(names)
            for split in opened.splits.values()
            for name, names in split.labels.items()
        }
        size = sum(shard.bytes for split in opened.splits.values() for shard in split.shards)
        return ImageSet(images, classes, kind, size)
    if kind == RENDERED:
        spec = parse_spec(source.partition(":")[2])
        return ImageSet({"train": spec.train, "val": spec.val}, SCENE_CLASSES, kind, None)
    return PUBLISHED.get(kind)


def _published() -> dict[str, ImageSet]:
    """Sets as published, by kind."""
    sets = {
        "cifar10": ImageSet({"train": 50_000, "test": 10_000}, {"class": 10}, "cifar10", None),
        "imagenet22k": ImageSet({"train": IN22K_IMAGES}, {}, "imagenet22k", None),
    }
    for data in dict.fromkeys(column.data for table in TABLES for column in table.columns):
        before = sets[data.kind].classes if data.kind in sets else {}
        test = "test" if data.kind.startswith("cifar") else "val"
        images = {"train": data.train_images, test: data.test_images}
        classes = before | {data.label: data.classes}
        sets[data.kind] = ImageSet(images, classes, data.kind, None)
    return sets


PUBLISHED = _published()
