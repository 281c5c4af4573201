"""Images whose features are stored: their rows, their labels, their thumbnails."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ijepa.data.decode import decode_rgb
from ijepa.data.shards import ShardSet, SplitReader, open_shards
from ijepa.errors import IjepaError
from ijepa.features.store import FeatureHeader, Features
from ijepa.figures.sheet import Pixels

Ints = np.ndarray[tuple[int, ...], np.dtype[np.int64]]


class Stored(NamedTuple):
    """Evaluation views in a feature file.

    Attributes:
        rows: (n,) their rows, one an image.
        keys: of the images, likewise.
        names: of their classes, likewise; None without a label.
    """

    rows: Ints
    keys: list[str]
    names: list[str] | None


UNLABELLED = "not labelled"  # of an image whose class is not known


def stored_images(store: Features, label: str | None) -> Stored:
    """Look up what a feature file says of its images.

    Raises:
        IjepaError: it has no such label.
    """
    views, keys = store.views, store.keys
    rows = np.arange(len(keys)) if views is None else np.flatnonzero(views == 0)
    if label is not None and label not in store.labels:
        there = ", ".join(store.labels) or "none"
        raise IjepaError(
            f"{store.path} has no label {label!r}; its labels are: {there}. --no-label takes none."
        )
    names = None if label is None else _names(store, label, rows)
    return Stored(rows, [keys[row] for row in rows], names)


def _names(store: Features, label: str, rows: Ints) -> list[str]:
    known = store.header.class_names.get(label)
    values = store.labels[label][rows].tolist()
    return [UNLABELLED if value < 0 else known[value] if known else str(value) for value in values]


def open_images(folder: Path, header: FeatureHeader, features: Path) -> ShardSet:
    """Open the shard set that features were extracted from.

    Raises:
        IjepaError: it is another one.
    """
    data = open_shards(folder)
    if data.fingerprint != header.data_fingerprint:
        raise IjepaError(
            f"{features} was not extracted from {folder} but from {header.source or 'other data'}; "
            f"name its shard set with --data."
        )
    return data


def thumbnails(
    data: ShardSet, header: FeatureHeader, stored: Stored, places: Sequence[int], side_px: int
) -> list[Pixels]:
    """(side, side, 3) uint8 squares of some images, cut from their middle.

    Args:
        data: where the images are.
        header: of the feature file; its splits are looked through.
        stored: its images.
        places: in `stored`, of the wanted ones.
        side_px: of the thumbnails.

    Raises:
        IjepaError: an image that its splits do not hold.
    """
    splits = [data.split(name) for name in header.split.split("+")]
    if len(splits) == 1 and len(splits[0]) == len(stored.keys):
        where = [(splits[0], place) for place in places]
        if splits[0].keys(list(places)) == [stored.keys[place] for place in places]:
            return [_thumbnail(split.read_image(number), side_px) for split, number in where]
    wanted = [stored.keys[place] for place in places]
    found = _by_key(splits, set(wanted))
    missing = [key for key in wanted if key not in found]
    if missing:
        raise IjepaError(f"{data.folder} has no image {missing[0]!r} in {header.split}.")
    where = [found[key] for key in wanted]
    return [_thumbnail(split.read_image(number), side_px) for split, number in where]


def _by_key(splits: Sequence[SplitReader], wanted: set[str]) -> dict[str, tuple[SplitReader, int]]:
    return {
        key: (split, number)
        for split in splits
        for number, key in enumerate(split.keys())
        if key in wanted
    }


def _thumbnail(content: bytes, side_px: int) -> Pixels:
    from ijepa.jepa.augment import evaluation_crop

    view = evaluation_crop(decode_rgb(content), side_px, 1.0)
    pixels: Pixels = view[0].permute(1, 2, 0).numpy()
    return pixels
