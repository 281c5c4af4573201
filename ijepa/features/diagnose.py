"""Whether the encoder of a feature file has collapsed, layer by layer."""

from pathlib import Path

import numpy as np
import torch

from ijepa.arrays import Array
from ijepa.config import Config, StrPath
from ijepa.errors import IjepaError
from ijepa.features.store import Features, open_features
from ijepa.jepa.monitor import health, lidar, neighbour_accuracy
from ijepa.progress import Progress, automatic

MOST_IMAGES = 25_600  # drawn at random from larger files; as many as RankMe was published with
NEIGHBOUR_IMAGES = 5000  # drawn at random: each is compared with all others
LIDAR_IMAGES = 2000  # drawn at random: rows may be in the order of their classes


class LayerState(Config):
    """The state of one stored layer."""

    layer: int  # number of the encoder's block
    rankme: float  # effective number of dimensions (Garrido et al., RankMe, 2023, equation 1)
    feature_std: float  # standard deviation over images, mean over dimensions
    mean_cosine: float  # between different images, mean over pairs
    # Fraction of images whose class is that of most of their ten nearest among some thousand; None
    # without labels.
    neighbour_accuracy: float | None = None
    # Effective dimensions that tell images apart whatever their augmented view; None without two.
    lidar: float | None = None


class FeatureState(Config):
    """The state of every stored layer, measured on evaluation views."""

    path: Path
    encoder: str
    images: int
    label: str | None
    layers: tuple[LayerState, ...]


def diagnose(
    path: StrPath, label: str | None = "class", progress: Progress = automatic
) -> FeatureState:
    """Measure every stored layer of a feature file as training's health checks do.

    Of more than 25,600 images, that many are drawn at random. Classes are not looked at if `label`
    is None, or if the file has no labels at all.

    Raises:
        IjepaError: it is not whole, has no such label, or holds less than two images.
    """
    path = Path(path)
    with open_features(path) as store:
        label = label if store.labels else None
        classes = None if label is None else store.labels[label]
        rows = np.arange(0, store.shape[0], 1 + store.header.num_views)
        if len(rows) < 2:
            raise IjepaError(f"{path} holds {len(rows)} images; a diagnosis needs two.")
        if len(rows) > MOST_IMAGES:
            rows = np.sort(np.random.default_rng(0).choice(rows, MOST_IMAGES, replace=False))
        layers = []
        for place in range(store.shape[1]):
            layers.append(_layer_state(store, place, rows, classes))
            progress("diagnose layers", place + 1, store.shape[1])
        return FeatureState(
            path=path,
            encoder=store.header.encoder,
            images=len(rows),
            label=label,
            layers=tuple(layers),
        )


def _layer_state(store: Features, place: int, rows: Array, classes: Array | None) -> LayerState:
    """Measure one layer on some rows, which are evaluation views; `classes` are of all rows."""

    def layer(rows: Array) -> torch.Tensor:
        return torch.from_numpy(store.values[rows, place].astype(np.float32))

    accuracy = across_views = None
    known = rows[:0] if classes is None else rows[classes[rows] >= 0]
    if classes is not None and len(known) >= 2:
        chosen = known[np.random.default_rng(0).permutation(len(known))[:NEIGHBOUR_IMAGES]]
        accuracy = neighbour_accuracy(layer(chosen), torch.from_numpy(classes[chosen]))
    num_views = store.header.num_views
    if num_views >= 2:
        firsts = np.random.default_rng(0).permutation(rows)[:LIDAR_IMAGES]
        others = layer((firsts[:, np.newaxis] + 1 + np.arange(num_views)).ravel())  # behind each
        across_views = lidar(others.reshape(len(firsts), num_views, -1))
    return LayerState(
        layer=store.header.layers[place],
        **health(layer(rows))._asdict(),
        neighbour_accuracy=accuracy,
        lidar=across_views,
    )
