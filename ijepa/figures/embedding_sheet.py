"""A still map of features: a dot an image, coloured by class, and some of the images."""

from collections.abc import Sequence

import numpy as np

from ijepa.figures.projection import Floats, Legend, apart
from ijepa.figures.sheet import (
    CHARACTER_PX,
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

MAP_PX, LEGEND_PX, THUMBNAIL_PX, DOT_PX = 720, 210, 34, 3.2
APART = 1.6  # sides of a thumbnail between neighbouring ones


def embedding_sheet(
    places: Floats,
    legend: Legend | None,
    thumbnails: Sequence[Pixels] | None,
    captions: Sequence[str],
) -> Sheet:
    """Draw dots, thumbnails that do not overlap, and the legend.

    Args:
        places: (n, 2) across and down, from 0 to at most 1.
        legend: of the points; None draws all alike.
        thumbnails: (side, side, 3) uint8 of all points; None draws dots only.
        captions: sentences that stand above.
    """
    width = GAP_PX + MAP_PX + GAP_PX + (LEGEND_PX if legend else 0)
    lines = caption_lines(captions, width)
    top = captions_height(lines)
    entries = len(legend.names) if legend else 0
    inner = MAP_PX - THUMBNAIL_PX
    map_height = round(float(places[:, 1].max()) * inner) + THUMBNAIL_PX
    sheet = Sheet(width, top + max(map_height, entries * LINE_PX) + GAP_PX)
    write_captions(sheet, lines)
    points = places * inner + THUMBNAIL_PX / 2 + np.array([GAP_PX, top])
    for number, (x, y) in enumerate(points.tolist()):
        draw_dot(sheet, x, y, legend, legend.of_points[number] if legend else 0)
    if thumbnails:
        for number in apart(points, APART * THUMBNAIL_PX):
            x, y = (points[number] - THUMBNAIL_PX / 2).round().astype(int).tolist()
            sheet.picture(x, y, thumbnails[number], (THUMBNAIL_PX, THUMBNAIL_PX))
            colour = legend.colour(legend.of_points[number]) if legend else SOFT
            sheet.frame(x, y, (THUMBNAIL_PX, THUMBNAIL_PX), colour)
    if legend:
        _legend(sheet, GAP_PX + MAP_PX + GAP_PX, top, legend)
    return sheet


def draw_dot(sheet: Sheet, x: float, y: float, legend: Legend | None, place: int) -> None:
    """A dot in the colour and shape of its class."""
    colour = legend.colour(place) if legend else SOFT
    shape = legend.shape(place) if legend else "circle"
    if shape == "circle":
        sheet.shape([(x, y)], colour, DOT_PX)
    else:
        sheet.shape([(x + a * DOT_PX, y + b * DOT_PX) for a, b in CORNERS[shape]], colour)


CORNERS: dict[str, tuple[Point, ...]] = {
    "square": ((-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)),
    "triangle": ((0, -1.2), (1.15, 0.9), (-1.15, 0.9)),
    "diamond": ((0, -1.3), (1.3, 0), (0, 1.3), (-1.3, 0)),
}


def _legend(sheet: Sheet, left: int, top: int, legend: Legend) -> None:
    for place, (name, count) in enumerate(zip(legend.names, legend.counts, strict=True)):
        y = top + place * LINE_PX
        draw_dot(sheet, left + 8, y + LINE_PX / 2, legend, place)
        text = f" ({count})"
        room = LEGEND_PX - 30 - int(len(text) * CHARACTER_PX)
        sheet.words(left + 20, y, shortened(name, room, keep="start") + text)
