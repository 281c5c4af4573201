"""Masks for a whole batch at once: what the context encoder sees, what is to be predicted.

Masks are lists of patch numbers (int64, row-major), never booleans. Everything comes from the
generator that is passed in, so (seed, step) reproduces a batch anywhere.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ijepa.config import MaskConfig, PretrainConfig
from ijepa.errors import IjepaError
from ijepa.jepa.blocks import (
    Bools,
    Drawn,
    Grid,
    Ints,
    draw_block,
    draw_multiblock,
    draw_random,
    draw_rasterized,
    fewest_block,
    fewest_multiblock,
    fewest_random,
    fewest_rasterized,
)
from ijepa.jepa.rng import MASKS, stream

# Each takes a configuration of its own kind.
DRAWS: dict[str, Callable[[Grid, int, Any, np.random.Generator], Drawn]] = {
    "multiblock": draw_multiblock,
    "rasterized": draw_rasterized,
    "block": draw_block,
    "random": draw_random,
}
FEWEST: dict[str, Callable[[Grid, Any], tuple[int, int]]] = {
    "multiblock": fewest_multiblock,
    "rasterized": fewest_rasterized,
    "block": fewest_block,
    "random": fewest_random,
}


class Masks(NamedTuple):
    """What the context encoder sees and what the predictor has to predict.

    Attributes:
        context: (B, K) int64 patches, ascending; never one of the targets', except where the
            published draw forgives (see `MultiblockMasks.min_keep`).
        targets: (M, B, T) int64 patches of M blocks, ascending; blocks may overlap each other.
    """

    context: Tensor
    targets: Tensor

    def to(self, device: torch.device) -> "Masks":
        """The same masks on another device."""
        return Masks(
            self.context.to(device, non_blocking=True), self.targets.to(device, non_blocking=True)
        )

    def images(self, chosen: slice) -> "Masks":
        """Those of some of the images."""
        return Masks(self.context[chosen], self.targets[:, chosen])


def sample_masks(
    grid: Grid, batch_size: int, config: MaskConfig, rng: np.random.Generator
) -> list[Masks]:
    """Draw the masks of a batch, in groups of `config.group_size` images.

    Within a group all contexts are cut to the length of the shortest, or to
    `config.context_patches`; targets have one size in the whole batch. The last group may be
    smaller.

    Args:
        grid: patches (rows, columns); checked once by `check_masks`.
        batch_size: images of all groups together.
        config: which kind of masks, and its scales.
        rng: the only source of randomness.

    Source: facebookresearch/ijepa cuts over the images of one GPU, 16 to 128 of them.
    """
    drawn = DRAWS[config.kind](grid, batch_size, config, rng)
    if config.draw == "symmetric":
        order = rng.random(drawn.kept.shape, dtype=np.float32)
    groups = []
    for start in range(0, batch_size, config.group_size):
        images = slice(start, start + config.group_size)
        kept = drawn.kept[images]
        length = config.context_patches or int(kept.sum(axis=1).min())
        if config.draw == "published":
            cut = _cut_first(kept, length)
        else:
            cut = _cut_random(kept, order[images], length)
        targets = np.ascontiguousarray(drawn.targets[:, images])
        groups.append(Masks(torch.from_numpy(cut), torch.from_numpy(targets)))
    return groups


def batch_masks(config: PretrainConfig, step: int) -> list[Masks]:
    """The masks of one step of a run, of all devices together."""
    rng, batch = stream(config.seed, MASKS, step), config.data.batch_size
    if not config.shared_draws:
        return sample_masks(config.grid, batch, config.masks, rng)
    [first] = sample_masks(config.grid, config.masks.group_size, config.masks, rng)
    return [
        first.images(slice(0, batch - start)) for start in range(0, batch, config.masks.group_size)
    ]


def part_of(groups: list[Masks], chosen: slice) -> list[Masks]:
    """The masks of some of a batch's images: contexts keep the length of their whole group."""
    parts, start = [], 0
    for masks in groups:
        size = len(masks.context)
        wanted = slice(max(chosen.start - start, 0), max(min(chosen.stop - start, size), 0))
        if wanted.start < wanted.stop:
            parts.append(masks.images(wanted))
        start += size
    return parts


def check_masks(grid: Grid, config: MaskConfig) -> None:
    """Refuse a grid on which masks cannot be drawn, before anything runs.

    Raises:
        IjepaError: a target block or what remains of the context may have too few patches.
    """
    smallest_target, smallest_context = FEWEST[config.kind](grid, config)
    if smallest_target < 1 or smallest_context < config.fewest_context_patches:
        even = ", an even number of rows and columns" if config.kind == "rasterized" else ""
        setting, asked = "min_keep", f"more than {config.min_keep}"
        if config.context_patches and smallest_context > config.min_keep:
            setting, asked = "context_patches", f"at least {config.context_patches}"
        raise IjepaError(
            f"{config.kind.capitalize()} masks do not fit a grid of {grid[0]}x{grid[1]} patches: "
            f"the context may keep only {max(smallest_context, 0)}, a target "
            f"{max(smallest_target, 0)}; masks.{setting} asks for a context of {asked}. Use "
            f"smaller patches, larger images, other scales or a smaller masks.{setting}{even}."
        )


def _cut_first(kept: Bools, length: int) -> Ints:
    """(B, length) the first kept patches of each image, all of which keep so many."""
    counts = kept.sum(axis=1)
    starts = np.cumsum(counts) - counts
    patches: Ints = np.nonzero(kept)[1][starts[:, None] + np.arange(length)]
    return patches


def _cut_random(kept: Bools, order: np.ndarray[Any, np.dtype[np.float32]], length: int) -> Ints:
    """(B, length) the kept patches of each image that come first in a random order, ascending."""
    order = np.where(kept, order, np.float32(2.0))
    chosen = np.argpartition(order, length - 1, axis=1)[:, :length].astype(np.int64)
    chosen.sort(axis=1)
    return chosen


Floats = np.ndarray[tuple[int, ...], np.dtype[np.float64]]


class MaskStatistics(NamedTuple):
    """Means over sampled batches.

    Attributes:
        context_patches: of an image, after the cut; likewise of one target block.
        largest_context: of any group, which decides how much memory is needed.
        shapes: distinct (images, context patches, target patches) of the groups.
        context_seen: (rows, columns) share of images in which a patch is in the context.
        target_seen: (rows, columns) share of images in which it is in any target block.
    """

    context_patches: float
    target_patches: float
    largest_context: int
    largest_target: int
    shapes: set[tuple[int, int, int]]
    context_seen: Floats
    target_seen: Floats


def mask_statistics(config: PretrainConfig, num_batches: int) -> MaskStatistics:
    """Sample the masks of the first batches of a run.

    Raises:
        IjepaError: the masks do not fit the grid.
    """
    check_masks(config.grid, config.masks)
    groups = _first_groups(config, num_batches)
    images = sum(len(masks.context) for masks in groups)
    num_patches = config.grid[0] * config.grid[1]
    contexts = [_seen(masks.context.numpy(), num_patches) for masks in groups]
    targets = [_seen(m.targets.permute(1, 0, 2).flatten(1).numpy(), num_patches) for m in groups]
    return MaskStatistics(
        context_patches=context_patches(groups),
        target_patches=sum(m.targets.shape[2] * len(m.context) for m in groups) / images,
        largest_context=max(masks.context.shape[1] for masks in groups),
        largest_target=max(masks.targets.shape[2] for masks in groups),
        shapes=_shapes(groups),
        context_seen=np.sum(contexts, axis=0).reshape(config.grid) / images,
        target_seen=np.sum(targets, axis=0).reshape(config.grid) / images,
    )


def mask_shapes(config: PretrainConfig, num_batches: int = 50) -> set[tuple[int, int, int]]:
    """Distinct shapes of the masks of the first batches of a run: few, or another every step?

    Args:
        config: of the run.
        num_batches: how many are drawn.

    Returns:
        (images, context patches, target patches) of groups of masks: (B, K, T).

    Raises:
        IjepaError: the masks do not fit the grid.
    """
    check_masks(config.grid, config.masks)
    return _shapes(_first_groups(config, num_batches))


def context_patches(groups: list[Masks]) -> float:
    """Mean over the images of all groups."""
    images = sum(len(masks.context) for masks in groups)
    return sum(masks.context.numel() for masks in groups) / images


def _first_groups(config: PretrainConfig, num_batches: int) -> list[Masks]:
    return [masks for step in range(num_batches) for masks in batch_masks(config, step)]


def _shapes(groups: list[Masks]) -> set[tuple[int, int, int]]:
    return {(*masks.context.shape, masks.targets.shape[2]) for masks in groups}


def _seen(patches: np.ndarray[tuple[int, ...], np.dtype[np.int64]], num_patches: int) -> Floats:
    """How many images have each patch; one that an image has twice counts once."""
    has = np.zeros((len(patches), num_patches), dtype=bool)
    np.put_along_axis(has, patches, values=True, axis=1)
    counts: Floats = has.sum(axis=0).astype(np.float64)
    return counts
