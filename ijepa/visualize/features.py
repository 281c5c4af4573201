"""Images near to each other by their stored features: neighbours, and a map."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure
from PIL import Image, ImageOps

from ijepa.config import EmbeddingConfig, NeighborsConfig, Runtime
from ijepa.data.decode import decode_rgb
from ijepa.data.shards import ShardSet
from ijepa.errors import IjepaError
from ijepa.features.store import Features
from ijepa.figures.draw import Floats, Ints, Pixels
from ijepa.figures.embedding import embedding_figure, embedding_page, legend_of, project
from ijepa.figures.neighbors import NONE, Nearest, Shown, neighbor_figure
from ijepa.progress import Progress
from ijepa.visualize import Shows, Sources

ROWS_AT_ONCE = 16_384  # that are searched for neighbours
THUMBNAIL_PX = 112
UNLABELLED = "not labelled"  # of an image whose class is not known


class Stored(NamedTuple):
    """Evaluation views in a feature file.

    Attributes:
        store: the file.
        rows: (n,) their rows, one an image.
        keys: of the images, likewise.
        names: of their classes, likewise; None without a label.
    """

    store: Features
    rows: Ints
    keys: list[str]
    names: list[str] | None

    def read(self, places: Ints, layer: int) -> Floats:
        """(len(places), dim): one stored layer of some images."""
        _, layers, _ = self.store.shape
        if not -layers <= layer < layers:
            raise IjepaError(f"{self.store.path} holds {layers} layers; there is no layer {layer}.")
        found: Floats = self.store.read(self.rows[places], layers - layer % layers)[:, 0]
        return found


def draw_neighbors(
    config: NeighborsConfig, sources: Sources, _: Runtime, progress: Progress
) -> Shows:
    """The nearest images of some queries by cosine, never the query itself."""
    sections, figures, keys = [], {}, config.keys
    for number, store in enumerate(sources.features, start=1):
        stored, header = _stored(store, config.label), store.header
        queries = _queries(stored, keys, config)
        keys = keys or tuple(stored.keys[place] for place in queries)
        vectors = stored.read(queries, config.layer)
        found = Nearest(vectors, config.neighbors, own=queries)
        for first in range(0, len(stored.rows), ROWS_AT_ONCE):
            places = np.arange(first, min(first + ROWS_AT_ONCE, len(stored.rows)))
            found.add(stored.read(places, config.layer), first)
            progress("search images", int(places[-1]) + 1, len(stored.rows))
        rows = _neighbor_rows(stored, queries, found, sources.data)
        block = header.layers[config.layer]
        title = f"{header.encoder}: block {block}, {header.pooling}, {len(stored.keys):,} images"
        sections.append((title, rows))
        if config.label:
            known = [one.same for row in rows for one in row[1:] if one.same is not None]
            share = float(np.mean(known)) if known else float("nan")
            figures[f"of the query's class, {number}"] = share
    header = sources.features[0].header
    named, chosen = "its key and cosine", f"drawn with seed {config.seed}"
    if config.label:
        named = f"its {config.label} and cosine; = and green: the query's {config.label}"
    captions = (
        f"Nearest images by cosine of features, below each {named}.",
        f"Data: {header.source}, split {header.split} ({header.data_fingerprint[:12]}), queries "
        f"{'chosen by key' if config.keys else chosen}.",
    )
    drawn = neighbor_figure(sections, captions)
    return Shows(
        drawn, [store.header.encoder for store in sources.features], len(keys), keys, figures
    )


def _queries(stored: Stored, keys: Sequence[str], config: NeighborsConfig) -> Ints:
    """Places in `stored`."""
    path, there = stored.store.path, {key: place for place, key in enumerate(stored.keys)}
    if not keys:
        if config.queries >= len(there):
            raise IjepaError(f"{path} holds {len(there)} images; ask for fewer queries.")
        rng = np.random.default_rng(config.seed)
        return np.sort(rng.choice(len(there), config.queries, replace=False))
    missing = [key for key in keys if key not in there]
    if missing:
        raise IjepaError(f"{path} has no image {missing[0]!r}; its first is {stored.keys[0]!r}.")
    return np.array([there[key] for key in keys])


def _neighbor_rows(
    stored: Stored, queries: Ints, found: Nearest, data: ShardSet | None
) -> list[list[Shown]]:
    wanted = sorted({int(n) for n in (*queries, *found.numbers.ravel()) if n != NONE})
    cut = _thumbnails(data, stored, wanted, THUMBNAIL_PX)
    pixels = dict(zip(wanted, cut, strict=True)) if cut else {}
    names, rows = stored.names or stored.keys, []
    for query, cosines, numbers in zip(queries, found.cosine, found.numbers, strict=True):
        row = [Shown(pixels.get(query), names[query])]
        for cosine, number in zip(cosines, numbers, strict=True):
            if number != NONE:
                pair = (names[number], names[query])
                is_known = stored.names and UNLABELLED not in pair
                same = pair[0] == pair[1] if is_known else None
                row.append(Shown(pixels.get(number), names[number], float(cosine), same))
        rows.append(row)
    return rows


def draw_embedding(config: EmbeddingConfig, sources: Sources, _: Runtime, __: Progress) -> Shows:
    """A map of a feature file; a page or a still picture."""
    store = sources.features[0]
    stored, header = _stored(store, config.label), store.header
    if len(stored.keys) < 3:
        raise IjepaError(f"{store.path} holds {len(stored.keys)} images; a map needs three.")
    # In random order, so that no class always lies on top.
    order = np.random.default_rng(config.seed).permutation(len(stored.keys))[: config.images]
    vectors = stored.read(order, config.layer).astype(np.float32)
    places = project(vectors, config.method, config.perplexity, config.seed)
    legend = legend_of([stored.names[n] if stored.names else "all images" for n in order])
    cut = _thumbnails(sources.data, stored, order.tolist(), THUMBNAIL_PX // 2)
    how = f"t-SNE, perplexity {config.perplexity:g}" if config.method == "tsne" else "PCA"
    coloured = f", coloured by {config.label}" if config.label else ""
    captions = (
        f"{header.encoder}: block {header.layers[config.layer]}, {header.pooling}.",
        f"{how}, seed {config.seed}; {len(order):,} of {len(stored.keys):,} images{coloured}.",
        f"Data: {header.source}, split {header.split} ({header.data_fingerprint[:12]}).",
    )
    drawn: Figure | str
    if sources.is_page:
        keys = [stored.keys[n] for n in order]
        drawn = embedding_page(places, keys, legend, cut, captions)
    else:
        drawn = embedding_figure(places, legend, cut, captions)
    return Shows(drawn, [header.encoder], len(order))


def _stored(store: Features, label: str | None) -> Stored:
    """What a feature file says of its images.

    Raises:
        IjepaError: it has no such label.
    """
    views, keys, labels = store.views, store.keys, store.labels
    rows = np.arange(len(keys)) if views is None else np.flatnonzero(views == 0)
    names = None
    if label is not None:
        if label not in labels:
            raise IjepaError(
                f"{store.path} has no label {label!r}; its labels are: "
                f"{', '.join(labels) or 'none'}. --set label=null takes none."
            )
        known, values = store.header.class_names.get(label), labels[label][rows].tolist()
        names = [UNLABELLED if v < 0 else known[v] if known else str(v) for v in values]
    return Stored(store, rows, [keys[row] for row in rows], names)


def _thumbnails(
    data: ShardSet | None, stored: Stored, places: Sequence[int], side_px: int
) -> list[Pixels] | None:
    """(side, side, 3) uint8 squares of some images, cut from their middle; None without `data`.

    Raises:
        IjepaError: an image that the splits of the feature file do not hold.
    """
    if data is None:
        return None
    names = stored.store.header.split
    splits = [data.split(name) for name in names.split("+")]
    wanted = [stored.keys[place] for place in places]
    first = splits[0]
    if len(splits) == 1 and len(first) == len(stored.keys) and first.keys(list(places)) == wanted:
        where = [(first, place) for place in places]
    else:
        there = {
            key: (split, number) for split in splits for number, key in enumerate(split.keys())
        }
        missing = [key for key in wanted if key not in there]
        if missing:
            raise IjepaError(f"{data.folder} has no image {missing[0]!r} in {names}.")
        where = [there[key] for key in wanted]
    images = (Image.fromarray(decode_rgb(split.read_image(number))) for split, number in where)
    size, how = (side_px, side_px), Image.Resampling.BILINEAR
    return [np.asarray(ImageOps.fit(image, size, how)) for image in images]
