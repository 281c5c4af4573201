"""Features on a plane: a dot an image, as a still picture or as a page to point at."""

import base64
import io
import json
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from markupsafe import Markup
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from PIL import Image

from ijepa.figures.draw import (
    COLOURS,
    GAP_PX,
    LINE_PX,
    Floats,
    Pixels,
    box,
    captioned,
    fitted,
    picture,
    sized,
    words,
)
from ijepa.figures.pca import principal_components
from ijepa.templating import templates
from ijepa.text import printable

FIRST_COMPONENTS = 50  # that t-SNE is given, as its authors do
MOST_CLASSES = 40  # colours and shapes that can be told apart; rarer classes share `OTHER`
OTHER = "other classes"
SHAPES = {"circle": "o", "square": "s", "triangle": "^", "diamond": "D"}  # in matplotlib's letters
MAP_PX, LEGEND_PX, THUMBNAIL_PX, DOT_PX = 720, 210, 34, 6.4
APART = 1.6  # sides of a thumbnail between neighbouring ones
PAGE_SIZE, PAGE_MARGIN = 1000, 24  # of the page's map in its own units
SPRITE_QUALITY = 85


class Legend(NamedTuple):
    """Classes by falling number of images, at most `MOST_CLASSES`, and each point's place there."""

    names: list[str]
    counts: list[int]
    of_points: list[int]

    def look(self, place: int) -> tuple[str, str]:
        """Colour and shape of a class; shapes change when colours are used up."""
        return COLOURS[place % len(COLOURS)], list(SHAPES)[place // len(COLOURS) % len(SHAPES)]


def project(features: Floats, method: str, perplexity: float, seed: int) -> Floats:
    """Bring features to a plane: (n, 2), both coordinates from 0, the longer axis to 1.

    Args:
        features: (n, dim) of at least three images.
        method: `pca`, or `tsne` of the first 50 principal components.
        perplexity: of t-SNE; at most what n images allow, (n - 1) / 3.
        seed: of t-SNE.
    """
    num, dim = features.shape
    if method == "pca":
        places = principal_components(features.astype(np.float64), 2)[0]
    else:
        from sklearn.decomposition import PCA
        from sklearn.manifold import TSNE  # it takes a second, which no other picture needs

        count = min(FIRST_COMPONENTS, num - 1, dim)
        first = PCA(count, svd_solver="full").fit_transform(features.astype(np.float64))
        most = min(perplexity, (num - 1) / 3)
        tsne = TSNE(perplexity=most, init="pca", random_state=seed, n_jobs=1)
        places = tsne.fit_transform(first.astype(np.float32))
    places = np.asarray(places, dtype=np.float64)
    low, extent = places.min(axis=0), np.ptp(places, axis=0).max()
    scaled: Floats = (places - low) / max(float(extent), 1e-12)
    return scaled


def legend_of(names: Sequence[str]) -> Legend:
    """Classes of the points; those beyond the most frequent ones become `OTHER`."""
    values, counts = np.unique(np.asarray(names), return_counts=True)
    order = np.lexsort([values, -counts])
    kept = [str(values[place]) for place in order]
    sizes = [int(counts[place]) for place in order]
    if len(kept) > MOST_CLASSES:
        rest = sum(sizes[MOST_CLASSES - 1 :])
        kept, sizes = [*kept[: MOST_CLASSES - 1], OTHER], [*sizes[: MOST_CLASSES - 1], rest]
    places = {name: place for place, name in enumerate(kept)}
    return Legend(kept, sizes, [places.get(name, len(kept) - 1) for name in names])


def apart(places: Floats, distance: float) -> list[int]:
    """Points (n, 2) that keep a distance from all those chosen before, the first ones first.

    The distance is along either axis, so that squares of that side do not overlap.
    """
    chosen: list[int] = []
    for number, place in enumerate(places):
        if not chosen or (np.abs(places[chosen] - place).max(axis=1) >= distance).all():
            chosen.append(number)
    return chosen


def embedding_figure(
    places: Floats, legend: Legend, thumbnails: Sequence[Pixels], captions: Sequence[str]
) -> Figure:
    """Draw dots, thumbnails that do not overlap, and the legend.

    Args:
        places: (n, 2) across and down, from 0 to at most 1.
        legend: of the points.
        thumbnails: (side, side, 3) uint8 of all points, or none of any.
        captions: sentences that stand above.
    """
    figure, axes, top = captioned(captions, MAP_PX + LEGEND_PX)
    points = places * (MAP_PX - THUMBNAIL_PX) + THUMBNAIL_PX / 2 + np.array([GAP_PX, top])
    looks = [legend.look(place) for place in legend.of_points]
    for shape, marker in SHAPES.items():
        chosen = [number for number, look in enumerate(looks) if look[1] == shape]
        colours = [looks[number][0] for number in chosen]
        across, down = points[chosen].T
        axes.scatter(across, down, DOT_PX**2, colours, marker=marker, linewidths=0)
    size = THUMBNAIL_PX, THUMBNAIL_PX
    for number in apart(points[: len(thumbnails)], APART * THUMBNAIL_PX):
        x, y = (points[number] - THUMBNAIL_PX / 2).round().tolist()
        picture(axes, x, y, thumbnails[number], size)
        frame = LineCollection([box(x, y, *size)], colors=looks[number][0], linewidths=2)
        axes.add_collection(frame, autolim=False)
    left = MAP_PX + 2 * GAP_PX
    for place, (name, count) in enumerate(zip(legend.names, legend.counts, strict=True)):
        y, (colour, shape) = top + place * LINE_PX, legend.look(place)
        dot = left + 8, y + LINE_PX / 2, DOT_PX**2, colour
        axes.scatter(*dot, marker=SHAPES[shape], linewidths=0)
        text = f" ({count:,})"
        words(axes, left + 20, y, [fitted(name, LEGEND_PX - 40 - 8 * len(text), "start") + text])
    below = float(points[:, 1].max()) + THUMBNAIL_PX / 2
    height = max(below, top + len(legend.names) * LINE_PX) + GAP_PX
    return sized(figure, left + LEGEND_PX, math.ceil(height))


def embedding_page(
    places: Floats,
    keys: Sequence[str],
    legend: Legend,
    thumbnails: Sequence[Pixels],
    captions: Sequence[str],
) -> str:
    """One HTML file that loads nothing, to be hovered, touched, or walked by keys.

    Args:
        places: (n, 2) across and down, from 0 to at most 1.
        keys: (n,) names of the images.
        legend: of the points.
        thumbnails: (side, side, 3) uint8 of all points, or none of any.
        captions: sentences that stand above.
    """
    points = np.round(places * (PAGE_SIZE - 2 * PAGE_MARGIN) + PAGE_MARGIN, 1).tolist()
    columns = math.ceil(math.sqrt(len(keys)))
    data = {
        "points": points,
        "keys": [printable(key) for key in keys],
        "classes": [printable(name) for name in legend.names],
        "of": legend.of_points,
        "columns": columns if thumbnails else 0,
    }
    text = json.dumps(data, separators=(",", ":"))
    for character in "<>&":  # no text in it can end the script element that it stands in
        text = text.replace(character, f"\\u{ord(character):04x}")
    page = templates("figures").get_template("embedding.html.j2")
    return page.render(
        captions=captions,
        colours=COLOURS,
        size=PAGE_SIZE,
        height=round(max(y for _, y in points)) + PAGE_MARGIN,
        marks=[
            (*point, *legend.look(of)) for point, of in zip(points, legend.of_points, strict=True)
        ],
        legend=[
            (name, count, *legend.look(place))
            for place, (name, count) in enumerate(zip(legend.names, legend.counts, strict=True))
        ],
        sprite=_sprite(thumbnails, columns) if thumbnails else None,
        data=Markup(text),
    )


def _sprite(thumbnails: Sequence[Pixels], columns: int) -> str:
    """All thumbnails in one picture, row by row, as a `data:` address."""
    side = len(thumbnails[0])
    sprite = Image.new("RGB", (columns * side, math.ceil(len(thumbnails) / columns) * side))
    for number, pixels in enumerate(thumbnails):
        row, column = divmod(number, columns)
        sprite.paste(Image.fromarray(np.ascontiguousarray(pixels)), (column * side, row * side))
    buffer = io.BytesIO()
    sprite.save(buffer, "JPEG", quality=SPRITE_QUALITY)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
