"""Multi-block masks one image at a time, as plainly as the published collator goes about it."""

import math
import random

import torch


def plain_masks(
    grid: tuple[int, int], batch_size: int, min_keep: int = 10, num_targets: int = 4
) -> tuple[torch.Tensor, torch.Tensor]:
    """Context (B, K) and targets (M, B, T), the context cut to the batch's minimum."""
    rows, columns = grid
    number = random.random()
    target = _size(grid, 0.15 + 0.05 * number, 0.75 + 0.75 * number)
    context = _size(grid, 0.85 + 0.15 * random.random(), 1.0)
    contexts, targets = [], []
    for _ in range(batch_size):
        blocks, free = [], []
        for _ in range(num_targets):
            block, complement = _block(rows, columns, target)
            blocks.append(block.flatten().nonzero().squeeze(1))
            free.append(complement)
        targets.append(blocks)
        contexts.append(_context(rows, columns, context, free, min_keep))
    shortest = min(len(patches) for patches in contexts)
    stacked = [torch.stack([image[m] for image in targets]) for m in range(num_targets)]
    return torch.stack([patches[:shortest] for patches in contexts]), torch.stack(stacked)


def _context(
    rows: int, columns: int, size: tuple[int, int], free: list[torch.Tensor], min_keep: int
) -> torch.Tensor:
    respected = len(free)
    while True:
        for _ in range(20):
            mask, _ = _block(rows, columns, size)
            for complement in free[:respected]:
                mask = mask * complement
            patches = mask.flatten().nonzero().squeeze(1)
            if len(patches) > min_keep:
                return patches
        respected -= 1


def _size(grid: tuple[int, int], scale: float, aspect: float) -> tuple[int, int]:
    area = int(grid[0] * grid[1] * scale)
    height, width = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
    return min(height, grid[0] - 1), min(width, grid[1] - 1)


def _block(rows: int, columns: int, size: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
    top = int(torch.randint(0, rows - size[0], (1,)))
    left = int(torch.randint(0, columns - size[1], (1,)))
    mask = torch.zeros((rows, columns), dtype=torch.int32)
    mask[top : top + size[0], left : left + size[1]] = 1
    return mask, 1 - mask
