"""Predictions shown by the real patches nearest to them, pasted where the block was hidden."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from ijepa.figures.nearest import Floats, Ints, Nearest
from ijepa.figures.sheet import (
    GAP_PX,
    LINE_PX,
    SOFT,
    Pixels,
    Point,
    Sheet,
    caption_lines,
    captions_height,
    shortened,
    write_captions,
)

TILE_PX = 144
HIDDEN = 222  # grey of what the context encoder does not see
BOX = "#c2410c"


class RetrievalRow(NamedTuple):
    """One image, what was seen of it, and what was put in place of one hidden block.

    Attributes:
        image: (height, width, 3) uint8.
        context: (K,) patches that the context encoder saw.
        block: (T,) patches of the hidden block.
        pasted: title -> (T, patch, patch, 3) uint8 patches in the place of the block.
    """

    image: Pixels
    context: Ints
    block: Ints
    pasted: Mapping[str, Pixels]


def nearest_patches(queries: Floats, tokens: Floats) -> Ints:
    """Number of the token nearest to each query by cosine: (...) for (..., dim) queries."""
    found = Nearest(queries.reshape(-1, queries.shape[-1]), 1)
    found.add(tokens)
    return found.numbers.reshape(queries.shape[:-1])


def cut_patches(images: Pixels, patch_px: int) -> Pixels:
    """(n * N, patch, patch, 3) of (n, height, width, 3) images: row-major, image after image."""
    num, height, width, _ = images.shape
    rows, columns = height // patch_px, width // patch_px
    tiles = images.reshape(num, rows, patch_px, columns, patch_px, 3).swapaxes(2, 3)
    return tiles.reshape(-1, patch_px, patch_px, 3)


def with_patches(image: Pixels, numbers: Ints, patches: Pixels) -> Pixels:
    """A copy of the image (height, width, 3) with these patches at these places of its grid."""
    side = patches.shape[1]
    columns = image.shape[1] // side
    filled = image.copy()
    for number, patch in zip(numbers.tolist(), patches, strict=True):
        row, column = divmod(number, columns)
        filled[row * side : (row + 1) * side, column * side : (column + 1) * side] = patch
    return filled


def retrieval_sheet(
    sections: Sequence[tuple[str, Sequence[RetrievalRow]]],
    notes: Mapping[str, Mapping[str, str]],
    captions: Sequence[str],
) -> Sheet:
    """Draw one section a run, one row an image: image, context, and each way to fill the block.

    Args:
        sections: title and rows of each, all with the same titles in `pasted`.
        notes: section's title -> title in `pasted` -> what stands below it.
        captions: sentences that stand above.
    """
    titles = list(sections[0][1][0].pasted)
    width = (len(titles) + 2) * (TILE_PX + GAP_PX) + GAP_PX
    lines = caption_lines(captions, width)
    step = _size(sections[0][1][0].image)[1] + GAP_PX
    heights = [4 * LINE_PX + len(rows) * step for _, rows in sections]
    sheet = Sheet(width, captions_height(lines) + sum(heights))
    top = write_captions(sheet, lines)
    for (title, rows), height in zip(sections, heights, strict=True):
        sheet.words(GAP_PX, top, shortened(title, width - 2 * GAP_PX))
        for column, name in enumerate(["image", "context", *titles]):
            left = GAP_PX + column * (TILE_PX + GAP_PX)
            sheet.words(left, top + LINE_PX, name)
            sheet.words(left, top + 2 * LINE_PX, notes[title].get(name, ""), SOFT)
        for number, row in enumerate(rows):
            _row(sheet, top + 3 * LINE_PX + number * step, row)
        top += height
    return sheet


def _row(sheet: Sheet, top: int, row: RetrievalRow) -> None:
    size = _size(row.image)
    side = next(iter(row.pasted.values())).shape[1]
    patches = cut_patches(row.image[np.newaxis], side)
    seen = with_patches(np.full_like(row.image, HIDDEN), row.context, patches[row.context])
    filled = [with_patches(seen, row.block, pasted) for pasted in row.pasted.values()]
    scale = size[0] / row.image.shape[1]
    columns = row.image.shape[1] // side
    for number, pixels in enumerate([row.image, seen, *filled]):
        left = GAP_PX + number * (TILE_PX + GAP_PX)
        sheet.picture(left, top, pixels, size)
        for start, end in outline(row.block, columns):
            sheet.line([_moved(p, side * scale, left, top) for p in (start, end)], BOX, 2)


def outline(block: Ints, columns: int) -> list[tuple[Point, Point]]:
    """Edges between patches of a block and others, in patches from the upper left corner."""
    inside = {divmod(number, columns) for number in block.tolist()}
    edges: list[tuple[Point, Point]] = []
    for row, column in sorted(inside):
        if (row - 1, column) not in inside:
            edges.append(((column, row), (column + 1, row)))
        if (row + 1, column) not in inside:
            edges.append(((column, row + 1), (column + 1, row + 1)))
        if (row, column - 1) not in inside:
            edges.append(((column, row), (column, row + 1)))
        if (row, column + 1) not in inside:
            edges.append(((column + 1, row), (column + 1, row + 1)))
    return edges


def _moved(point: Point, scale: float, left: int, top: int) -> Point:
    return left + point[0] * scale, top + point[1] * scale


def _size(image: Pixels) -> tuple[int, int]:
    """(width, height) of a tile."""
    height, width = image.shape[:2]
    scale = TILE_PX / max(height, width)
    return round(width * scale), round(height * scale)
