"""I-JEPA's own masks: several target blocks, and one large context block less the targets.

Source: paper section 3 and A.1; facebookresearch/ijepa `src/masks/multiblock.py`.
"""

import numpy as np

from ijepa.config import MultiblockMasks
from ijepa.errors import IjepaError
from ijepa.jepa.blocks import (
    Blocks,
    Bools,
    Drawn,
    Grid,
    block_patches,
    draw_size,
    inside,
    place,
    possible_sizes,
)

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
