"""The map of features as one HTML file that loads nothing: to be hovered, touched, or walked."""

import base64
import io
import json
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from markupsafe import Markup
from PIL import Image

from ijepa.figures.embedding_sheet import CORNERS
from ijepa.figures.projection import COLOURS, Floats, Legend
from ijepa.figures.sheet import Pixels
from ijepa.templating import templates
from ijepa.text import printable

SIZE, MARGIN, DOT = 1000, 24, 5.0  # of the map in its own units
SPRITE_QUALITY = 85


def embedding_page(
    places: Floats,
    keys: Sequence[str],
    legend: Legend | None,
    thumbnails: Sequence[Pixels] | None,
    captions: Sequence[str],
) -> str:
    """The whole HTML text.

    Args:
        places: (n, 2) across and down, from 0 to at most 1.
        keys: (n,) names of the images.
        legend: of the points; None draws all alike.
        thumbnails: (side, side, 3) uint8 of all points, of one size; None shows keys only.
        captions: sentences that stand above.
    """
    points = places * (SIZE - 2 * MARGIN) + MARGIN
    sprite = _sprite(thumbnails) if thumbnails else None
    data = {
        "points": np.round(points, 1).tolist(),
        "keys": [printable(key) for key in keys],
        "classes": [printable(name) for name in legend.names] if legend else [],
        "of": legend.of_points if legend else [],
        "sprite": {"side": len(thumbnails[0]), "columns": _columns(len(keys))}
        if thumbnails
        else None,
    }
    return (
        templates("figures")
        .get_template("embedding.html.j2")
        .render(
            captions=captions,
            colours=COLOURS,
            size=SIZE,
            height=round(float(points[:, 1].max())) + MARGIN,
            marks=[_mark(x, y, legend, number) for number, (x, y) in enumerate(points.tolist())],
            legend=_entries(legend),
            sprite=sprite,
            data=_embedded(data),
        )
    )


def _mark(x: float, y: float, legend: Legend | None, number: int) -> Markup:
    place = legend.of_points[number] if legend else 0
    colour = place % len(COLOURS) if legend else len(COLOURS) - 1
    return Markup('<path class="c{}" d="{}"/>').format(colour, _path(x, y, _shape(legend, place)))


def _shape(legend: Legend | None, place: int) -> str:
    return legend.shape(place) if legend else "circle"


def _path(x: float, y: float, shape: str) -> str:
    if shape == "circle":
        half = f"a{DOT:g} {DOT:g} 0 1 0"
        return f"M{x - DOT:.1f} {y:.1f}{half} {2 * DOT:g} 0{half} {-2 * DOT:g} 0"
    corners = [f"{x + a * DOT:.1f} {y + b * DOT:.1f}" for a, b in CORNERS[shape]]
    return f"M{'L'.join(corners)}z"


def _entries(legend: Legend | None) -> list[dict[str, Any]]:
    if not legend:
        return []
    return [
        {
            "name": name,
            "count": count,
            "mark": Markup('<path class="c{}" d="{}"/>').format(
                place % len(COLOURS), _path(8, 8, legend.shape(place))
            ),
        }
        for place, (name, count) in enumerate(zip(legend.names, legend.counts, strict=True))
    ]


def _columns(count: int) -> int:
    return math.ceil(math.sqrt(count))


def _sprite(thumbnails: Sequence[Pixels]) -> str:
    """All thumbnails in one picture, row by row, as a `data:` address."""
    side, columns = len(thumbnails[0]), _columns(len(thumbnails))
    rows = math.ceil(len(thumbnails) / columns)
    sprite = np.zeros((rows * side, columns * side, 3), dtype=np.uint8)
    for number, pixels in enumerate(thumbnails):
        row, column = divmod(number, columns)
        sprite[row * side : (row + 1) * side, column * side : (column + 1) * side] = pixels
    buffer = io.BytesIO()
    Image.fromarray(sprite).save(buffer, "JPEG", quality=SPRITE_QUALITY)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _embedded(data: object) -> Markup:
    """JSON that may stand inside a script element: no text in it can end that element."""
    text = json.dumps(data, separators=(",", ":"))
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)  # escaped above
