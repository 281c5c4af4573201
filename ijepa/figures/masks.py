"""A recipe's masks: what the context encoder sees, what is predicted, and how often."""

import numpy as np
from matplotlib.figure import Figure

from ijepa.arrays import Pixels
from ijepa.config import PretrainConfig
from ijepa.errors import IjepaError
from ijepa.figures.draw import Line, Numbers, Section, Tile, heat, keep_patches, sheet
from ijepa.jepa.masks import batch_masks, mask_statistics

PLAIN = (96, 125, 170)  # a patch, where no image is given
MOST_MASKED = 2**18  # images whose masks are counted, which takes about a second


def mask_figure(
    recipe: PretrainConfig, batches: int, count: int, images: Pixels | None, note: str = ""
) -> tuple[Figure, Numbers]:
    """Draw the first masks of step 0, one row an image, and how often each patch is seen.

    Args:
        recipe: its masks, grid and batch.
        batches: over which patches are counted.
        count: rows to draw.
        images: (count, height, width, 3) uint8; None draws plain patches.
        note: on the images, a line below the picture.

    Raises:
        IjepaError: masks that do not fit the grid, or more than can be counted.
    """
    if batches * recipe.data.batch_size > MOST_MASKED:
        raise IjepaError(
            f"{batches:,} batches of {recipe.data.batch_size:,} images are more than the "
            f"{MOST_MASKED:,} whose masks can be counted; lower --batches or data.batch_size."
        )
    counted, grid = mask_statistics(recipe, batches), recipe.grid
    (rows, columns), num_patches = grid, grid[0] * grid[1]
    context, target = counted.context_patches, counted.target_patches
    numbers: Numbers = {
        "grid": grid,
        "context_patches": context,
        "context_ratio": context / num_patches,
        "target_patches": target,
        "target_ratio": target / num_patches,
        "covered_ratio": float(counted.target_seen.mean()),
        "rarest_in_context": float(counted.context_seen.min()),
        "rarest_in_target": float(counted.target_seen.min()),
    }
    captions = (
        f"{recipe.masks.kind}, draw {recipe.masks.draw}: {rows}x{columns} patches, "
        f"contexts cut over {min(recipe.masks.group_size, recipe.data.batch_size)} images.",
        f"Context {context:.1f} patches ({context / num_patches:.3f} of all), target block "
        f"{target:.1f} ({target / num_patches:.3f}); {batches} batches of "
        f"{recipe.data.batch_size}, seed {recipe.seed}.",
        *([note] if note else []),
    )
    masks = batch_masks(recipe, 0)[0].images(slice(count))
    plain = np.full((rows, columns, 3), PLAIN, dtype=np.uint8)
    lines: list[Line] = [((n / columns, 0), (n / columns, 1)) for n in range(1, columns)]
    lines += [((0, n / rows), (1, n / rows)) for n in range(1, rows)]
    tiles = []
    for number, seen in enumerate(masks.context.numpy()):
        shown = [np.arange(num_patches), seen, *masks.targets[:, number].numpy()]
        pixels = [keep_patches(plain if images is None else images[number], p, grid) for p in shown]
        tiles.append([Tile(one, (), lines, "white", 0.6) for one in pixels])
    headings = ["image", "context", *(f"target {n + 1}" for n in range(len(masks.targets)))]
    maps = [
        Tile(
            heat(share / max(float(share.max()), 1e-9)),  # one pixel a patch
            (f"min {share.min():.2f}, max {share.max():.2f}", f"mean {share.mean():.2f}"),
        )
        for share in (counted.context_seen, counted.target_seen)
    ]
    titles = [["in the context"], ["in a target"]]
    sections = [
        Section("", [[heading] for heading in headings], tiles),
        Section("Share of images in which a patch is", titles, [maps]),
    ]
    return sheet(sections, captions, 144), numbers
