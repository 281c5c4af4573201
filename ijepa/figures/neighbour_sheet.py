"""A sheet of neighbours: each query image, and the images nearest to it."""

from collections.abc import Sequence
from typing import NamedTuple

from ijepa.figures.sheet import (
    GAP_PX,
    LINE_PX,
    SOFT,
    Pixels,
    Sheet,
    caption_lines,
    captions_height,
    shortened,
    write_captions,
)

TILE_PX = 112
SAME, OTHER, QUERY = "#15803d", "#c2410c", "#1f6feb"


class Shown(NamedTuple):
    """An image on the sheet.

    Attributes:
        pixels: (height, width, 3) uint8, square; None where there are none to show.
        name: its class, or its key.
        cosine: to the query; None for the query itself.
        same: of the query's class? None where classes are not known.
    """

    pixels: Pixels | None
    name: str
    cosine: float | None = None
    same: bool | None = None


def neighbour_sheet(
    sections: Sequence[tuple[str, Sequence[Sequence[Shown]]]], captions: Sequence[str]
) -> Sheet:
    """Draw one section a feature file, one row a query: the query first, then the nearest.

    Args:
        sections: title and rows of each.
        captions: sentences that stand above.
    """
    columns = max(len(row) for _, rows in sections for row in rows)
    width = GAP_PX + columns * (TILE_PX + GAP_PX) + GAP_PX
    lines = caption_lines(captions, width)
    row_height = TILE_PX + 2 * LINE_PX + GAP_PX
    heights = [2 * LINE_PX + len(rows) * row_height for _, rows in sections]
    sheet = Sheet(width, captions_height(lines) + sum(heights))
    top = write_captions(sheet, lines)
    for (title, rows), height in zip(sections, heights, strict=True):
        sheet.words(GAP_PX, top, shortened(title, width - 2 * GAP_PX))
        sheet.words(GAP_PX, top + LINE_PX, "query", SOFT)
        sheet.words(2 * GAP_PX + TILE_PX + GAP_PX, top + LINE_PX, "nearest first", SOFT)
        for number, row in enumerate(rows):
            _row(sheet, top + 2 * LINE_PX + number * row_height, row)
        top += height
    return sheet


def _row(sheet: Sheet, top: int, row: Sequence[Shown]) -> None:
    for column, shown in enumerate(row):
        left = GAP_PX + column * (TILE_PX + GAP_PX) + (GAP_PX if column else 0)
        size = (TILE_PX, TILE_PX)
        if shown.pixels is not None:
            sheet.picture(left, top, shown.pixels, size)
        if shown.cosine is None:
            sheet.frame(left, top, size, QUERY, 3)
        else:
            frame = SOFT if shown.same is None else (SAME if shown.same else OTHER)
            sheet.frame(left, top, size, frame, 3 if shown.same is not None else 1)
            sheet.words(left, top + TILE_PX + LINE_PX, f"{shown.cosine:.3f}", SOFT)
        name = f"= {shown.name}" if shown.same else shown.name
        sheet.words(left, top + TILE_PX + 1, shortened(name, TILE_PX))
