"""Two feature files that a probe may be fitted and scored on, and whatever forbids it.

Images that stand in train and in test, byte for byte and whatever their names, are a leak.
Published data sets hold a few, so that few are told with the score; many are refused.
"""

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ijepa.errors import IjepaError
from ijepa.features.store import Features, open_features

MOST_REPEATS = 0.05  # of the test images
SHOWN_REPEATS = 3  # of them, in an error
Ints = np.ndarray[tuple[int, ...], np.dtype[Any]]

ALIKE = ("weights_sha256", "which", "layers", "pooling", "image_px", "transform")


class FeaturePair(NamedTuple):
    """Feature files of the same encoder: what a probe is fitted on, and what it is scored on."""

    train: Path
    test: Path


class Images(NamedTuple):
    """The images of a feature file, of which each may stand there in several views.

    Attributes:
        store: the file.
        keys: n names.
        labels: (n,) int64 class numbers.
        image_ids: (n,) uint64, see `stores.repeats`.
        views: (n, 1 + K) row numbers: of each image's evaluation view, then of its augmented ones.
        unlabelled: further images of the file, whose class is not known; no probe takes them.
    """

    store: Features
    keys: list[str]
    labels: Ints
    image_ids: Ints
    views: Ints
    unlabelled: int = 0


class OpenPair(NamedTuple):
    """A pair that has been found to belong together.

    Attributes:
        train: images to fit on.
        test: images to score on.
        repeats: keys of those of these that are training images, too, under another name.
    """

    train: Images
    test: Images
    repeats: tuple[str, ...]


def open_pair(pair: FeaturePair, label: str) -> OpenPair:
    """Open both files, and see that they belong together.

    Raises:
        IjepaError: other encoders or options, no such label, classes numbered otherwise, nothing
            to choose on, images that are in both, or many that are under another name.
    """
    train, test = open_features(pair.train), open_features(pair.test)
    for what in ALIKE:
        ours, theirs = getattr(train.header, what), getattr(test.header, what)
        if ours != theirs:
            raise IjepaError(
                f"{pair.train} and {pair.test} were not made alike: {what} is {ours!r} and "
                f"{theirs!r}. Extract both with the same encoder and options."
            )
    fitted, scored = _images(train, label), _images(test, label)
    _refuse_other_classes(train, test, label)
    _refuse_unfit(fitted, label)
    _refuse_no_class_in_common(fitted, scored, label)
    _refuse_leak(fitted, scored)
    ours, theirs = (Known(images.image_ids, images.keys) for images in (fitted, scored))
    return OpenPair(fitted, scored, repeated_keys(ours, theirs, len(theirs.keys)))


def refuse_other_images(first: OpenPair, others: Sequence[OpenPair]) -> None:
    """Baselines are fitted and compared on the images of the first pair.

    Raises:
        IjepaError: naming the file with others.
    """
    for other in others:
        for theirs, ours in zip(other[:2], first[:2], strict=True):
            same_data = theirs.store.header.data_fingerprint == ours.store.header.data_fingerprint
            if not same_data or theirs.keys != ours.keys:
                raise IjepaError(
                    f"{theirs.store.path} holds other images than {ours.store.path}; baselines are "
                    f"fitted and compared on the same images."
                )


def _images(store: Features, label: str) -> Images:
    if label not in store.labels:
        there = ", ".join(store.labels) or "none"
        raise IjepaError(f"{store.path} has no label {label!r}; its labels are: {there}.")
    if not store.shape[0]:
        raise IjepaError(f"{store.path} holds no image.")
    keys, labels, ids, views = store.keys, store.labels[label], store.image_ids, store.views
    if views is None:
        rows = np.arange(len(keys))[:, np.newaxis]
        return _with_classes(Images(store, keys, labels, ids, rows), label)
    each = 1 + store.header.num_views
    firsts = keys[::each]
    alike = all(keys[view::each] == firsts for view in range(1, each))
    if not alike or not np.array_equal(views, np.tile(np.arange(each), len(firsts))):
        raise IjepaError(
            f"{store.path} does not hold views 0 to {each - 1} of each image, one behind the "
            f"other; extract again."
        )
    rows = np.arange(len(keys)).reshape(-1, each)
    return _with_classes(Images(store, firsts, labels[::each], ids[::each], rows), label)


def _with_classes(images: Images, label: str) -> Images:
    """Without those whose class is not known, numbered below 0."""
    known = np.flatnonzero(images.labels >= 0)
    unlabelled = len(images.keys) - len(known)
    if not unlabelled:
        return images
    if not len(known):
        raise IjepaError(f"{images.store.path} has no image whose {label!r} is known.")
    return Images(
        images.store,
        [images.keys[number] for number in known.tolist()],
        images.labels[known],
        images.image_ids[known],
        images.views[known],
        unlabelled,
    )


def _refuse_other_classes(train: Features, test: Features, label: str) -> None:
    names, others = (store.header.class_names[label] for store in (train, test))
    if names != others:
        raise IjepaError(
            f"Classes of {label!r} are numbered otherwise in {train.path} and {test.path}: "
            f"{_first_difference(names or [], others or [])}. Shard both splits together."
        )


def _first_difference(names: list[str], others: list[str]) -> str:
    pairs = itertools.zip_longest(names, others, fillvalue="nothing")
    return next(f"{number} is {a} and {b}" for number, (a, b) in enumerate(pairs) if a != b)


def _refuse_unfit(train: Images, label: str) -> None:
    _, counts = np.unique(train.labels, return_counts=True)
    if len(counts) < 2 or counts.max() < 2:
        raise IjepaError(
            f"{train.store.path} has {len(counts)} classes of {label!r} with at most "
            f"{counts.max()} images each; a probe needs two classes, and two images of one to "
            f"choose with."
        )


def _refuse_no_class_in_common(train: Images, test: Images, label: str) -> None:
    if not np.isin(test.labels, train.labels).any():
        raise IjepaError(
            f"{train.store.path} has no image of any class of {label!r} in {test.store.path}; a "
            f"probe could get none right. Extract splits that share classes."
        )


def _refuse_leak(train: Images, test: Images) -> None:
    same_data = train.store.header.data_fingerprint == test.store.header.data_fingerprint
    shared = set(train.keys) & set(test.keys) if same_data else set()
    if shared:
        raise IjepaError(
            f"{len(shared):,} images of {test.store.path} are in {train.store.path}, too, such as "
            f"{min(shared)}; a probe must not be scored on what it was fitted on."
        )


class Known(NamedTuple):
    """Images by content and name: (n,) numbers of their bytes, and n keys."""

    ids: Ints
    keys: Sequence[str]


def repeated_keys(train: Known, test: Known, test_images: int) -> tuple[str, ...]:
    """Which test images are training images, too.

    Args:
        train: images to fit on.
        test: images to score on.
        test_images: how many there are, with those that were not looked at.

    Raises:
        IjepaError: they are many.
    """
    found = np.flatnonzero(np.isin(test.ids, train.ids)).tolist()
    if len(found) > MOST_REPEATS * test_images:
        same = dict(zip(train.ids.tolist(), train.keys, strict=True))
        pairs = [(test.keys[place], same[int(test.ids[place])]) for place in found[:SHOWN_REPEATS]]
        raise IjepaError(
            f"{len(found):,} of {test_images:,} test images are training images, too, byte for "
            f"byte, such as {', '.join(f'{one} ({other} in train)' for one, other in pairs)}; a "
            f"score must not be of what was fitted on. Leave them out of one split."
        )
    return tuple(test.keys[place] for place in found)
