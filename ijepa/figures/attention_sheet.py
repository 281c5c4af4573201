"""A sheet of attention: for each query the image, each head's map, and the rollout."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image

from ijepa.figures.sheet import (
    GAP_PX,
    LINE_PX,
    SOFT,
    Pixels,
    Sheet,
    caption_lines,
    captions_height,
    heat_colours,
    shortened,
    write_captions,
)

TILE_PX, SMALL_TILE_PX = 128, 96  # the latter for more than six maps
LARGE_MAPS = 8
QUERY = "#1f6feb"
FAINT = 0.45  # how much of the image's contrast stays under a map

Floats = np.ndarray[tuple[int, ...], np.dtype[np.float32]]


class QueryRow(NamedTuple):
    """One query in one image.

    Attributes:
        image: (height, width, 3) uint8.
        name: of the query.
        patch: (row, column) of the query; None for queries that are no single patch.
        maps: title -> (rows, columns) attention of that query to each patch.
        num_tokens: among which attention is shared out, prefix tokens too.
    """

    image: Pixels
    name: str
    patch: tuple[int, int] | None
    maps: Mapping[str, Floats]
    num_tokens: int


def attention_sheet(
    sections: Sequence[tuple[str, Sequence[QueryRow]]], captions: Sequence[str]
) -> Sheet:
    """Draw one section an encoder, one row a query.

    Args:
        sections: title and rows of each, the rows with the same maps.
        captions: sentences that stand above.
    """
    num_maps = max(len(rows[0].maps) for _, rows in sections)
    tile = TILE_PX if num_maps <= LARGE_MAPS else SMALL_TILE_PX
    width = (num_maps + 1) * (tile + GAP_PX) + GAP_PX
    lines = caption_lines(captions, width)
    heights = [_section_height(rows, tile) for _, rows in sections]
    sheet = Sheet(width, captions_height(lines) + sum(heights))
    top = write_captions(sheet, lines)
    for (title, rows), height in zip(sections, heights, strict=True):
        _section(sheet, top, tile, title, rows)
        top += height
    return sheet


def _section_height(rows: Sequence[QueryRow], tile: int) -> int:
    return 2 * LINE_PX + sum(_row_height(row, tile) for row in rows) + GAP_PX


def _row_height(row: QueryRow, tile: int) -> int:
    return _size(row, tile)[1] + LINE_PX + GAP_PX


def _section(sheet: Sheet, top: int, tile: int, title: str, rows: Sequence[QueryRow]) -> None:
    sheet.words(GAP_PX, top, shortened(title, sheet.width - 2 * GAP_PX))
    for column, name in enumerate(["image", *rows[0].maps]):
        sheet.words(GAP_PX + column * (tile + GAP_PX), top + LINE_PX, name, SOFT)
    top += 2 * LINE_PX
    for row in rows:
        size = _size(row, tile)
        sheet.picture(GAP_PX, top, _sized(row.image, size))
        _mark_query(sheet, GAP_PX, top, size, row)
        sheet.words(GAP_PX, top + size[1], f"query: {row.name}", SOFT)
        for column, shares in enumerate(row.maps.values(), start=1):
            left = GAP_PX + column * (tile + GAP_PX)
            ceiling = largest_elsewhere(shares, row.patch)
            sheet.picture(left, top, overlay(row.image, shares, size, ceiling))
            _mark_query(sheet, left, top, size, row)
            sheet.words(left, top + size[1], f"max {ceiling * row.num_tokens:.1f}x", SOFT)
        top += _row_height(row, tile)


def largest_elsewhere(shares: Floats, query: tuple[int, int] | None) -> float:
    """Largest share of a patch that is not the query: by its residual it mostly keeps itself."""
    others = shares.copy()
    if query is not None and shares.size > 1:
        others[query] = 0
    return float(others.max())


def overlay(image: Pixels, shares: Floats, size: tuple[int, int], ceiling: float) -> Pixels:
    """The image in faint grey, coloured by each patch's share, darkest from `ceiling` on.

    Args:
        image: (height, width, 3) uint8.
        shares: (rows, columns), not negative.
        size: (width, height) of the result.
        ceiling: share that is darkest.
    """
    grey = np.asarray(Image.fromarray(_sized(image, size)).convert("L"), dtype=np.float32) / 255
    faint = 1 - FAINT * (1 - grey)
    scaled = (np.clip(shares / max(ceiling, 1e-12), 0, 1) * 255).round().astype(np.uint8)
    colours = Image.fromarray(heat_colours()[scaled]).resize(size, Image.Resampling.NEAREST)
    found: Pixels = (np.asarray(colours) * faint[..., np.newaxis]).round().astype(np.uint8)
    return found


def _mark_query(sheet: Sheet, x: int, y: int, size: tuple[int, int], row: QueryRow) -> None:
    if row.patch is None:
        return
    rows, columns = next(iter(row.maps.values())).shape
    down, across = size[1] / rows, size[0] / columns
    left, top = x + round(row.patch[1] * across), y + round(row.patch[0] * down)
    sheet.frame(left, top, (round(across), round(down)), QUERY)


def _size(row: QueryRow, tile: int) -> tuple[int, int]:
    """(width, height) of a tile: the longer side is `tile`."""
    height, width = row.image.shape[:2]
    scale = tile / max(height, width)
    return round(width * scale), round(height * scale)


def _sized(image: Pixels, size: tuple[int, int]) -> Pixels:
    resized = Image.fromarray(np.ascontiguousarray(image)).resize(size, Image.Resampling.BILINEAR)
    return np.asarray(resized)
