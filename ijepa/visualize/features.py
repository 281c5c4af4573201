"""Images near to each other by their stored features: neighbours, and a map."""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps

from ijepa.arrays import Ints, Pixels
from ijepa.config import EmbeddingConfig, NeighborsConfig
from ijepa.data.decode import decode_image
from ijepa.errors import IjepaError
from ijepa.features.store import Features
from ijepa.figures.draw import sheet
from ijepa.figures.embedding import embedding_figure, embedding_page, most_perplexity, project
from ijepa.figures.neighbors import TILE_PX, nearest, neighbor_section
from ijepa.visualize import PAGE, Drawing, Given, places_of
from ijepa.visualize.images import shown

THUMBNAIL_PX = 112
UNLABELLED = "not labelled"  # of an image whose class is not known


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
    """The nearest images of some queries by cosine, never the query itself."""
    sections, figures, keys = [], {}, config.keys
    for number, store in enumerate(given.features, start=1):
        stored = _stored(store, config.label)
        count = len(stored.keys)
        if not keys:
            drawn = np.random.default_rng(config.seed).choice(count, config.queries, replace=False)
            keys = tuple(stored.keys[place] for place in np.sort(drawn))
        queries = np.array(places_of(keys, stored.keys, str(store.path)))
        vectors = store.numpy(config.layer)[stored.rows]
        cosine, found = nearest(vectors[queries], vectors, config.neighbors, queries)
        given.progress("search feature files", number, len(given.features))
        wanted = np.unique([*queries, *found.ravel()]).tolist()
        cut = _thumbnails(given, stored, wanted, THUMBNAIL_PX)
        section, share = neighbor_section(
            queries,
            cosine,
            found,
            stored.classes or stored.keys,
            [None if c == UNLABELLED else c for c in stored.classes or [UNLABELLED] * count],
            dict(zip(wanted, cut, strict=bool(cut))),
        )
        title = f"{stored.caption(config.layer)}, {count:,} images"
        sections.append(section._replace(title=title))
        if config.label:
            figures[f"of the query's class, {number}"] = share
    header = given.features[0].header
    named, chosen = "its key and cosine", f"drawn with seed {config.seed}"
    if config.label:
        named = f"its {config.label} and cosine; = and green: the query's {config.label}"
    captions = (
        f"Nearest images by cosine of features, below each {named}.",
        f"Data: {header.source}, split {header.split} ({header.data_fingerprint[:12]}), queries "
        f"{'chosen by key' if config.keys else chosen}. {given.note}".rstrip(),
    )
    names = [store.header.encoder for store in given.features]
    facts = {"encoders": names, "images": len(keys), "keys": keys, "figures": figures}
    return sheet(sections, captions, TILE_PX), facts


def draw_embedding(config: EmbeddingConfig, given: Given) -> Drawing:
    """A map of a feature file; a page or a still picture."""
    store = given.features[0]
    stored, header = _stored(store, config.label), store.header
    if len(stored.keys) < 3:
        raise IjepaError(f"{store.path} holds {len(stored.keys)} images; a map needs three.")
    # In random order, so that no class always lies on top.
    order = np.random.default_rng(config.seed).permutation(len(stored.keys))[: config.images]
    vectors = store.numpy(config.layer)[stored.rows[order]]
    perplexity = min(config.perplexity, most_perplexity(len(order)))
    places = project(vectors, config.method, perplexity, config.seed, given.progress)
    names = [stored.classes[n] if stored.classes else "all images" for n in order]
    cut = _thumbnails(given, stored, order.tolist(), THUMBNAIL_PX // 2)
    how = "PCA"
    if config.method == "tsne":
        fewer = f" ({len(order):,} images allow no more)" if perplexity < config.perplexity else ""
        how = f"t-SNE, perplexity {perplexity:.4g}{fewer}"
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


def _stored(store: Features, label: str | None) -> Stored:
    views, keys, labels = store.views, store.keys, store.labels
    rows = np.arange(len(keys)) if views is None else np.flatnonzero(views == 0)
    classes = None
    if label is not None:
        if label not in labels:
            raise IjepaError(
                f"{store.path} has no label {label!r}; its labels are: "
                f"{', '.join(labels) or 'none'}. Choose one with --label, or none with --set "
                f"label=null."
            )
        names, values = store.header.class_names.get(label), labels[label][rows].tolist()
        classes = [UNLABELLED if v < 0 else names[v] if names else str(v) for v in values]
    return Stored(store, rows, [keys[row] for row in rows], classes)


def _thumbnails(given: Given, stored: Stored, places: Sequence[int], side_px: int) -> list[Pixels]:
    """(side, side, 3) uint8 squares of some images, cut from their middle; none without `data`."""
    if (data := given.data) is None:
        return []
    splits = [data.split(name) for name in stored.store.header.split.split("+")]
    starts = np.cumsum([0, *map(len, splits)])
    there = list(itertools.chain.from_iterable(split.keys() for split in splits))
    cut = []
    for place in places_of([stored.keys[place] for place in places], there, str(data.folder)):
        which = int(np.searchsorted(starts, place, side="right")) - 1
        encoded = splits[which].read_image(place - int(starts[which]))
        image = Image.fromarray(shown(decode_image(encoded), given))
        how = Image.Resampling.BILINEAR
        cut.append(np.asarray(ImageOps.fit(image, (side_px, side_px), how)))
    return cut
