"""What a feature file holds and in what state it is: spectrum, spread, classes, layer by layer."""

from pathlib import Path

import numpy as np

from ijepa.arrays import Array, Floats
from ijepa.config import Config, StrPath
from ijepa.errors import IjepaError
from ijepa.features.store import FeatureHeader, Features, open_features, read_header
from ijepa.progress import Progress, automatic

POWER_LAW = (5, 100)  # eigenvalues, counted from 1, to which the exponent is fitted
DEAD = 1e-4  # of the largest standard deviation
ROWS_AT_ONCE = 4096
NEIGHBOUR_IMAGES = 5000  # drawn at random: each is compared with all others
LIDAR_IMAGES = 2000


class FeatureInfo(Config):
    """What a file says of itself; `classes`: how many different values each label has."""

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
    """The state of one stored layer."""

    layer: int  # number of the encoder's block
    rankme: float  # effective number of dimensions (Garrido et al., RankMe, 2023, equation 1)
    # Exponent of the power law that the eigenvalues of the covariance follow, 1 being balanced
    # (Agrawal et al., alpha-ReQ, 2022); fitted to eigenvalues 5 to 100, or to those there are.
    alpha_req: float
    feature_std: float  # standard deviation over images, mean over dimensions
    dead_dims: float  # fraction of dimensions that hardly vary
    mean_cosine: float  # between different images, mean over pairs
    # 1 less the ratio of mean cosine distances within classes and over all (Kornblith et al.,
    # 2021, R^2); None without labels.
    class_separation: float | None
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


def describe(path: StrPath, *, check: bool = False) -> FeatureInfo:
    """Say what a feature file holds; with `check`, read all of it against its checksums.

    Raises:
        IjepaError: it is not whole, or, with `check`, damaged.
    """
    path = Path(path)
    has_tokens = check and read_header(path).tokens is not None
    with open_features(path, check_numbers=check, check_tokens=has_tokens) as store:
        rows, layers, dim = store.shape
        views, labels = 1 + store.header.num_views, store.labels
        return FeatureInfo(
            path=path,
            images=rows // views,
            views=views,
            layers=layers,
            dim=dim,
            dtype=store.dtype,
            classes={name: len(np.unique(found[found >= 0])) for name, found in labels.items()},
            num_bytes=path.stat().st_size,
            header=store.header,
        )


def diagnose(
    path: StrPath, label: str | None = "class", progress: Progress = automatic
) -> FeatureState:
    """Measure every stored layer of a feature file, in bounded memory.

    Classes are not looked at if `label` is None, or if the file has no labels at all.

    Raises:
        IjepaError: it is not whole, has no such label, or holds less than two images.
    """
    path, classes, num_classes = Path(path), None, 0
    with open_features(path) as store:
        label = label if store.labels else None
        numbered = None if label is None else store.labels[label]
        _, num_layers, dim = store.shape
        rows = (
            np.arange(store.shape[0]) if store.views is None else np.flatnonzero(store.views == 0)
        )
        if len(rows) < 2:
            raise IjepaError(f"{path} holds {len(rows)} images; a diagnosis needs two.")
        if numbered is not None:
            classes = numbered[rows]
            known = classes >= 0
            classes[known] = np.unique(classes[known], return_inverse=True)[1]
            num_classes = int(classes.max()) + 1
        moments = [Moments(dim, num_classes) for _ in range(num_layers)]
        for first in range(0, len(rows), ROWS_AT_ONCE):
            some = slice(first, first + ROWS_AT_ONCE)
            block = store.read(rows[some], num_layers)
            for place, layer in enumerate(moments):
                layer.add(block[:, place], None if classes is None else classes[some])
            progress("diagnose images", min(first + ROWS_AT_ONCE, len(rows)), len(rows))
        layers = tuple(
            found.state(store.header.layers[place], **_compared(store, place, rows, classes))
            for place, found in enumerate(moments)
        )
        return FeatureState(
            path=path, encoder=store.header.encoder, images=len(rows), label=label, layers=layers
        )


class Moments:
    """Sums over images, from which the state of a layer follows."""

    def __init__(self, dim: int, num_classes: int) -> None:
        """Begin with no image; `num_classes` is 0 where there are no labels."""
        self._count = self._nonzero = 0
        self._sum, self._products = np.zeros(dim), np.zeros((dim, dim))
        self._unit_sums, self._per_class = np.zeros((num_classes, dim)), np.zeros(num_classes)
        self._unit_sum = np.zeros(dim)

    def add(self, features: Array, classes: Array | None) -> None:
        """Some more images: (n, dim), and (n,) class numbers from 0, -1 where not known."""
        rows = features.astype(np.float64)
        unit = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
        self._count += len(rows)
        self._nonzero += int(rows.any(axis=1).sum())
        self._sum += rows.sum(axis=0)
        self._products += rows.T @ rows
        self._unit_sum += unit.sum(axis=0)
        if classes is not None:
            known = classes >= 0
            np.add.at(self._unit_sums, classes[known], unit[known])
            self._per_class += np.bincount(classes[known], minlength=len(self._per_class))

    def state(self, layer: int, **more: float | None) -> LayerState:
        """The state of a layer by all images so far; there must be two."""
        count, mean = self._count, self._sum / self._count
        covariance = (self._products - count * np.outer(mean, mean)) / (count - 1)
        std = np.sqrt(np.clip(np.diag(covariance), 0, None))
        singular = np.sqrt(_eigenvalues(self._products))
        share = singular / max(singular.sum(), 1e-12) + 1e-7  # of zeros alone, RankMe is 1
        separation, there = None, self._per_class > 0
        if there.sum() >= 2:
            means = self._unit_sums[there] / self._per_class[there, np.newaxis]
            within = 1 - np.square(means).sum(axis=1).mean()
            separation = float(1 - within / (1 - np.square(means.mean(axis=0)).sum()))
        return LayerState(
            layer=layer,
            rankme=float(np.exp(-(share * np.log(share)).sum())),
            alpha_req=_power_law(_eigenvalues(covariance)),
            feature_std=float(std.mean()),
            dead_dims=float(np.mean(std <= DEAD * std.max())),
            mean_cosine=float(
                (self._unit_sum @ self._unit_sum - self._nonzero) / (count * (count - 1))
            ),
            class_separation=separation,
            **more,
        )


def _eigenvalues(matrix: Floats) -> Floats:
    """Descending, without the negative ones that rounding makes."""
    values: Floats = np.clip(np.linalg.eigvalsh(matrix)[::-1], 0, None)
    return values


def _power_law(eigenvalues: Floats) -> float:
    first, last = POWER_LAW
    kept = eigenvalues[eigenvalues > 1e-9 * eigenvalues[0]][:last]
    first = first if len(kept) >= 2 * first else 1
    places = np.arange(first, len(kept) + 1)
    if len(places) < 2:
        return float("nan")
    return -float(np.polyfit(np.log(places), np.log(kept[first - 1 :]), 1)[0])


def _compared(
    store: Features, place: int, rows: Array, classes: Array | None
) -> dict[str, float | None]:
    """Measures of one stored layer that compare images, or the views of an image."""
    import torch  # here: `describe` answers without it

    from ijepa.jepa.monitor import lidar, neighbour_accuracy

    def layer(rows: Array) -> torch.Tensor:
        found = store.read(rows, store.shape[1] - place)[:, 0]
        return torch.from_numpy(found.astype(np.float32))

    accuracy, views, num_views = None, store.views, store.header.num_views
    known = np.flatnonzero(classes >= 0) if classes is not None else rows[:0]
    if classes is not None and len(known) >= 2:
        chosen = known[np.random.default_rng(0).permutation(len(known))[:NEIGHBOUR_IMAGES]]
        accuracy = neighbour_accuracy(layer(rows[chosen]), torch.from_numpy(classes[chosen]))
    if views is None or num_views < 2:
        return {"neighbour_accuracy": accuracy}
    firsts = np.flatnonzero(views == 0)[:LIDAR_IMAGES]  # the others of an image stand behind it
    others = layer((firsts[:, np.newaxis] + 1 + np.arange(num_views)).ravel())
    unfolded = others.reshape(len(firsts), num_views, -1)
    return {"neighbour_accuracy": accuracy, "lidar": lidar(unfolded)}
