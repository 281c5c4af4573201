"""Look into feature files: what they are, whether they are whole, and in what state."""

from pathlib import Path

import numpy as np

from ijepa.config import Config, StrPath
from ijepa.data.shards import check_shards, open_shards
from ijepa.errors import IjepaError
from ijepa.features.store import FeatureHeader, Features, open_features
from ijepa.progress import Progress, silent

Ints = np.ndarray[tuple[int, ...], np.dtype[np.int64]]
Floats = np.ndarray[tuple[int, ...], np.dtype[np.float32]]

ROWS_AT_ONCE = 4096
NEIGHBOUR_IMAGES = 5000  # drawn at random: each is compared with all others
LIDAR_IMAGES = 2000


class FeatureInfo(Config):
    """What a file says of itself.

    Attributes:
        classes: how many different values each label has.
        num_bytes: of the file.
    """

    path: Path
    images: int
    views: int
    layers: int
    dim: int
    dtype: str
    classes: dict[str, int]
    num_bytes: int
    header: FeatureHeader


class LayerState(Config):
    """`ijepa.features.diagnose.Diagnosis` of one stored layer, and what needs a sample of images.

    Attributes:
        layer: number of the encoder's block.
        neighbour_accuracy: share of images whose class is that of most of their ten nearest among
            some thousand; None without labels.
        lidar: effective dimensions that tell images apart whatever their augmented view; None
            without two such views.
    """

    layer: int
    rankme: float
    alpha_req: float
    feature_std: float
    dead_dims: float
    mean_cosine: float
    class_separation: float | None
    neighbour_accuracy: float | None
    lidar: float | None


class FeatureState(Config):
    """Of every stored layer, by evaluation views."""

    path: Path
    encoder: str
    images: int
    label: str | None
    layers: tuple[LayerState, ...]


def describe(path: StrPath, *, check: bool = False) -> FeatureInfo:
    """Say what a feature file holds.

    Args:
        path: of `ijepa extract`.
        check: read all of it, to see that each number is what was written.

    Raises:
        IjepaError: it is not whole, or, with `check`, damaged.
    """
    path = Path(path)
    with open_features(path, check_numbers=check) as store:
        rows, layers, dim = store.shape
        views = 1 + store.header.num_views
        return FeatureInfo(
            path=path,
            images=rows // views,
            views=views,
            layers=layers,
            dim=dim,
            dtype=store.dtype,
            classes={
                name: len(np.unique(values[values >= 0])) for name, values in store.labels.items()
            },
            num_bytes=path.stat().st_size,
            header=store.header,
        )


def check_data(path: StrPath, shards: StrPath, progress: Progress = silent) -> None:
    """See that a feature file was made from this shard set, and that the set is undamaged.

    Args:
        path: of `ijepa extract`.
        shards: of `ijepa shard`.
        progress: told of the files read.

    Raises:
        IjepaError: it was made from other images, or files of the set are damaged.
    """
    path, shards = Path(path), Path(shards)
    found = describe(path).header.data_fingerprint
    if found != open_shards(shards).fingerprint:
        raise IjepaError(f"{path} was made from other images than those of {shards}.")
    check_shards(shards, progress)


def diagnose(
    path: StrPath, label: str | None = "class", progress: Progress = silent
) -> FeatureState:
    """Measure every stored layer of a feature file, in bounded memory.

    Args:
        path: of `ijepa extract`.
        label: by which classes are told apart; None for none.
        progress: hears of images read.

    Raises:
        IjepaError: it is not whole, has no such label, or holds less than two images.
    """
    path = Path(path)
    with open_features(path) as store:
        if label is not None and label not in store.labels:
            there = ", ".join(store.labels) or "none"
            raise IjepaError(f"{path} has no label {label!r}; its labels are: {there}.")
        views = store.views
        rows = np.arange(store.shape[0]) if views is None else np.flatnonzero(views == 0)
        if len(rows) < 2:
            raise IjepaError(f"{path} holds {len(rows)} images; a diagnosis needs two.")
        classes = None
        if label is not None:
            classes = store.labels[label][rows]
            known = classes >= 0
            classes[known] = np.unique(classes[known], return_inverse=True)[1]
        states = _states(store, rows, classes, progress)
        return FeatureState(
            path=path, encoder=store.header.encoder, images=len(rows), label=label, layers=states
        )


def _states(
    store: Features,
    rows: Ints,
    classes: Ints | None,
    progress: Progress,
) -> tuple[LayerState, ...]:
    from ijepa.features.diagnose import Moments

    _, num_layers, dim = store.shape
    num_classes = 0 if classes is None else int(classes.max()) + 1
    moments = [Moments(dim, num_classes) for _ in range(num_layers)]
    for first in range(0, len(rows), ROWS_AT_ONCE):
        some = slice(first, first + ROWS_AT_ONCE)
        block = store.read(rows[some], num_layers)
        for place, layer in enumerate(moments):
            layer.add(block[:, place], None if classes is None else classes[some])
        progress("diagnose images", min(first + ROWS_AT_ONCE, len(rows)), len(rows))
    return tuple(
        LayerState(
            layer=store.header.layers[place],
            **found.diagnosis()._asdict(),
            neighbour_accuracy=_neighbours(store, place, rows, classes),
            lidar=_lidar(store, place),
        )
        for place, found in enumerate(moments)
    )


def _neighbours(
    store: Features,
    place: int,
    rows: Ints,
    classes: Ints | None,
) -> float | None:
    if classes is None:
        return None
    import torch

    from ijepa.jepa.monitor import neighbour_accuracy

    known = np.flatnonzero(classes >= 0)
    if len(known) < 2:
        return None
    chosen = known[np.random.default_rng(0).permutation(len(known))[:NEIGHBOUR_IMAGES]]
    features = torch.from_numpy(_layer(store, rows[chosen], place))
    return neighbour_accuracy(features, torch.from_numpy(classes[chosen]))


def _lidar(store: Features, place: int) -> float | None:
    """Over images, all views of which stand one behind the other, the evaluation view first."""
    count = store.header.num_views
    if count < 2 or store.views is None:
        return None
    import torch

    from ijepa.jepa.monitor import lidar

    firsts = np.flatnonzero(store.views == 0)[:LIDAR_IMAGES]
    rows = (firsts[:, np.newaxis] + 1 + np.arange(count)).ravel()
    views = _layer(store, rows, place).reshape(len(firsts), count, -1)
    return lidar(torch.from_numpy(views))


def _layer(store: Features, rows: Ints, place: int) -> Floats:
    found: Floats = store.read(rows, store.shape[1] - place)[:, 0].astype(np.float32)
    return found
