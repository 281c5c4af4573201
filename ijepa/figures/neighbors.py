"""Nearest images by cosine, searched block by block: features need not fit into memory."""

from collections.abc import Sequence
from typing import NamedTuple

import faiss
import numpy as np
from matplotlib.figure import Figure

from ijepa.figures.draw import (
    BLUE,
    GREEN,
    ORANGE,
    SOFT,
    Floats,
    Ints,
    Pixels,
    Section,
    Tile,
    box,
    sheet,
)

TILE_PX = 112
NONE = -1  # number of a neighbour that there is not


class Nearest:
    """The nearest of all vectors that were added, for each query.

    Attributes:
        cosine: (queries, k) float32, descending; -inf where fewer than k vectors were added.
        numbers: (queries, k) int64 of the vectors; `NONE` likewise.
    """

    def __init__(self, queries: Floats, k: int, own: Ints | None = None) -> None:
        """Remember the queries.

        Args:
            queries: (queries, dim), of any length.
            k: how many neighbours of each.
            own: (queries,) number of the vector that is the query itself and is left out.
        """
        self._queries, self._own = unit(queries), own
        self.cosine = np.full((len(queries), k), -np.inf, dtype=np.float32)
        self.numbers = np.full((len(queries), k), NONE, dtype=np.int64)

    def add(self, vectors: Floats, first: int = 0) -> None:
        """Look among (n, dim) vectors, numbered from `first` on; of equals the first one wins."""
        k = self.numbers.shape[1]
        wanted = min(k + (self._own is not None), len(vectors))
        cosine, places = faiss.knn(
            self._queries, unit(vectors), wanted, metric=faiss.METRIC_INNER_PRODUCT
        )
        numbers = places.astype(np.int64) + first
        if self._own is not None:
            cosine = np.where(numbers == self._own[:, np.newaxis], -np.inf, cosine)
        cosine = np.concatenate([self.cosine, cosine], axis=1)
        numbers = np.concatenate([self.numbers, numbers], axis=1)
        order = np.lexsort((numbers, -cosine), axis=1)[:, :k]
        self.cosine = np.take_along_axis(cosine, order, axis=1)
        found = np.take_along_axis(numbers, order, axis=1)
        self.numbers = np.where(np.isneginf(self.cosine), NONE, found)


def unit(vectors: Floats) -> Floats:
    """(n, dim) float32 of length 1; a vector of zeros stays one."""
    found: Floats = np.array(vectors, dtype=np.float32, order="C")
    faiss.normalize_L2(found)
    return found


class Shown(NamedTuple):
    """An image among neighbours.

    Attributes:
        pixels: (height, width, 3) uint8, square; None where there are none to show.
        name: its class, or its key.
        cosine: to the query; None for the query itself.
        same: of the query's class? None where classes are not known.
    """

    pixels: Pixels | None
    name: str
    cosine: float | None = None
    same: bool | None = None


def neighbor_figure(
    sections: Sequence[tuple[str, Sequence[Sequence[Shown]]]], captions: Sequence[str]
) -> Figure:
    """Draw one row a query: the query first, then the nearest; a section for each feature file.

    Args:
        sections: title and rows of each.
        captions: sentences that stand above.
    """
    headings = [["query"], ["nearest first"]]
    drawn = [
        Section(title, headings, [[_tile(shown) for shown in row] for row in rows])
        for title, rows in sections
    ]
    return sheet(drawn, captions, TILE_PX)


def _tile(shown: Shown) -> Tile:
    frame = [box(0, 0, 1, 1)]
    if shown.cosine is None:
        return Tile(shown.pixels, (shown.name,), frame, BLUE, 3)
    colour = SOFT[0] if shown.same is None else (GREEN if shown.same else ORANGE)
    name = f"= {shown.name}" if shown.same else shown.name
    stroke = 1 if shown.same is None else 3
    return Tile(shown.pixels, (name, f"{shown.cosine:.3f}"), frame, colour, stroke)
