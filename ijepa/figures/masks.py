"""Masks on images: what the context encoder sees, what is predicted, and how often."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from ijepa.figures.draw import Floats, Ints, Pixels, Section, Tile, heat, keep_patches, sheet

PLAIN = (96, 125, 170)  # a patch, where no image is given


def mask_figure(
    grid: tuple[int, int],
    images: Sequence[Pixels] | None,
    context: Ints,
    targets: Ints,
    seen: Mapping[str, Floats],
    captions: Sequence[str],
) -> Figure:
    """Draw one row an image (image, context, each target block), and maps below.

    Args:
        grid: patches (rows, columns).
        images: (height, width, 3) uint8 each; None draws plain patches.
        context: (n, K) patches of each image.
        targets: (blocks, n, T) patches of each target block.
        seen: title -> (rows, columns) share of images in which each patch is seen.
        captions: sentences that stand above.
    """
    plain = np.full((*grid, 3), PLAIN, dtype=np.uint8)
    across = [((n / grid[1], 0), (n / grid[1], 1)) for n in range(1, grid[1])]
    down = [((0, n / grid[0]), (1, n / grid[0])) for n in range(1, grid[0])]
    rows = []
    for number, seen_first in enumerate(context):
        image = images[number] if images else plain
        shown = [np.arange(grid[0] * grid[1]), seen_first, *targets[:, number]]
        tiles = [keep_patches(image, patches, grid) for patches in shown]
        rows.append([Tile(tile, (), [*across, *down], "white", 0.6) for tile in tiles])
    headings = ["image", "context", *(f"target {n + 1}" for n in range(len(targets)))]
    maps = [
        Tile(
            np.asarray(heat_map(share)),
            (f"min {share.min():.2f}, max {share.max():.2f}", f"mean {share.mean():.2f}"),
        )
        for share in seen.values()
    ]
    sections = [
        Section("", [[heading] for heading in headings], rows),
        Section("Share of images in which a patch is", [[title] for title in seen], [maps]),
    ]
    return sheet(sections, captions, 144)


def heat_map(share: Floats) -> Image.Image:
    """(rows, columns) shares as one pixel a patch, white for none to dark for the largest."""
    return Image.fromarray(heat(share / max(float(share.max()), 1e-9)))
