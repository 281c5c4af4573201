"""Rectangles of patches on a grid: their sizes, their places, and the patches inside.

Height before width; aspect is height / width; patch numbers are row-major.
"""

import math
from typing import Literal, NamedTuple

import numpy as np

from ijepa.config import BlockMasks, MultiblockMasks, RandomMasks, RasterizedMasks
from ijepa.errors import IjepaError

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


TRIES = 20  # positions tried before the published sampler forgives a target
ROUNDS = 40  # redraws of an image's blocks before `symmetric` puts its targets on one place


def draw_multiblock(
    grid: Grid, batch_size: int, config: MultiblockMasks, rng: np.random.Generator
) -> Drawn:
    """Block sizes are shared by the batch, so that nothing needs padding."""
    target_size = draw_size(grid, config.target_scale, config.target_aspect, config.draw, rng)
    context_size = draw_size(grid, config.context_scale, (1.0, 1.0), config.draw, rng)
    draw = _draw_published if config.draw == "published" else _draw_symmetric
    targets, kept = draw(grid, batch_size, target_size, context_size, config, rng)
    return Drawn(kept, block_patches(grid, targets))


def fewest_multiblock(grid: Grid, config: MultiblockMasks) -> tuple[int, int]:
    """Patches that the smallest target has, and that the context keeps at the worst."""
    targets = possible_sizes(grid, config.target_scale, config.target_aspect, config.draw)
    contexts = possible_sizes(grid, config.context_scale, (1.0, 1.0), config.draw)
    smallest_context = min(height * width for height, width in contexts)
    areas = [height * width for height, width in targets]
    if config.draw == "published":  # forgives all targets in the end, but asks min_keep of each
        enough = min(areas) > config.min_keep
        return min(areas), smallest_context if enough else min(*areas, smallest_context)
    return min(areas), smallest_context - max(areas)


def _draw_published(
    grid: Grid,
    batch_size: int,
    target_size: tuple[int, int],
    context_size: tuple[int, int],
    config: MultiblockMasks,
    rng: np.random.Generator,
) -> tuple[Blocks, Bools]:
    """Targets once; the context until enough remains, forgiving one more target every 20 tries."""
    targets = place(grid, (config.num_targets, batch_size), target_size, config.draw, rng)
    hidden = inside(grid, targets)  # (M, B, rows, columns)
    kept = np.zeros((batch_size, *grid), dtype=bool)
    todo = np.arange(batch_size)
    for respected in range(config.num_targets, -1, -1):
        forbidden = np.any(hidden[:respected], axis=0, keepdims=True)[0]
        for _ in range(TRIES):
            block = inside(grid, place(grid, (len(todo),), context_size, config.draw, rng))
            kept[todo] = block & ~forbidden[todo]
            todo = todo[kept[todo].sum(axis=(1, 2)) < config.fewest_context_patches]
            if not len(todo):
                return targets, kept.reshape(batch_size, -1)
    raise _too_small(grid, config)


def _draw_symmetric(
    grid: Grid,
    batch_size: int,
    target_size: tuple[int, int],
    context_size: tuple[int, int],
    config: MultiblockMasks,
    rng: np.random.Generator,
) -> tuple[Blocks, Bools]:
    """All blocks of an image are redrawn until enough context remains.

    After the last round the targets still refused lie on one another: `check_masks` saw to it that
    a context less one target is always enough.
    """
    shape = (config.num_targets, batch_size)
    top, left = np.zeros(shape, dtype=np.int64), np.zeros(shape, dtype=np.int64)
    kept = np.zeros((batch_size, *grid), dtype=bool)
    todo = np.arange(batch_size)
    for round_number in range(ROUNDS + 1):
        drawn = place(grid, (config.num_targets, len(todo)), target_size, config.draw, rng)
        if round_number == ROUNDS:
            drawn = drawn._replace(top=drawn.top[:1], left=drawn.left[:1])
        top[:, todo], left[:, todo] = drawn.top, drawn.left
        context = inside(grid, place(grid, (len(todo),), context_size, config.draw, rng))
        kept[todo] = context & ~inside(grid, drawn).any(axis=0)
        todo = todo[kept[todo].sum(axis=(1, 2)) < config.fewest_context_patches]
        if not len(todo):
            return Blocks(top, left, *target_size), kept.reshape(batch_size, -1)
    raise _too_small(grid, config)


def _too_small(grid: Grid, config: MultiblockMasks) -> IjepaError:
    """Such masks train nothing; `check_masks` refuses the grids where they come up."""
    return IjepaError(
        f"Masks on a grid of {grid[0]}x{grid[1]} patches leave a context fewer than the "
        f"{config.fewest_context_patches} patches that masks.min_keep and masks.context_patches "
        f"ask for. Use a smaller value there, smaller patches or larger images."
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
