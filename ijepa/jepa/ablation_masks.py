"""The masks that the paper compares multi-block with (table 6): rasterized, block, random.

None of them lets context and targets overlap, and every image's context has the same length.
"""

import numpy as np

from ijepa.config import BlockMasks, RandomMasks, RasterizedMasks
from ijepa.jepa.blocks import (
    Bools,
    Drawn,
    Grid,
    Ints,
    between,
    block_patches,
    draw_size,
    inside,
    place,
    possible_sizes,
)


def draw_rasterized(
    grid: Grid, batch_size: int, config: RasterizedMasks, rng: np.random.Generator
) -> Drawn:
    """One quadrant is the context, the three others are the targets."""
    del config  # nothing to choose
    quadrants = _quadrants(grid)
    context = rng.integers(0, 4, batch_size)
    others = (context[None, :] + np.arange(1, 4)[:, None]) % 4
    kept = np.zeros((batch_size, grid[0] * grid[1]), dtype=bool)
    np.put_along_axis(kept, quadrants[context], values=True, axis=1)
    return Drawn(kept, quadrants[others])


def fewest_rasterized(grid: Grid, config: RasterizedMasks) -> tuple[int, int]:
    """Patches of a quadrant, or none where a side is odd: quadrants must be equal."""
    del config
    rows, columns = grid
    quadrant = 0 if rows % 2 or columns % 2 else rows * columns // 4
    return quadrant, quadrant


def draw_block(grid: Grid, batch_size: int, config: BlockMasks, rng: np.random.Generator) -> Drawn:
    """One large block is the target, all the rest the context."""
    size = draw_size(grid, config.target_scale, config.target_aspect, config.draw, rng)
    target = place(grid, (1, batch_size), size, config.draw, rng)
    kept: Bools = ~inside(grid, target)[0].reshape(batch_size, -1)
    return Drawn(kept, block_patches(grid, target))


def fewest_block(grid: Grid, config: BlockMasks) -> tuple[int, int]:
    """Patches of the smallest block, and what the largest leaves."""
    sizes = possible_sizes(grid, config.target_scale, config.target_aspect, config.draw)
    areas = [height * width for height, width in sizes]
    return min(areas), grid[0] * grid[1] - max(areas)


def draw_random(
    grid: Grid, batch_size: int, config: RandomMasks, rng: np.random.Generator
) -> Drawn:
    """Any patches are the target, as many for the whole batch; the rest is the context."""
    num_patches = grid[0] * grid[1]
    num_kept = int(num_patches * (1.0 - between(config.target_ratio, rng.random())))
    order = rng.random((batch_size, num_patches)).argsort(axis=1)
    kept = np.zeros((batch_size, num_patches), dtype=bool)
    np.put_along_axis(kept, order[:, :num_kept], values=True, axis=1)
    targets: Ints = np.sort(order[:, num_kept:], axis=1)
    return Drawn(kept, targets[np.newaxis])


def fewest_random(grid: Grid, config: RandomMasks) -> tuple[int, int]:
    """Patches at the smallest and at the largest ratio."""
    num_patches = grid[0] * grid[1]
    least, most = (int(num_patches * (1.0 - ratio)) for ratio in reversed(config.target_ratio))
    return num_patches - most, least


def _quadrants(grid: Grid) -> Ints:
    """(4, N / 4) patches of each quarter of the grid, ascending."""
    numbers = np.arange(grid[0] * grid[1]).reshape(2, grid[0] // 2, 2, grid[1] // 2)
    quadrants: Ints = numbers.transpose(0, 2, 1, 3).reshape(4, -1)
    return quadrants
