"""A sheet of masks: images as the networks see them, and how often each patch is seen."""

from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ijepa.figures.sheet import heat_colours
from ijepa.jepa.blocks import Grid
from ijepa.jepa.masks import Masks

TILE_PX, GAP_PX, LINE_PX = 168, 10, 22
HIDDEN = (222, 222, 222)
PLAIN = (96, 125, 170)  # a patch, where no image is given

Pixels = np.ndarray[tuple[int, ...], np.dtype[np.uint8]]
Floats = np.ndarray[tuple[int, ...], np.dtype[np.float64]]


def mask_sheet(
    grid: Grid,
    images: Sequence[Pixels] | None,
    masks: Masks,
    seen: Mapping[str, Floats],
    captions: Sequence[str],
) -> Image.Image:
    """Draw one row an image (image, context, each target block), and two heat maps below.

    Args:
        grid: patches (rows, columns).
        images: (height, width, 3) uint8 each; None draws plain patches.
        masks: of as many images.
        seen: title -> (rows, columns) share of images in which each patch is seen; two maps.
        captions: what stands above, a line each.
    """
    tile = _tile_size(grid)
    names = ["image", "context", *(f"target {n + 1}" for n in range(len(masks.targets)))]
    width = max(len(names), 4) * (tile[0] + GAP_PX) + GAP_PX
    top = LINE_PX * len(captions) + GAP_PX
    rows = len(masks.context)
    height = top + LINE_PX + (rows + 1) * (tile[1] + GAP_PX) + 2 * LINE_PX
    sheet = Image.new("RGB", (width, height), "white")
    pen = ImageDraw.Draw(sheet)
    for number, caption in enumerate(captions):
        _write(pen, GAP_PX, number * LINE_PX + 4, caption)
    for column, name in enumerate(names):
        _write(pen, GAP_PX + column * (tile[0] + GAP_PX), top, name)
    for row in range(rows):
        picture = images[row] if images else np.full((*grid, 3), PLAIN, dtype=np.uint8)
        shown = [_all(grid), masks.context[row].numpy(), *masks.targets[:, row].numpy()]
        for column, patches in enumerate(shown):
            place = (
                GAP_PX + column * (tile[0] + GAP_PX),
                top + LINE_PX + row * (tile[1] + GAP_PX),
            )
            sheet.paste(_tile(picture, grid, patches), place)
    _heat_maps(sheet, pen, seen, top + LINE_PX + rows * (tile[1] + GAP_PX))
    return sheet


def heat_map(share: Floats) -> Image.Image:
    """(rows, columns) shares as one pixel a patch, white for none to dark for the largest."""
    scaled = (share / max(share.max(), 1e-9) * 255).astype(np.uint8)
    return Image.fromarray(heat_colours()[scaled])


def _heat_maps(
    sheet: Image.Image, pen: ImageDraw.ImageDraw, seen: Mapping[str, Floats], top: int
) -> None:
    for number, (name, share) in enumerate(seen.items()):
        tile = _tile_size(share.shape)
        left = GAP_PX + 2 * number * (tile[0] + GAP_PX)
        _write(pen, left, top + 4, name)
        map_ = heat_map(share).resize(tile, Image.Resampling.NEAREST)
        sheet.paste(map_, (left, top + LINE_PX))
        note = f"min {share.min():.2f}\nmean {share.mean():.2f}\nmax {share.max():.2f}"
        _write(pen, left + tile[0] + GAP_PX, top + LINE_PX, note)


def _tile_size(grid: tuple[int, ...]) -> tuple[int, int]:
    """(width, height) in pixels of one picture; patches have one size."""
    patch = max(1, TILE_PX // max(grid))
    return grid[1] * patch, grid[0] * patch


def _all(grid: Grid) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    return np.arange(grid[0] * grid[1])


def _tile(
    picture: Pixels, grid: Grid, patches: np.ndarray[tuple[int], np.dtype[np.int64]]
) -> Image.Image:
    """The picture with everything grey but these patches; thin lines between patches."""
    size = _tile_size(grid)
    shown = np.zeros(grid[0] * grid[1], dtype=np.uint8)
    shown[patches] = 255
    mask = Image.fromarray(shown.reshape(grid)).resize(size, Image.Resampling.NEAREST)
    tile = Image.new("RGB", size, HIDDEN)
    smooth = Image.fromarray(picture).resize(size, Image.Resampling.BILINEAR)
    tile.paste(smooth, (0, 0), mask)
    pen, patch = ImageDraw.Draw(tile), size[0] // grid[1]
    for x in range(0, size[0], patch):
        pen.line([(x, 0), (x, size[1])], fill=(255, 255, 255))
    for y in range(0, size[1], patch):
        pen.line([(0, y), (size[0], y)], fill=(255, 255, 255))
    return tile


def _write(pen: ImageDraw.ImageDraw, x: int, y: int, text: str) -> None:
    pen.text((x, y), text, fill=(30, 30, 30), font=ImageFont.load_default(13))
