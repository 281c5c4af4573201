"""Mask sampler: batches of 128 against a per-image loop."""

import itertools

import numpy as np
from plain_masks import plain_masks
from timing import emit, medians

from ijepa.config import MultiblockMasks
from ijepa.jepa.masks import sample_masks

BATCH = 128

if __name__ == "__main__":
    steps = itertools.count()
    for grid in ((14, 14), (16, 16)):
        ours, plain = medians(
            lambda grid=grid: sample_masks(
                grid, BATCH, MultiblockMasks(), np.random.default_rng([0, next(steps)])
            ),
            lambda grid=grid: plain_masks(grid, BATCH),
            rounds=30,
        )
        emit(
            "masks",
            grid=f"{grid[0]}x{grid[1]}",
            images_per_second=BATCH / ours,
            plain_images_per_second=BATCH / plain,
            ratio=plain / ours,
        )
