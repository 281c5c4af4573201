"""Masks for a whole batch at once: what the context encoder sees, what is to be predicted.

Masks are lists of patch numbers (int64, row-major), never booleans. Height comes before width, and
aspect is height / width. Everything is drawn from the generator that is passed in, so (seed, step)
reproduces a batch anywhere.
"""

import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ijepa.arrays import Bools, Floats, Ints
from ijepa.config import (
    BlockMasks,
    MaskConfig,
    MultiblockMasks,
    PretrainConfig,
    RandomMasks,
    RasterizedMasks,
)
from ijepa.distributed import moved
from ijepa.errors import IjepaError
from ijepa.jepa.rng import MASKS, stream

Grid = tuple[int, int]  # rows, columns; likewise the size of a block
Range = tuple[float, float]
Draw = Literal["published", "symmetric"]
MaskDraw = tuple[Bools, Ints]  # (B, N) where the context may look, (M, B, T) patches of the targets

TRIES = 20  # contexts tried before one more target may overlap the context (published)
ROUNDS = 40  # redraws of an image's blocks before all its targets share one place (symmetric)


class Masks(NamedTuple):
    """What the context encoder sees and what the predictor has to predict, as ascending patches.

    The context has none of the targets', except where the published draw lets them
    overlap (see `MultiblockMasks`); target blocks may overlap each other.
    """

    context: Tensor  # (B, K) int64
    targets: Tensor  # (M, B, T) int64, of M blocks

    def to(self, device: torch.device) -> "Masks":
        """The same masks on another device."""
        return Masks(*(moved(patches, device) for patches in self))

    def images(self, chosen: slice) -> "Masks":
        """The masks of some of the images."""
        return Masks(self.context[chosen], self.targets[:, chosen])


def sample_masks(
    grid: Grid, batch_size: int, config: MaskConfig, rng: np.random.Generator
) -> list[Masks]:
    """Draw the masks of a batch, in groups of `config.group_size` images.

    Within a group all contexts are cut to the length of the shortest, or to
    `config.context_patches`; the published draw keeps the first patches, the symmetric one any.
    Targets have one size in the whole batch. The last group may be smaller.

    The grid was checked by `check_masks`; `rng` is the only source of randomness.

    Source: facebookresearch/ijepa cuts over the images of one GPU, 16 to 128 of them.
    """
    may_see, targets = DRAWS[config.kind](grid, batch_size, config, rng)
    order = np.linspace(0, 1, may_see.shape[1], dtype=np.float32)[np.newaxis]
    if config.draw == "symmetric":
        order = rng.random(may_see.shape, dtype=np.float32)
    order = np.where(may_see, order, np.float32(2))
    groups = []
    for start in range(0, batch_size, config.group_size):
        images = slice(start, start + config.group_size)
        length = config.context_patches or int(may_see[images].sum(axis=1).min())
        first = np.argpartition(order[images], length - 1, axis=1)[:, :length]
        context = torch.from_numpy(np.sort(first.astype(np.int64), axis=1))
        groups.append(Masks(context, torch.from_numpy(np.ascontiguousarray(targets[:, images]))))
    return groups


def batch_masks(config: PretrainConfig, step: int) -> list[Masks]:
    """The masks of one step of a run, of all devices together.

    With `masks.draws_per_image`, the groups of a second draw of all images follow those of the
    first; see `with_images`.
    """
    rng, batch = stream(config.seed, MASKS, step), config.data.batch_size
    draws: list[Masks] = []
    for _ in range(config.masks.draws_per_image):
        if not config.shared_draws:
            draws += sample_masks(config.grid, batch, config.masks, rng)
            continue
        size = config.masks.group_size
        [first] = sample_masks(config.grid, size, config.masks, rng)
        draws += [first.images(slice(0, batch - start)) for start in range(0, batch, size)]
    return draws


def with_images(groups: list[Masks], batch_size: int) -> Iterator[tuple[slice, Masks]]:
    """Each group of masks and the slice of its images; draw by draw over the whole batch."""
    start = 0
    for masks in groups:
        stop = start + len(masks.context)
        yield slice(start, stop), masks
        start = stop % batch_size


def part_of(groups: list[Masks], chosen: slice, batch_size: int) -> list[Masks]:
    """The masks of some of a batch's images: contexts keep the length of their whole group."""
    parts = []
    for images, masks in with_images(groups, batch_size):
        start, stop = max(chosen.start, images.start), min(chosen.stop, images.stop)
        if start < stop:
            parts.append(masks.images(slice(start - images.start, stop - images.start)))
    return parts


def check_masks(grid: Grid, config: MaskConfig) -> None:
    """Refuse a grid on which a target block or the rest of the context may have too few patches."""
    target, context = _fewest(grid, config)
    # The published sampler asks for more than `min_keep` patches in targets, too.
    by_targets = config.kind == "multiblock" and config.draw == "published"
    least = config.min_keep + 1 if by_targets else 1
    if target >= least and context >= config.fewest_context_patches:
        return
    even = ", an even number of rows and columns" if config.kind == "rasterized" else ""
    raise IjepaError(
        f"{config.kind.capitalize()} masks do not fit a grid of {grid[0]}x{grid[1]} patches: a "
        f"target may have only {target}, the context keep only {max(context, 0)}; masks.min_keep "
        f"and masks.context_patches ask for {least} and {config.fewest_context_patches}. Use "
        f"smaller patches, larger images, other scales or smaller numbers there{even}."
    )


def _fewest(grid: Grid, config: MaskConfig) -> tuple[int, int]:
    """Patches that the smallest target has, and that the context keeps at the worst."""
    rows, columns = grid
    if config.kind == "rasterized":  # quadrants must be equal
        quadrant = 0 if rows % 2 or columns % 2 else rows * columns // 4
        return quadrant, quadrant
    if config.kind == "random":
        least, most = (int(rows * columns * (1.0 - r)) for r in reversed(config.target_ratio))
        return rows * columns - most, least
    sizes = possible_sizes(grid, config.target_scale, config.target_aspect, config.draw)
    areas = [height * width for height, width in sizes]
    if config.kind == "block":
        return min(areas), rows * columns - max(areas)
    contexts = possible_sizes(grid, config.context_scale, (1.0, 1.0), config.draw)
    smallest = min(height * width for height, width in contexts)
    # The published draw lets the context overlap all targets in the end.
    return min(areas), smallest - max(areas) if config.draw == "symmetric" else smallest


def _multiblock(
    grid: Grid, batch_size: int, config: MultiblockMasks, rng: np.random.Generator
) -> MaskDraw:
    """Several targets, and a large block less the targets as context; sizes are the batch's."""
    draw, num_targets = config.draw, config.num_targets
    size = _draw_size(grid, config.target_scale, config.target_aspect, draw, rng)
    context_size = _draw_size(grid, config.context_scale, (1.0, 1.0), draw, rng)
    may_see = np.zeros((batch_size, *grid), dtype=bool)
    corners: Ints = np.zeros((2, num_targets, batch_size), dtype=np.int64)

    def draw_contexts(images: Ints, avoided: Ints) -> Ints:
        """Draw contexts that avoid these targets (2, M, n); returns the images with too little."""
        hidden = _inside(grid, avoided, size).any(axis=0)
        context = _place(grid, (len(images),), context_size, draw, rng)
        may_see[images] = _inside(grid, context, context_size) & ~hidden
        too_few = may_see[images].sum(axis=(1, 2)) < config.fewest_context_patches
        remaining: Ints = images[too_few]
        return remaining

    todo: Ints = np.arange(batch_size)
    if draw == "published":  # targets stay; every 20 tries the context may overlap one more of them
        corners = _place(grid, (num_targets, batch_size), size, draw, rng)
        for number in range(TRIES * (num_targets + 1)):
            todo = draw_contexts(todo, corners[:, : num_targets - number // TRIES, todo])
            if not len(todo):
                break
    else:  # targets are drawn anew; in the last round on one place: enough, by `check_masks`
        for number in range(ROUNDS + 1):
            targets = _place(grid, (num_targets, len(todo)), size, draw, rng)
            corners[:, :, todo] = targets if number < ROUNDS else targets[:, :1]
            todo = draw_contexts(todo, corners[:, :, todo])
            if not len(todo):
                break
    if not len(todo):
        return may_see.reshape(batch_size, -1), _patches(grid, corners, size)
    raise IjepaError(
        f"Masks on a grid of {grid[0]}x{grid[1]} patches leave a context fewer than the "
        f"{config.fewest_context_patches} patches that masks.min_keep and masks.context_patches "
        f"ask for. Use a smaller value there, smaller patches or larger images."
    )


def _rasterized(
    grid: Grid, batch_size: int, _: RasterizedMasks, rng: np.random.Generator
) -> MaskDraw:
    """One quadrant is the context, the three others are the targets."""
    numbers = np.arange(grid[0] * grid[1]).reshape(2, grid[0] // 2, 2, grid[1] // 2)
    quadrants = numbers.transpose(0, 2, 1, 3).reshape(4, -1)
    context = rng.integers(0, 4, batch_size)
    may_see = np.zeros((batch_size, grid[0] * grid[1]), dtype=bool)
    np.put_along_axis(may_see, quadrants[context], values=True, axis=1)
    return may_see, quadrants[(context + np.arange(1, 4)[:, np.newaxis]) % 4]


def _block(grid: Grid, batch_size: int, config: BlockMasks, rng: np.random.Generator) -> MaskDraw:
    """One large block is the target, all the rest the context."""
    size = _draw_size(grid, config.target_scale, config.target_aspect, config.draw, rng)
    target = _place(grid, (1, batch_size), size, config.draw, rng)
    return ~_inside(grid, target, size)[0].reshape(batch_size, -1), _patches(grid, target, size)


def _random(grid: Grid, batch_size: int, config: RandomMasks, rng: np.random.Generator) -> MaskDraw:
    """Any patches are the target, as many for the whole batch; the rest is the context."""
    num_patches = grid[0] * grid[1]
    num_kept = int(num_patches * (1.0 - _between(config.target_ratio, rng.random())))
    order = rng.random((batch_size, num_patches)).argsort(axis=1)
    may_see = np.zeros((batch_size, num_patches), dtype=bool)
    np.put_along_axis(may_see, order[:, :num_kept], values=True, axis=1)
    return may_see, np.sort(order[:, num_kept:], axis=1)[np.newaxis]


# Each takes a configuration of its own kind.
DRAWS: dict[str, Callable[[Grid, int, Any, np.random.Generator], MaskDraw]] = {
    "multiblock": _multiblock,
    "rasterized": _rasterized,
    "block": _block,
    "random": _random,
}


def possible_sizes(grid: Grid, scale: Range, aspect: Range, draw: Draw) -> set[Grid]:
    """All (height, width) that a block can have, found on a fine grid of the random numbers."""
    fine = np.linspace(0.0, 1.0, 2001 if draw == "published" else 101)
    pairs = zip(fine, fine, strict=True) if draw == "published" else itertools.product(fine, fine)
    return {_size(grid, _between(scale, u), _between(aspect, v), draw) for u, v in pairs}


def _draw_size(
    grid: Grid, scale: Range, aspect: Range, draw: Draw, rng: np.random.Generator
) -> Grid:
    """One number drives scale and aspect in the published sampler, two in the symmetric one."""
    for_scale = rng.random()
    for_aspect = for_scale if draw == "published" else rng.random()
    return _size(grid, _between(scale, for_scale), _between(aspect, for_aspect), draw)


def _size(grid: Grid, scale: float, aspect: float, draw: Draw) -> Grid:
    area = int(grid[0] * grid[1] * scale)
    height, width = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
    spare = 1 if draw == "published" else 0  # published blocks never span the whole grid
    return min(height, grid[0] - spare), min(width, grid[1] - spare)


def _between(ends: Range, fraction: float) -> float:
    return ends[0] + fraction * (ends[1] - ends[0])


def _place(
    grid: Grid, shape: tuple[int, ...], size: Grid, draw: Draw, rng: np.random.Generator
) -> Ints:
    """(2, *shape) top and left of blocks, uniform.

    The published range ends one early, so that the last row and column are out of reach.
    """
    reach = 0 if draw == "published" else 1
    ends = (grid[0] - size[0] + reach, grid[1] - size[1] + reach)
    return np.stack([rng.integers(0, end, shape) for end in ends])


def _inside(grid: Grid, corners: Ints, size: Grid) -> Bools:
    """(..., rows, columns) of (2, ...) corners: True where a patch belongs to the block."""
    (top, left), (height, width) = corners[..., np.newaxis], size
    row, column = np.arange(grid[0]), np.arange(grid[1])
    in_rows = (row >= top) & (row < top + height)
    in_columns = (column >= left) & (column < left + width)
    inside: Bools = in_rows[..., :, np.newaxis] & in_columns[..., np.newaxis, :]
    return inside


def _patches(grid: Grid, corners: Ints, size: Grid) -> Ints:
    """(..., height * width) patch numbers of blocks with (2, ...) corners, ascending."""
    row, column = np.indices(size).reshape(2, -1)
    top, left = corners[..., np.newaxis]
    numbers: Ints = (top + row) * grid[1] + left + column
    return numbers


class MaskStatistics(NamedTuple):
    """Means over sampled batches."""

    context_patches: float  # of an image, after the cut
    target_patches: float  # of one target block
    largest_context: int  # of any group, which decides how much memory is needed
    largest_target: int
    shapes: set[tuple[int, int, int]]  # (images, context patches, target patches) of the groups
    context_seen: Floats  # (rows, columns) share of images in which a patch is in the context
    target_seen: Floats  # (rows, columns) share of images in which it is in any target block


def mask_statistics(config: PretrainConfig, num_batches: int) -> MaskStatistics:
    """Sample the masks of the first batches of a run; raises as `check_masks`."""
    check_masks(config.grid, config.masks)
    shapes: Counter[tuple[int, int, int]] = Counter()
    seen = np.zeros((2, *config.grid))
    for step in range(num_batches):
        for masks in batch_masks(config, step):
            shapes[(*masks.context.shape, masks.targets.shape[2])] += 1
            targets = masks.targets.permute(1, 0, 2).flatten(1)
            for counts, patches in zip(seen, (masks.context, targets), strict=True):
                has = np.zeros((len(patches), counts.size), dtype=bool)
                np.put_along_axis(has, patches.numpy(), values=True, axis=1)
                counts += has.sum(axis=0).reshape(config.grid)
    images = num_batches * config.data.batch_size * config.masks.draws_per_image
    patches_of = [np.multiply(shape[1:], shape[0] * count) for shape, count in shapes.items()]
    context_patches, target_patches = (np.sum(patches_of, axis=0) / images).tolist()
    _, largest_context, largest_target = np.max(list(shapes), axis=0).tolist()
    largest = largest_context, largest_target
    return MaskStatistics(context_patches, target_patches, *largest, set(shapes), *seen / images)
