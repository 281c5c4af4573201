"""A sheet of decoded predictions: what the context shows, and what samples put in the block."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

TILE_PX, GAP_PX, LINE_PX, BOX_PX, FONT_PX = 144, 8, 20, 2, 12
HIDDEN = (222, 222, 222)
BOX = (214, 39, 40)
INK = (30, 30, 30)

Pixels = np.ndarray[tuple[int, ...], np.dtype[np.uint8]]


class Column(NamedTuple):
    """Pictures under one heading, one a row: (n, height, width, 3) uint8; equal headings join."""

    heading: str
    images: Pixels


def hide(
    images: Pixels, context: "np.ndarray[tuple[int, ...], np.dtype[np.int64]]", patch_px: int
) -> Pixels:
    """Images (n, height, width, 3) with everything grey but the (n, K) patches of the context."""
    rows, columns = images.shape[1] // patch_px, images.shape[2] // patch_px
    seen = np.zeros((len(images), rows * columns), dtype=bool)
    np.put_along_axis(seen, context, values=True, axis=1)
    seen = seen.reshape(-1, rows, columns).repeat(patch_px, axis=1).repeat(patch_px, axis=2)
    return np.where(seen[..., None], images, np.array(HIDDEN, dtype=np.uint8))


def prediction_sheet(
    columns: Sequence[Column],
    boxes: Sequence[tuple[int, int, int, int]],
    captions: Sequence[str],
) -> Image.Image:
    """Draw one row an image, the target block's box around the same place in every column.

    Args:
        columns: pictures of one size; their headings stand above, once where they repeat.
        boxes: (top, left, height, width) in pixels of each row's block.
        captions: what stands above, a line each.
    """
    height, width = columns[0].images.shape[1:3]
    zoom = TILE_PX / max(height, width)
    tile = round(width * zoom), round(height * zoom)
    step = tile[0] + GAP_PX, tile[1] + GAP_PX
    width_px = GAP_PX + len(columns) * step[0]
    lines = [line for caption in captions for line in _wrapped(caption, width_px - 2 * GAP_PX)]
    top = LINE_PX * (len(lines) + 1) + GAP_PX
    size = width_px, top + len(boxes) * step[1]
    sheet = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(sheet)
    for number, line in enumerate(lines):
        _write(pen, GAP_PX, number * LINE_PX + 3, line)
    for number, column in enumerate(columns):
        if not number or columns[number - 1].heading != column.heading:
            _write(pen, GAP_PX + number * step[0], top - LINE_PX, column.heading)
        for row, (picture, box) in enumerate(zip(column.images, boxes, strict=True)):
            place = GAP_PX + number * step[0], top + row * step[1]
            shown = Image.fromarray(picture).resize(tile, Image.Resampling.BILINEAR)
            sheet.paste(shown, place)
            _draw_box(pen, place, box, zoom)
    return sheet


def _draw_box(
    pen: ImageDraw.ImageDraw,
    place: tuple[int, int],
    box: tuple[int, int, int, int],
    zoom: float,
) -> None:
    top, left, height, width = (round(side * zoom) for side in box)
    corner = place[0] + left, place[1] + top
    ends = (*corner, corner[0] + width - 1, corner[1] + height - 1)
    pen.rectangle(ends, outline=BOX, width=BOX_PX)


def _wrapped(text: str, width_px: int) -> list[str]:
    """Lines of whole words that fit, where a single word does."""
    lines, font = [""], ImageFont.load_default(FONT_PX)
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and font.getlength(longer) > width_px:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines


def _write(pen: ImageDraw.ImageDraw, x: int, y: int, text: str) -> None:
    pen.text((x, y), text, fill=INK, font=ImageFont.load_default(FONT_PX))
