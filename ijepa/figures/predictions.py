"""Decoded predictions: what the context shows, and what samples put in the block."""

from collections.abc import Sequence

from matplotlib.figure import Figure

from ijepa.figures.draw import ORANGE, Pixels, Section, Tile, box, sheet


def prediction_figure(
    columns: Sequence[tuple[str, Pixels]],
    boxes: Sequence[tuple[int, int, int, int]],
    captions: Sequence[str],
) -> Figure:
    """Draw one row an image, the target block's outline at the same place in every column.

    Args:
        columns: heading and (n, height, width, 3) uint8 pictures of one size; a heading that
            repeats is written once.
        boxes: (top, left, height, width) in pixels of each row's block.
        captions: sentences that stand above.
    """
    names = [name for name, _ in columns]
    headings = [[name if name not in names[:n] else ""] for n, name in enumerate(names)]
    rows = []
    for number, (top, left, height, width) in enumerate(boxes):
        images = [images[number] for _, images in columns]
        high, wide = images[0].shape[:2]
        line = box(left / wide, top / high, width / wide, height / high)
        rows.append([Tile(image, (), [line], ORANGE) for image in images])
    return sheet([Section("", headings, rows)], captions, 144)
