"""Nearest images by cosine."""

from collections.abc import Mapping, Sequence

import faiss
import numpy as np

from ijepa.arrays import Floats, Ints, Pixels
from ijepa.figures.draw import BLUE, GREEN, ORANGE, SOFT, Section, Tile, box

TILE_PX = 112


def nearest(queries: Floats, vectors: Floats, k: int, own: Ints) -> tuple[Floats, Ints]:
    """The `k` nearest vectors (n, dim) of each query (m, dim), of any length, by cosine.

    `own` (m,) are the numbers of the vectors that are the queries themselves; they are left out.

    Returns:
        (m, k) cosines, descending, and (m, k) numbers of the vectors; k is at most n - 1. Of
        vectors that are equally near, the first one wins.
    """
    wanted = min(k + 1, len(vectors))
    cosine, numbers = faiss.knn(
        unit(queries), unit(vectors), wanted, metric=faiss.METRIC_INNER_PRODUCT
    )
    is_own = numbers == own[:, np.newaxis]
    order = np.lexsort((numbers, -cosine, is_own), axis=1)[:, : wanted - 1]
    return np.take_along_axis(cosine, order, axis=1), np.take_along_axis(numbers, order, axis=1)


def unit(vectors: Floats) -> Floats:
    """(n, dim) float32 of length 1; a vector of zeros stays one."""
    found: Floats = np.array(vectors, dtype=np.float32, order="C")
    faiss.normalize_L2(found)
    return found


def neighbor_section(
    queries: Ints,
    cosine: Floats,
    numbers: Ints,
    names: Sequence[str],
    classes: Sequence[str | None],
    pixels: Mapping[int, Pixels],
) -> tuple[Section, float]:
    """One row a query, then its neighbours, and the share of these that are of its class.

    Args:
        queries: (queries,) numbers of images.
        cosine: (queries, k) of their neighbours.
        numbers: (queries, k) of their neighbours.
        names: of all images.
        classes: of all images; None where it is not known.
        pixels: (side, side, 3) uint8 by number; those that are missing are empty squares.
    """
    frame, rows, known = [box(0, 0, 1, 1)], [], []
    for query, cosines, found in zip(queries.tolist(), cosine, numbers, strict=True):
        row = [Tile(pixels.get(query), (names[query],), frame, BLUE, 3)]
        for near, number in zip(cosines.tolist(), found.tolist(), strict=True):
            name, look = names[number], (SOFT[0], 1)
            if classes[query] is not None and classes[number] is not None:
                same = classes[query] == classes[number]
                known.append(same)
                name, look = (f"= {name}", (GREEN, 3)) if same else (name, (ORANGE, 3))
            row.append(Tile(pixels.get(number), (name, f"{near:.3f}"), frame, *look))
        rows.append(row)
    share = float(np.mean(known)) if known else float("nan")
    return Section("", [["query"], ["nearest first"]], rows), share
