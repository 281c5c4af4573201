"""Rectangles of patches on a grid: their sizes, their places, and the patches inside.

Height before width; aspect is height / width; patch numbers are row-major.
"""

import math
from typing import Literal, NamedTuple

import numpy as np

Grid = tuple[int, int]
Range = tuple[float, float]
Draw = Literal["published", "symmetric"]
Bools = np.ndarray[tuple[int, ...], np.dtype[np.bool_]]
Ints = np.ndarray[tuple[int, ...], np.dtype[np.int64]]


class Blocks(NamedTuple):
    """Rectangles of one size: upper left corners of any shape (...)."""

    top: Ints
    left: Ints
    height: int
    width: int


class Drawn(NamedTuple):
    """The masks of a batch before the contexts are cut to one length.

    Attributes:
        kept: (B, N) True where the context may look.
        targets: (M, B, T) int64 patches of M blocks, ascending.
    """

    kept: Bools
    targets: Ints


def possible_sizes(grid: Grid, scale: Range, aspect: Range, draw: Draw) -> set[tuple[int, int]]:
    """All (height, width) that a block can have, found on a fine grid of the random numbers."""
    fine = np.linspace(0.0, 1.0, 2001 if draw == "published" else 101)
    pairs = ((u, u) for u in fine) if draw == "published" else ((u, v) for u in fine for v in fine)
    return {_size(grid, between(scale, u), between(aspect, v), draw) for u, v in pairs}


def draw_size(
    grid: Grid, scale: Range, aspect: Range, draw: Draw, rng: np.random.Generator
) -> tuple[int, int]:
    """One number drives scale and aspect in the published sampler, two in the symmetric one."""
    for_scale = rng.random()
    for_aspect = for_scale if draw == "published" else rng.random()
    return _size(grid, between(scale, for_scale), between(aspect, for_aspect), draw)


def place(
    grid: Grid, shape: tuple[int, ...], size: tuple[int, int], draw: Draw, rng: np.random.Generator
) -> Blocks:
    """Uniform corners; the published range ends one early, so the last row is out of reach."""
    (rows, columns), (height, width) = grid, size
    reach = 0 if draw == "published" else 1
    top = rng.integers(0, rows - height + reach, shape)
    left = rng.integers(0, columns - width + reach, shape)
    return Blocks(top, left, height, width)


def inside(grid: Grid, blocks: Blocks) -> Bools:
    """(..., rows, columns), True where a patch belongs to the block."""
    row, column = np.arange(grid[0]), np.arange(grid[1])
    top, left = blocks.top[..., None], blocks.left[..., None]
    in_rows = (row >= top) & (row < top + blocks.height)
    in_columns = (column >= left) & (column < left + blocks.width)
    return in_rows[..., :, None] & in_columns[..., None, :]


def block_patches(grid: Grid, blocks: Blocks) -> Ints:
    """(..., height * width) patch numbers of each block, ascending."""
    row = blocks.top[..., None, None] + np.arange(blocks.height)[:, None]
    column = blocks.left[..., None, None] + np.arange(blocks.width)
    patches: Ints = (row * grid[1] + column).reshape(*blocks.top.shape, -1)
    return patches


def between(ends: Range, fraction: float) -> float:
    """The point that lies `fraction` of the way from the first end to the second."""
    return ends[0] + fraction * (ends[1] - ends[0])


def _size(grid: Grid, scale: float, aspect: float, draw: Draw) -> tuple[int, int]:
    rows, columns = grid
    area = int(rows * columns * scale)
    height, width = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
    spare = 1 if draw == "published" else 0  # published blocks never span the whole grid
    return min(height, rows - spare), min(width, columns - spare)
