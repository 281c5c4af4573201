"""Two feature files that a probe may be fitted and scored on, and whatever forbids it.

Test images that are byte-identical to a training image are a leak. Published data sets hold a few:
up to 5% of the test images are reported with the score; above that, the probe refuses.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ijepa.arrays import Ints
from ijepa.errors import IjepaError
from ijepa.features.store import Features, open_features

MOST_REPEATS = 0.05  # of the test images
ALIKE = ("weights_sha256", "which", "layers", "pooling", "image_px", "transform")


class Images(NamedTuple):
    """The images of a feature file whose class is known; each may stand there in several views."""

    store: Features
    keys: list[str]
    labels: Ints  # (n,) class numbers
    image_ids: Ints  # (n,) uint64, see `Features`
    views: Ints  # (n, 1 + K) rows: of each image's evaluation view, then of its augmented ones
    unlabelled: int  # further images of the file, whose class is not known; no probe takes them


class OpenPair(NamedTuple):
    """A pair that has been found to belong together."""

    train: Images
    test: Images
    repeats: tuple[str, ...]  # keys of test images that are training images, too
    deviations: tuple[str, ...]  # what a score must say of these files


def open_pair(
    pair: tuple[Path, Path],
    label: str,
    *,
    tokens: bool = False,
    leave_one_out: bool = False,
    dense: bool = False,
) -> OpenPair:
    """Open the files to fit and to score on, and see that they belong together.

    With `tokens`, these are checked, too. With `dense`, the label is a dense one, and all images
    are of class 0. Both may be one file for a probe that leaves out each image while it is scored.

    Raises:
        IjepaError: other encoders or options, no such label or tokens, classes numbered otherwise,
            nothing to choose on, images that are in both, or many that are under another name.
    """
    train_path, test_path = pair
    opened = (open_features(path, check_tokens=tokens) for path in pair)
    train, test = (_images(store, label, dense) for store in opened)
    one, other = train.store.header, test.store.header
    for what in (*ALIKE, "tokens") if tokens else ALIKE:
        ours, theirs = getattr(one, what), getattr(other, what)
        if ours != theirs:
            if what == "weights_sha256":
                what, ours, theirs = "encoder", one.encoder, f"{other.encoder} (other weights)"
            raise IjepaError(
                f"{train_path} and {test_path} differ in {what}: {ours} and {theirs}. Extract both "
                f"with the same encoder and options."
            )
    if not dense:
        _check_classes(train, test, label)
    elif one.dense[label] != other.dense[label] or len(train.keys) < 2:
        raise IjepaError(
            f"{train_path} and {test_path} hold other classes of {label!r}, or one image alone; "
            f"shard both splits together, with two training images or more."
        )
    if leave_one_out and one.fingerprint == other.fingerprint:
        return OpenPair(train, test, (), _deviations(train, test, label))
    shared = set(train.keys) & set(test.keys)
    if shared and one.data_fingerprint == other.data_fingerprint:
        raise IjepaError(
            f"{train_path} to train on and {test_path} to test on have images in common, "
            f"{len(shared):,} in all, such as {min(shared)}; a probe must not be scored on "
            f"what it was fitted on."
        )
    repeats = repeated_keys(train.image_ids, train.keys, test.image_ids, test.keys)
    return OpenPair(train, test, repeats, _deviations(train, test, label))


def refuse_other_images(first: OpenPair, others: Sequence[OpenPair]) -> None:
    """Baselines must be fitted and compared on the images of the first pair."""
    for other in others:
        for theirs, ours in ((other.train, first.train), (other.test, first.test)):
            same_data = theirs.store.header.data_fingerprint == ours.store.header.data_fingerprint
            if not same_data or theirs.keys != ours.keys:
                raise IjepaError(
                    f"{theirs.store.path} holds other images than {ours.store.path}; baselines are "
                    f"fitted and compared on the same images."
                )


def _images(store: Features, label: str, dense: bool) -> Images:
    numbered = np.zeros(len(store.maps(label)), np.int64) if dense else store.labels[label]
    each = 1 + store.header.num_views  # rows of an image stand one behind the other
    keys = store.keys[::each]
    labels = numbered[::each]
    known = np.flatnonzero(labels >= 0)
    if not len(known):
        raise IjepaError(f"{store.path} has no image whose {label!r} is known.")
    return Images(
        store,
        [keys[number] for number in known.tolist()],
        labels[known],
        store.image_ids[::each][known],
        np.arange(len(numbered)).reshape(-1, each)[known],
        len(keys) - len(known),
    )


def _check_classes(train: Images, test: Images, label: str) -> None:
    """Refuse classes numbered otherwise, too few to fit and to choose on, or none in common."""
    one, other = train.store, test.store
    if one.header.class_names[label] != other.header.class_names[label]:
        raise IjepaError(
            f"Classes of {label!r} are numbered otherwise in {one.path} and {other.path}; shard "
            f"both splits together."
        )
    _, counts = np.unique(train.labels, return_counts=True)
    if len(counts) < 2 or counts.max() < 2:
        raise IjepaError(
            f"{one.path} has {len(counts)} classes of {label!r} with at most {counts.max()} images "
            f"each; a probe needs two classes, and two images of one to choose with."
        )
    if not np.isin(test.labels, train.labels).any():
        raise IjepaError(
            f"{one.path} has no image of any class of {label!r} in {other.path}; a probe could get "
            f"none right. Extract splits that share classes."
        )


def _deviations(train: Images, test: Images, label: str) -> tuple[str, ...]:
    """What a score must say of these files: splits, classes without training images, precision."""
    one, other, deviations = train.store.header, test.store.header, []
    if other.split == "train":  # which encoders have seen
        deviations.append("scored on the split train")
    unknown = test.labels[~np.isin(test.labels, train.labels)]
    if len(unknown):
        names, classes = other.class_names[label] or [], np.unique(unknown).tolist()
        said = ", ".join(names[n] if n < len(names) else str(n) for n in classes[:3])
        more = f" and {len(classes) - 3:,} more" if len(classes) > 3 else ""
        deviations.append(
            f"{len(unknown):,} test images are of classes that train lacks: {said}{more}"
        )
    for name, images in (("train", train), ("test", test)):
        if images.unlabelled:
            deviations.append(f"{images.unlabelled:,} images of {name} without a label left out")
    if one.precision != other.precision:
        deviations.append(
            f"features computed in {one.precision} to train on, in {other.precision} to test on"
        )
    return tuple(deviations)


def repeated_keys(
    train_ids: Ints, train_keys: Sequence[str], test_ids: Ints, test_keys: Sequence[str]
) -> tuple[str, ...]:
    """Which test images are training images, too, byte for byte; many are refused.

    Images are told by the (n,) uint64 of `SplitReader.image_ids`, and named by n keys.
    """
    repeated = np.flatnonzero(np.isin(test_ids, train_ids)).tolist()
    if len(repeated) > MOST_REPEATS * len(test_keys):
        same = dict(zip(train_ids.tolist(), train_keys, strict=True))
        pairs = [(test_keys[n], same[int(test_ids[n])]) for n in repeated[:3]]
        raise IjepaError(
            f"{len(repeated):,} of {len(test_keys):,} test images are training images, too, byte "
            f"for byte, such as {', '.join(f'{one} ({other} in train)' for one, other in pairs)}; "
            f"a score must not be of what was fitted on. Leave them out of one split."
        )
    return tuple(test_keys[place] for place in repeated)
