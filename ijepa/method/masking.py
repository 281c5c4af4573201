"""Multi-block masks for a whole batch at once.

Masks are lists of patch numbers (int64, row-major), never booleans; aspect is height / width.
Everything comes from the generator that is passed in, so (seed, step) reproduces a batch anywhere.
Source: paper section 3 and A.1; facebookresearch/ijepa `src/masks/multiblock.py`.
"""

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ijepa.config import MaskConfig
from ijepa.errors import IjepaError

TRIES = 20  # positions tried before the published sampler forgives a target
ROUNDS = 40  # redraws of an image's blocks before `symmetric` puts its targets on one place

Grid = tuple[int, int]
Bools = np.ndarray[tuple[int, ...], np.dtype[np.bool_]]
Ints = np.ndarray[tuple[int, ...], np.dtype[np.int64]]


class Masks(NamedTuple):
    """What the context encoder sees and what the predictor has to predict.

    Attributes:
        context: (B, K) int64 patches, ascending; never one of the targets', except where the
            published draw forgives (see `MaskConfig.min_keep`).
        targets: (M, B, T) int64 patches of M blocks, ascending; blocks may overlap each other.
    """

    context: Tensor
    targets: Tensor

    def to(self, device: torch.device) -> "Masks":
        """The same masks on another device."""
        return Masks(
            self.context.to(device, non_blocking=True), self.targets.to(device, non_blocking=True)
        )


class _Blocks(NamedTuple):
    """Rectangles of one size: upper left corners of any shape (...)."""

    top: Ints
    left: Ints
    height: int
    width: int


def sample_masks(
    grid: Grid, batch_size: int, config: MaskConfig, rng: np.random.Generator
) -> Masks:
    """Draw context and target blocks for a batch.

    Block sizes are shared by the batch, so that nothing needs padding.

    Args:
        grid: patches (rows, columns); checked once by `check_masks`.
        batch_size: B, the images over which all contexts are cut to one length.
        config: scales, aspect, number of targets, which draw.
        rng: the only source of randomness.
    """
    draw = _draw_published if config.draw == "published" else _draw_symmetric
    target_size = _draw_size(grid, config.target_scale, config.target_aspect, config, rng)
    context_size = _draw_size(grid, config.context_scale, (1.0, 1.0), config, rng)
    targets, kept = draw(grid, batch_size, target_size, context_size, config, rng)
    context = _cut_first(kept) if config.draw == "published" else _cut_random(kept, rng)
    return Masks(torch.from_numpy(context), torch.from_numpy(_block_patches(grid, targets)))


def check_masks(grid: Grid, config: MaskConfig) -> None:
    """Refuse a grid on which masks cannot be drawn, before anything runs.

    Raises:
        IjepaError: a target block or what remains of the context may have too few patches.
    """
    targets = possible_sizes(grid, config.target_scale, config.target_aspect, config.draw)
    contexts = possible_sizes(grid, config.context_scale, (1.0, 1.0), config.draw)
    smallest_context = min(height * width for height, width in contexts)
    areas = [height * width for height, width in targets]
    advice = "use smaller patches, larger images, other scales or a smaller masks.min_keep"
    if config.draw == "published":
        left, what = min(*areas, smallest_context), "a block"
    else:
        left, what = smallest_context - max(areas), "the context"
    if min(areas) < 1 or left <= config.min_keep:
        raise IjepaError(
            f"Masks do not fit a grid of {grid[0]}x{grid[1]} patches: {what} may keep only "
            f"{max(left, 0)}, and masks.min_keep asks for more than {config.min_keep}; {advice}."
        )


def possible_sizes(
    grid: Grid, scale: tuple[float, float], aspect: tuple[float, float], draw: str
) -> set[tuple[int, int]]:
    """All (height, width) that a block can have, found on a fine grid of the random numbers."""
    fine = np.linspace(0.0, 1.0, 2001 if draw == "published" else 101)
    pairs = ((u, u) for u in fine) if draw == "published" else ((u, v) for u in fine for v in fine)
    return {_size(grid, _between(scale, u), _between(aspect, v), draw) for u, v in pairs}


def _draw_size(
    grid: Grid,
    scale: tuple[float, float],
    aspect: tuple[float, float],
    config: MaskConfig,
    rng: np.random.Generator,
) -> tuple[int, int]:
    """One number drives scale and aspect in the published sampler, two in the symmetric one."""
    for_scale = rng.random()
    for_aspect = for_scale if config.draw == "published" else rng.random()
    return _size(grid, _between(scale, for_scale), _between(aspect, for_aspect), config.draw)


def _size(grid: Grid, scale: float, aspect: float, draw: str) -> tuple[int, int]:
    rows, columns = grid
    area = int(rows * columns * scale)
    height, width = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
    spare = 1 if draw == "published" else 0  # published blocks never span the whole grid
    return min(height, rows - spare), min(width, columns - spare)


def _between(ends: tuple[float, float], fraction: float) -> float:
    return ends[0] + fraction * (ends[1] - ends[0])


def _draw_published(
    grid: Grid,
    batch_size: int,
    target_size: tuple[int, int],
    context_size: tuple[int, int],
    config: MaskConfig,
    rng: np.random.Generator,
) -> tuple[_Blocks, Bools]:
    """Targets once; the context until enough remains, forgiving one more target every 20 tries."""
    targets = _place(grid, (config.num_targets, batch_size), target_size, config, rng)
    hidden = _inside(grid, targets)  # (M, B, rows, columns)
    kept = np.zeros((batch_size, *grid), dtype=bool)
    todo = np.arange(batch_size)
    for respected in range(config.num_targets, -1, -1):
        forbidden = np.any(hidden[:respected], axis=0, keepdims=True)[0]
        for _ in range(TRIES):
            block = _inside(grid, _place(grid, (len(todo),), context_size, config, rng))
            kept[todo] = block & ~forbidden[todo]
            todo = todo[kept[todo].sum(axis=(1, 2)) <= config.min_keep]
            if not len(todo):
                return targets, kept.reshape(batch_size, -1)
    raise AssertionError("check_masks lets no such grid through")


def _draw_symmetric(
    grid: Grid,
    batch_size: int,
    target_size: tuple[int, int],
    context_size: tuple[int, int],
    config: MaskConfig,
    rng: np.random.Generator,
) -> tuple[_Blocks, Bools]:
    """All blocks of an image are redrawn until enough context remains.

    After the last round the targets still refused lie on one another: `check_masks` saw to it that
    a context less one target is always enough.
    """
    shape = (config.num_targets, batch_size)
    top, left = np.zeros(shape, dtype=np.int64), np.zeros(shape, dtype=np.int64)
    kept = np.zeros((batch_size, *grid), dtype=bool)
    todo = np.arange(batch_size)
    for round_number in range(ROUNDS + 1):
        drawn = _place(grid, (config.num_targets, len(todo)), target_size, config, rng)
        if round_number == ROUNDS:
            drawn = drawn._replace(top=drawn.top[:1], left=drawn.left[:1])
        top[:, todo], left[:, todo] = drawn.top, drawn.left
        context = _inside(grid, _place(grid, (len(todo),), context_size, config, rng))
        kept[todo] = context & ~_inside(grid, drawn).any(axis=0)
        todo = todo[kept[todo].sum(axis=(1, 2)) <= config.min_keep]
        if not len(todo):
            break
    return _Blocks(top, left, *target_size), kept.reshape(batch_size, -1)


def _place(
    grid: Grid,
    shape: tuple[int, ...],
    size: tuple[int, int],
    config: MaskConfig,
    rng: np.random.Generator,
) -> _Blocks:
    """Uniform corners; the published range ends one early, so the last row is out of reach."""
    (rows, columns), (height, width) = grid, size
    reach = 0 if config.draw == "published" else 1
    top = rng.integers(0, rows - height + reach, shape)
    left = rng.integers(0, columns - width + reach, shape)
    return _Blocks(top, left, height, width)


def _inside(grid: Grid, blocks: _Blocks) -> Bools:
    """(..., rows, columns), True where a patch belongs to the block."""
    row, column = np.arange(grid[0]), np.arange(grid[1])
    top, left = blocks.top[..., None], blocks.left[..., None]
    in_rows = (row >= top) & (row < top + blocks.height)
    in_columns = (column >= left) & (column < left + blocks.width)
    return in_rows[..., :, None] & in_columns[..., None, :]


def _block_patches(grid: Grid, blocks: _Blocks) -> Ints:
    """(..., height * width) patch numbers of each block, ascending."""
    row = blocks.top[..., None, None] + np.arange(blocks.height)[:, None]
    column = blocks.left[..., None, None] + np.arange(blocks.width)
    patches: Ints = (row * grid[1] + column).reshape(*blocks.top.shape, -1)
    return patches


def _cut_first(kept: Bools) -> Ints:
    """(B, K) the first K kept patches of each image, K the least that any image has."""
    counts = kept.sum(axis=1)
    starts = np.cumsum(counts) - counts
    patches: Ints = np.nonzero(kept)[1][starts[:, None] + np.arange(counts.min())]
    return patches


def _cut_random(kept: Bools, rng: np.random.Generator) -> Ints:
    """(B, K) any K kept patches of each image, ascending."""
    least = int(kept.sum(axis=1).min())
    order = rng.random(kept.shape, dtype=np.float32)
    order[~kept] = 2.0
    chosen = np.argpartition(order, least - 1, axis=1)[:, :least].astype(np.int64)
    chosen.sort(axis=1)
    return chosen
