"""The pixels of target blocks: cut out of images, and put back into them.

Masks name the patches of a block; its box is (top, left, height, width) in pixels.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ijepa.config import PretrainConfig
from ijepa.errors import IjepaError
from ijepa.jepa.augment import crop_batch
from ijepa.jepa.masks import Grid, Masks, sample_masks


def draw_blocks(config: PretrainConfig, batch_size: int, rng: np.random.Generator) -> Masks:
    """The masks of a run for a batch in one group, with one of their target blocks each."""
    kind = config.masks.model_copy(update={"group_size": batch_size})
    [masks] = sample_masks(config.grid, batch_size, kind, rng)
    block = int(rng.integers(len(masks.targets)))
    return Masks(masks.context, masks.targets[block : block + 1])


def block_boxes(index: Tensor, grid: Grid, patch_px: int) -> Tensor:
    """(B, 4) int64 boxes of blocks that are rectangles of one size.

    `index` (B, T) int64 holds the patches of one block an image, row-major on the grid of (rows,
    columns). An `IjepaError` refuses those that are no rectangle, as of `random` masks.
    """
    rows, columns = index // grid[1], index % grid[1]
    top, left = rows.amin(1), columns.amin(1)
    height, width = rows.amax(1) - top + 1, columns.amax(1) - left + 1
    if (height * width != index.shape[1]).any():
        raise IjepaError(
            "The run's target blocks are no rectangles, so they have no pixels to decode to; take "
            "a run with masks.kind multiblock, block or rasterized."
        )
    assert (height == height[0]).all()
    return torch.stack([top, left, height, width], dim=1) * patch_px


def cut_blocks(images: Tensor, boxes: Tensor, image_px: int) -> Tensor:
    """Each block's pixels, brought to a square: (B, 3, image_px, image_px) float in [-1, 1].

    Images are (B, 3, H, W) uint8, boxes (B, 4) of `block_boxes`, on one device.
    """
    unflipped = torch.zeros(len(images), dtype=torch.bool, device=images.device)
    return crop_batch(images, boxes, unflipped, image_px).float() / 127.5 - 1


def paste_blocks(images: Tensor, boxes: Tensor, blocks: Tensor) -> Tensor:
    """A copy of images (B, 3, H, W) uint8 with these pixels in their blocks.

    `blocks` (B, 3, px, px) float, clipped to [-1, 1], are resized to the boxes (B, 4) of
    `block_boxes`.
    """
    height, width = boxes[0, 2:].tolist()
    fitted = F.interpolate(blocks.float(), (height, width), mode="bilinear", antialias=True)
    pixels = ((fitted + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    pasted = images.clone()
    for image, block, (top, left, _, _) in zip(pasted, pixels, boxes.tolist(), strict=True):
        image[:, top : top + height, left : left + width] = block
    return pasted
