"""Images near to each other by their stored features: neighbours, and a map.

A map has a dot an image; it is a still picture, or a page to point at.
"""

import base64
import io
import json
import math
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from markupsafe import Markup
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from PIL import Image, ImageOps
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE

from ijepa.arrays import Floats, Ints, Pixels
from ijepa.config import EmbeddingConfig, NeighborsConfig
from ijepa.data.decode import decode_image
from ijepa.errors import IjepaError
from ijepa.features.store import Features
from ijepa.figures.draw import (
    BLUE,
    COLOURS,
    GAP_PX,
    GREEN,
    LINE_PX,
    ORANGE,
    SOFT,
    Section,
    Tile,
    box,
    captioned,
    fitted,
    picture,
    sheet,
    sized,
    words,
)
from ijepa.templating import templates
from ijepa.text import printable
from ijepa.visualize import PAGE, Drawing, Given, places_of
from ijepa.visualize.images import cosine_knn, shown

TILE_PX = 112  # of neighbours, and of images on a page
UNLABELLED = "not labelled"  # of an image whose class is not known
FIRST_COMPONENTS = 50  # that t-SNE is given, as its authors do
MOST_CLASSES = 40  # colours and shapes that can be told apart; rarer classes share `OTHER`
OTHER = "other classes"
SHAPES = {"circle": "o", "square": "s", "triangle": "^", "diamond": "D"}  # in matplotlib's letters
MAP_PX, LEGEND_PX, THUMBNAIL_PX, DOT_PX = 720, 210, 34, 6.4
APART = 1.6  # sides of a thumbnail between neighbouring ones
PAGE_SIZE, PAGE_MARGIN = 1000, 24  # of the page's map in its own units
SPRITE_QUALITY = 85


class Stored(NamedTuple):
    """The evaluation views in a feature file: their rows, keys and classes, one an image."""

    store: Features
    rows: Ints
    keys: list[str]
    classes: list[str] | None

    def caption(self, layer: int) -> str:
        """Encoder, block and pooling."""
        header = self.store.header
        return f"{header.encoder}: block {header.layers[layer]}, {header.pooling}"


def draw_neighbors(config: NeighborsConfig, given: Given) -> Drawing:
    """The nearest images of some queries by cosine, never the query itself; a row a query."""
    sections, keys, frame = [], config.keys, [box(0, 0, 1, 1)]
    figures: dict[str, float] = {}  # shares of neighbours that are of the query's class
    for place, store in enumerate(given.features, start=1):
        stored = _stored(store, config.label)
        count = len(stored.keys)
        if not keys:
            drawn = np.random.default_rng(config.seed).choice(count, config.queries, replace=False)
            keys = tuple(stored.keys[number] for number in np.sort(drawn))
        queries = np.array(places_of(keys, stored.keys, str(store.path)))
        vectors = store.numpy(config.layer)[stored.rows]
        cosine, found = nearest(vectors[queries], vectors, config.neighbors, queries)
        given.progress("search feature files", place, len(given.features))
        wanted = np.unique([*queries, *found.ravel()]).tolist()
        cut = _thumbnails(given, stored, wanted, TILE_PX)
        pixels = dict(zip(wanted, cut, strict=bool(cut)))
        names, rows, known = stored.classes or stored.keys, [], []
        for query, cosines, numbers in zip(queries.tolist(), cosine, found, strict=True):
            row = [Tile(pixels.get(query), (names[query],), frame, BLUE, 3)]
            for near, number in zip(cosines.tolist(), numbers.tolist(), strict=True):
                name, look = names[number], (SOFT[config.dark], 1)
                if stored.classes and UNLABELLED not in (name, names[query]):
                    known.append(name == names[query])
                    name, look = (f"= {name}", (GREEN, 3)) if known[-1] else (name, (ORANGE, 3))
                row.append(Tile(pixels.get(number), (name, f"{near:.3f}"), frame, *look))
            rows.append(row)
        title = f"{stored.caption(config.layer)}, {count:,} images"
        sections.append(Section(title, [["query"], ["nearest first"]], rows))
        if known:
            figures[f"of the query's class, {place}"] = float(np.mean(known))
    header = given.features[0].header
    named, chosen = "its key and cosine", f"drawn with seed {config.seed}"
    if config.label:
        named = f"its {config.label} and cosine; = and green: the query's {config.label}"
    captions = (
        f"Nearest images by cosine of features, below each {named}.",
        f"Data: {header.source}, split {header.split} ({header.data_fingerprint[:12]}), queries "
        f"{'chosen by key' if config.keys else chosen}. {given.note}".rstrip(),
    )
    encoders = [store.header.encoder for store in given.features]
    facts = {"encoders": encoders, "images": len(keys), "keys": keys, "figures": figures}
    return sheet(sections, captions, TILE_PX), facts


def nearest(queries: Floats, vectors: Floats, k: int, own: Ints) -> tuple[Floats, Ints]:
    """The `k` nearest vectors (n, dim) of each query (m, dim), of any length, by cosine.

    `own` (m,) are the numbers of the vectors that are the queries themselves; they are left out.

    Returns:
        (m, k) cosines, descending, and (m, k) numbers of the vectors; k is at most n - 1. Of
        vectors that are equally near, the first one wins.
    """
    wanted = min(k + 1, len(vectors))
    cosine, numbers = cosine_knn(queries, vectors, wanted)
    is_own = numbers == own[:, np.newaxis]
    order = np.lexsort((numbers, -cosine, is_own), axis=1)[:, : wanted - 1]
    return np.take_along_axis(cosine, order, axis=1), np.take_along_axis(numbers, order, axis=1)


def draw_embedding(config: EmbeddingConfig, given: Given) -> Drawing:
    """A map of a feature file; a page or a still picture."""
    store = given.features[0]
    stored, header = _stored(store, config.label), store.header
    if len(stored.keys) < 3:
        raise IjepaError(f"{store.path} holds {len(stored.keys)} images; a map needs three.")
    # In random order, so that no class always lies on top.
    order = np.random.default_rng(config.seed).permutation(len(stored.keys))[: config.images]
    vectors = store.numpy(config.layer)[stored.rows[order]]
    places = project(vectors, config.method, config.seed)
    names = [stored.classes[n] if stored.classes else "all images" for n in order]
    cut = _thumbnails(given, stored, order.tolist(), TILE_PX // 2)
    how = "PCA"
    if config.method == "tsne":
        how = f"t-SNE, perplexity {perplexity(len(order)):.4g}"
    coloured = f", coloured by {config.label}" if config.label else ""
    captions = (
        f"{stored.caption(config.layer)}.",
        f"{how}, seed {config.seed}; {len(order):,} of {len(stored.keys):,} images{coloured}.",
        f"Data: {header.source}, split {header.split} ({header.data_fingerprint[:12]}). "
        f"{given.note}".rstrip(),
    )
    facts: dict[str, object] = {"encoders": [header.encoder], "images": len(order), "figures": {}}
    if given.out.suffix == PAGE:
        keys = [stored.keys[n] for n in order]
        page = embedding_page(places, names, cut, captions, keys)
        return page, facts
    return embedding_figure(places, names, cut, captions), facts


def project(features: Floats, method: str, seed: int) -> Floats:
    """Bring features (n, dim) to a plane: (n, 2), both from 0, the longer axis to 1.

    `pca`, or `tsne` of the first 50 principal components.
    """
    num, dim = features.shape
    count = 2 if method == "pca" else min(FIRST_COMPONENTS, num - 1, dim)
    solver = "covariance_eigh" if dim < num else "full"  # many times as fast; or less memory
    places = PCA(count, svd_solver=solver).fit_transform(features.astype(np.float64))
    if method == "tsne":
        tsne = TSNE(perplexity=perplexity(num), init="pca", random_state=seed, n_jobs=1)
        places = tsne.fit_transform(places.astype(np.float32)).astype(np.float64)
    low, extent = places.min(axis=0), np.ptp(places, axis=0).max()
    scaled: Floats = (places - low) / max(float(extent), 1e-12)
    return scaled


class Group(NamedTuple):
    """A class of points, and how it looks: shapes change when colours are used up."""

    name: str
    size: int
    colour: str
    shape: str


def perplexity(num_images: int) -> float:
    """scikit-learn's default, or the highest that t-SNE can give so few images, at least 3."""
    return min(30.0, (num_images - 1) / 3)


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
    page = templates("visualize").get_template("embedding.html.j2")
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


def _stored(store: Features, label: str | None) -> Stored:
    each, classes = 1 + store.header.num_views, None  # an image's evaluation view is its first row
    if label is not None:
        names, values = store.header.class_names.get(label), store.labels[label][::each].tolist()
        classes = [UNLABELLED if v < 0 else names[v] if names else str(v) for v in values]
    return Stored(store, np.arange(0, len(store), each), store.keys[::each], classes)


def _thumbnails(given: Given, stored: Stored, places: Sequence[int], side_px: int) -> list[Pixels]:
    """(side, side, 3) uint8 squares of some images, cut from their middle; none without `data`."""
    if (data := given.data) is None:
        return []
    split, cut = data.split(stored.store.header.split), []
    keys = [stored.keys[place] for place in places]
    for place in places_of(keys, split.keys(), str(data.folder)):
        image = Image.fromarray(shown(decode_image(split.read_image(place)), given))
        how = Image.Resampling.BILINEAR
        cut.append(np.asarray(ImageOps.fit(image, (side_px, side_px), how)))
    return cut
