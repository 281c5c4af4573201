"""Nearest vectors by cosine among more of them than need stand in memory at once."""

from typing import Any

import faiss
import numpy as np

Floats = np.ndarray[tuple[int, ...], np.dtype[np.floating[Any]]]
Ints = np.ndarray[tuple[int, ...], np.dtype[np.int64]]

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
