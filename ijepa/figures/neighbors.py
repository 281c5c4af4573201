"""Nearest images by cosine, searched block by block: features need not fit into memory."""

from collections.abc import Mapping, Sequence

import faiss
import numpy as np

from ijepa.arrays import Floats, Ints, Pixels
from ijepa.figures.draw import BLUE, GREEN, ORANGE, SOFT, Section, Tile, box

TILE_PX = 112
NONE = -1  # number of a neighbour that there is not


class Nearest:
    """The nearest of all vectors that were added, for each query.

    Attributes:
        cosine: (queries, k) float32, descending; -inf where fewer than k vectors were added.
        numbers: (queries, k) int64 of the vectors; `NONE` likewise.
    """

    def __init__(self, queries: Floats, k: int, own: Ints | None = None) -> None:
        """Look for `k` neighbours of each of (queries, dim), of any length.

        `own` (queries,) are numbers of vectors that are the query itself, and left out.
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


def neighbor_section(
    queries: Ints,
    found: Nearest,
    names: Sequence[str],
    classes: Sequence[str | None],
    pixels: Mapping[int, Pixels],
) -> tuple[Section, float]:
    """One row a query, then its neighbours, and the share of these that are of its class.

    Args:
        queries: (queries,) numbers of images.
        found: their neighbours.
        names: of all images.
        classes: of all images; None where it is not known.
        pixels: (side, side, 3) uint8 by number; those that are missing are empty squares.
    """
    frame, rows, known = [box(0, 0, 1, 1)], [], []
    for query, cosines, numbers in zip(queries.tolist(), found.cosine, found.numbers, strict=True):
        row = [Tile(pixels.get(query), (names[query],), frame, BLUE, 3)]
        for cosine, number in zip(cosines.tolist(), numbers.tolist(), strict=True):
            if number == NONE:
                continue
            name, look = names[number], (SOFT[0], 1)
            if classes[query] is not None and classes[number] is not None:
                same = classes[query] == classes[number]
                known.append(same)
                name, look = (f"= {name}", (GREEN, 3)) if same else (name, (ORANGE, 3))
            row.append(Tile(pixels.get(number), (name, f"{cosine:.3f}"), frame, *look))
        rows.append(row)
    share = float(np.mean(known)) if known else float("nan")
    return Section("", [["query"], ["nearest first"]], rows), share
