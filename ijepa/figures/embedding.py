"""Features on a plane: a dot an image, as a still picture or as a page to point at."""

import base64
import contextlib
import io
import json
import math
import re
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from markupsafe import Markup
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from PIL import Image

from ijepa.arrays import Floats, Pixels
from ijepa.figures.draw import (
    COLOURS,
    GAP_PX,
    LINE_PX,
    box,
    captioned,
    fitted,
    picture,
    sized,
    words,
)
from ijepa.figures.pca import principal_components
from ijepa.progress import Progress, silent
from ijepa.templating import templates
from ijepa.text import printable

FIRST_COMPONENTS = 50  # that t-SNE is given, as its authors do
ITERATIONS = 1000  # of t-SNE, scikit-learn's default
MOST_CLASSES = 40  # colours and shapes that can be told apart; rarer classes share `OTHER`
OTHER = "other classes"
SHAPES = {"circle": "o", "square": "s", "triangle": "^", "diamond": "D"}  # in matplotlib's letters
MAP_PX, LEGEND_PX, THUMBNAIL_PX, DOT_PX = 720, 210, 34, 6.4
APART = 1.6  # sides of a thumbnail between neighbouring ones
PAGE_SIZE, PAGE_MARGIN = 1000, 24  # of the page's map in its own units
SPRITE_QUALITY = 85


class Group(NamedTuple):
    """A class of points, and how it looks: shapes change when colours are used up."""

    name: str
    size: int
    colour: str
    shape: str


class _Iterations(io.StringIO):
    """Takes what scikit-learn prints of its iterations, and reports them as progress."""

    def __init__(self, progress: Progress) -> None:
        super().__init__()
        self._progress = progress

    def write(self, text: str) -> int:
        if found := re.search(r"Iteration (\d+)", text):
            self._progress("lay out t-SNE iterations", int(found[1]), ITERATIONS)
        return len(text)


def project(
    features: Floats, method: str, perplexity: float, seed: int, progress: Progress = silent
) -> Floats:
    """Bring features (n, dim) to a plane: (n, 2), both from 0, the longer axis to 1.

    `pca`, or `tsne` of the first 50 principal components, with a perplexity of `most_perplexity` at
    most.
    """
    num, dim = features.shape
    if method == "pca":
        places = principal_components(features.astype(np.float64), 2)[0]
    else:
        from sklearn.decomposition import PCA
        from sklearn.manifold import TSNE  # it takes a second, which no other picture needs

        count = min(FIRST_COMPONENTS, num - 1, dim)
        first = PCA(count, svd_solver="full").fit_transform(features.astype(np.float64))
        tsne = TSNE(perplexity=perplexity, init="pca", random_state=seed, n_jobs=1, verbose=2)
        progress("lay out t-SNE iterations", 0, ITERATIONS)
        with contextlib.redirect_stdout(_Iterations(progress)):  # it has no other way to tell
            places = tsne.fit_transform(first.astype(np.float32))
        progress("lay out t-SNE iterations", ITERATIONS, ITERATIONS)
    places = np.asarray(places, dtype=np.float64)
    low, extent = places.min(axis=0), np.ptp(places, axis=0).max()
    scaled: Floats = (places - low) / max(float(extent), 1e-12)
    return scaled


def most_perplexity(num_images: int) -> float:
    """The highest perplexity that t-SNE can give so many images, at least 3."""
    return (num_images - 1) / 3


def legend_of(names: Sequence[str]) -> tuple[list[Group], list[int]]:
    """Classes by falling number of points, the rarest together as `OTHER`, and each point's."""
    classes = sorted(Counter(names).items(), key=lambda item: (-item[1], item[0]))
    if len(classes) > MOST_CLASSES:
        rest = sum(count for _, count in classes[MOST_CLASSES - 1 :])
        classes = [*classes[: MOST_CLASSES - 1], (OTHER, rest)]
    groups, shapes = [], list(SHAPES)
    for place, (name, count) in enumerate(classes):
        shape, colour = divmod(place, len(COLOURS))
        groups.append(Group(name, count, COLOURS[colour], shapes[shape]))
    places = {group.name: place for place, group in enumerate(groups)}
    return groups, [places.get(name, len(groups) - 1) for name in names]


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
    places: Floats,
    names: Sequence[str],
    thumbnails: Sequence[Pixels],
    captions: Sequence[str],
) -> Figure:
    """Draw dots, thumbnails that do not overlap, and the legend.

    Args:
        places: (n, 2) across and down, from 0 to at most 1.
        names: (n,) of the points' classes.
        thumbnails: (side, side, 3) uint8 of all points, or none of any.
        captions: sentences that stand above.
    """
    figure, axes, top = captioned(captions, MAP_PX + LEGEND_PX)
    points = places * (MAP_PX - THUMBNAIL_PX) + THUMBNAIL_PX / 2 + np.array([GAP_PX, top])
    groups, of_points = legend_of(names)
    looks = [groups[place] for place in of_points]
    for shape, marker in SHAPES.items():
        chosen = [number for number, look in enumerate(looks) if look.shape == shape]
        colours = [looks[number].colour for number in chosen]
        across, down = points[chosen].T
        axes.scatter(across, down, DOT_PX**2, colours, marker=marker, linewidths=0)
    size = THUMBNAIL_PX, THUMBNAIL_PX
    for number in apart(points[: len(thumbnails)], APART * THUMBNAIL_PX):
        x, y = (points[number] - THUMBNAIL_PX / 2).round().tolist()
        picture(axes, x, y, thumbnails[number], size)
        frame = LineCollection([box(x, y, *size)], colors=looks[number].colour, linewidths=2)
        axes.add_collection(frame, autolim=False)
    left = MAP_PX + 2 * GAP_PX
    for place, (name, count, colour, shape) in enumerate(groups):
        y, text = top + place * LINE_PX, f" ({count:,})"
        dot = left + 8, y + LINE_PX / 2, DOT_PX**2, colour
        axes.scatter(*dot, marker=SHAPES[shape], linewidths=0)
        words(axes, left + 20, y, [fitted(name, LEGEND_PX - 40 - 8 * len(text), "start") + text])
    below = float(points[:, 1].max()) + THUMBNAIL_PX / 2
    height = max(below, top + len(groups) * LINE_PX) + GAP_PX
    return sized(figure, left + LEGEND_PX, math.ceil(height))


def embedding_page(
    places: Floats,
    names: Sequence[str],
    thumbnails: Sequence[Pixels],
    captions: Sequence[str],
    keys: Sequence[str],
) -> str:
    """One HTML file that loads nothing, to be hovered, touched, or walked by keys.

    The arguments are those of `embedding_figure`, and (n,) names of the images.
    """
    points = np.round(places * (PAGE_SIZE - 2 * PAGE_MARGIN) + PAGE_MARGIN, 1).tolist()
    columns, (groups, of_points) = math.ceil(math.sqrt(len(keys))), legend_of(names)
    sprite = None  # all thumbnails in one picture, row by row
    if thumbnails:
        side, rows = len(thumbnails[0]), math.ceil(len(thumbnails) / columns)
        tiles = np.zeros((rows * columns, side, side, 3), dtype=np.uint8)
        tiles[: len(thumbnails)] = thumbnails
        tiles = tiles.reshape(rows, columns, side, side, 3).swapaxes(1, 2)
        image, buffer = Image.fromarray(tiles.reshape(rows * side, -1, 3)), io.BytesIO()
        image.save(buffer, "JPEG", quality=SPRITE_QUALITY)
        sprite = f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
    data = {
        "points": points,
        "keys": [printable(key) for key in keys],
        "classes": [printable(group.name) for group in groups],
        "of": of_points,
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
        marks=[(*at, *groups[of][2:]) for at, of in zip(points, of_points, strict=True)],
        legend=groups,
        sprite=sprite,
        data=Markup(text),
    )
