"""What a recipe's masks come to, over many batches."""

from typing import NamedTuple

import numpy as np

from ijepa.config import PretrainConfig
from ijepa.jepa.masking import Masks, batch_masks, check_masks

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
