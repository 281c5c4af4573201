"""Features on a plane, and what belongs there: points, classes and colours of classes."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE

from ijepa.figures.patch_colours import principal_components

FIRST_COMPONENTS = 50  # that t-SNE is given, as its authors do
MOST_CLASSES = 40  # colours and shapes that can be told apart; rarer classes share `OTHER`
OTHER = "other classes"

# Of Paul Tol's and Okabe and Ito's schemes: to be told apart on white and on black, and by
# the colour-blind; the shape changes when they are used up.
COLOURS = (
    "#2f7ed8", "#e07b00", "#1f9d6b", "#d0418f", "#8a63d2", "#a89000", "#d64545", "#0c9cb4",
    "#8c6d4f", "#7a8793",
)  # fmt: skip
SHAPES = ("circle", "square", "triangle", "diamond")

Floats = np.ndarray[tuple[int, ...], np.dtype[np.floating[Any]]]


class Legend(NamedTuple):
    """Classes by falling number of images, and each point's place among them.

    Attributes:
        names: of the classes, at most `MOST_CLASSES`.
        counts: how many points each has.
        of_points: (n,) place in `names`.
    """

    names: list[str]
    counts: list[int]
    of_points: list[int]

    def colour(self, place: int) -> str:
        """Of a class."""
        return COLOURS[place % len(COLOURS)]

    def shape(self, place: int) -> str:
        """Of a class, one of `SHAPES`."""
        return SHAPES[place // len(COLOURS) % len(SHAPES)]


def project(features: Floats, method: str, perplexity: float, seed: int) -> Floats:
    """Bring features to a plane: (n, 2), both coordinates from 0, the longer axis to 1.

    Args:
        features: (n, dim) of at least three images.
        method: `pca`, or `tsne` of the first 50 principal components.
        perplexity: of t-SNE; at most what n images allow, (n - 1) / 3.
        seed: of t-SNE.
    """
    num, dim = features.shape
    if method == "pca":
        places = principal_components(features.astype(np.float64), 2).places
    else:
        count = min(FIRST_COMPONENTS, num - 1, dim)
        first = PCA(count, svd_solver="full").fit_transform(features.astype(np.float64))
        tsne = TSNE(
            perplexity=min(perplexity, (num - 1) / 3), init="pca", random_state=seed, n_jobs=1
        )
        places = tsne.fit_transform(first.astype(np.float32))
    places = np.asarray(places, dtype=np.float64)
    low, extent = places.min(axis=0), np.ptp(places, axis=0).max()
    scaled: Floats = (places - low) / max(float(extent), 1e-12)
    return scaled


def legend_of(names: Sequence[str]) -> Legend:
    """Classes of the points; those beyond the most frequent ones become `OTHER`."""
    values, counts = np.unique(np.asarray(names), return_counts=True)
    order = np.lexsort([values, -counts])
    kept = [str(values[place]) for place in order]
    sizes = [int(counts[place]) for place in order]
    if len(kept) > MOST_CLASSES:
        rest = sum(sizes[MOST_CLASSES - 1 :])
        kept, sizes = [*kept[: MOST_CLASSES - 1], OTHER], [*sizes[: MOST_CLASSES - 1], rest]
    places = {name: place for place, name in enumerate(kept)}
    return Legend(kept, sizes, [places.get(name, len(kept) - 1) for name in names])


def apart(places: Floats, distance: float) -> list[int]:
    """Points that keep a distance from all those chosen before, the first ones first.

    Args:
        places: (n, 2).
        distance: along either axis, so that squares of that side do not overlap.
    """
    chosen: list[int] = []
    for number, place in enumerate(places):
        if not chosen or (np.abs(places[chosen] - place).max(axis=1) >= distance).all():
            chosen.append(number)
    return chosen
