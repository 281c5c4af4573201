"""Nearest images in feature files."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
from pydantic import Field

from ijepa.config import RUNTIME, Config, Runtime, StrPath
from ijepa.config.values import Seed
from ijepa.data.shards import ShardSet
from ijepa.errors import IjepaError
from ijepa.features.store import Features, open_features
from ijepa.progress import Progress, silent
from ijepa.stage import StagePlan
from ijepa.visualize.images import Picture, cached_picture, check_format, drawing, publish_sheet
from ijepa.visualize.stored import (
    UNLABELLED,
    Ints,
    Stored,
    open_images,
    stored_images,
    thumbnails,
)

if TYPE_CHECKING:
    from ijepa.figures.nearest import Nearest
    from ijepa.figures.neighbour_sheet import Shown

VERSION = 1
ROWS_AT_ONCE = 16_384
THUMBNAIL_PX = 112


class NeighborsConfig(Config):
    """Neighbours of which images, and how many.

    Attributes:
        keys: of the queries; if empty, `num_queries` drawn by the seed.
        num_queries: how many to draw.
        neighbors: of each query.
        label: by whose classes images are named; None names them by their keys.
        layer: a stored one, counted as in a list: -1 is the last.
        seed: of the draw.
    """

    keys: tuple[str, ...] = ()
    num_queries: Annotated[int, Field(ge=1)] = 6
    neighbors: Annotated[int, Field(ge=1)] = 8
    label: str | None = "class"
    layer: int = -1
    seed: Seed = 0


def visualize_neighbors(
    features: Sequence[StrPath],
    out: StrPath,
    config: NeighborsConfig,
    shards: StrPath | None = None,
    runtime: Runtime = RUNTIME,
    progress: Progress = silent,
) -> Picture:
    """Draw the nearest images of some queries by cosine, never the query itself.

    Args:
        features: files of `ijepa extract` of the same images, one section each.
        out: the PNG or SVG to make.
        config: which queries, how many neighbours.
        shards: where the images come from; None shows no thumbnails.
        runtime: `force` makes it again.
        progress: hears of rows searched.

    Raises:
        IjepaError: a file that is not whole, no such label, layer or key, or another shard set.
    """
    out = Path(out)
    files = [Path(path) for path in features]
    shards = Path(shards) if shards is not None else None
    check_format(out)
    if not files:
        raise IjepaError("Name a feature file of `ijepa extract`.")
    stores = [open_features(path, check_numbers=False) for path in files]
    inputs = {f"features {place}": store.header.fingerprint for place, store in enumerate(stores)}
    data = open_images(shards, stores[0].header, files[0]) if shards else None
    inputs |= {"data": data.fingerprint} if data else {}
    plan = StagePlan("visualize neighbors", VERSION, config, inputs, out)
    with drawing(plan, runtime) as work:
        if work.cached:
            return cached_picture(out)
        picture = Picture(
            out=out,
            cached=False,
            encoders=tuple(store.header.encoder for store in stores),
            images=0,
            figures={},
        )
        from ijepa.figures.neighbour_sheet import neighbour_sheet

        sections, figures, keys = [], {}, config.keys
        for number, store in enumerate(stores, start=1):
            stored = stored_images(store, config.label)
            queries = _queries(store, stored, config, keys)
            keys = keys or tuple(stored.keys[place] for place in queries)
            found = _nearest(store, stored, queries, config, progress)
            rows = _rows(store, stored, queries, found, data)
            sections.append((_title(store, config, len(stored.keys)), rows))
            if config.label:
                figures[f"of the query's class, {number}"] = _same_class(rows)
        picture = picture.model_copy(update={"images": len(keys), "figures": figures})
        publish_sheet(
            work, neighbour_sheet(sections, _captions(config, stores[0])), picture, runtime
        )
        return picture


def _queries(store: Features, stored: Stored, config: NeighborsConfig, keys: Sequence[str]) -> Ints:
    """Places in `stored`."""
    if not keys:
        if config.num_queries >= len(stored.keys):
            raise IjepaError(
                f"{store.path} holds {len(stored.keys)} images; ask for fewer queries."
            )
        rng = np.random.default_rng(config.seed)
        return np.sort(rng.choice(len(stored.keys), config.num_queries, replace=False))
    places = {key: place for place, key in enumerate(stored.keys)}
    missing = [key for key in keys if key not in places]
    if missing:
        raise IjepaError(
            f"{store.path} has no image {missing[0]!r}; its first is {stored.keys[0]!r}."
        )
    return np.array([places[key] for key in keys])


def _nearest(
    store: Features, stored: Stored, queries: Ints, config: NeighborsConfig, progress: Progress
) -> "Nearest":
    from ijepa.figures.nearest import Nearest

    _, layers, _ = store.shape
    if not -layers <= config.layer < layers:
        raise IjepaError(f"{store.path} holds {layers} layers; there is no layer {config.layer}.")
    depth = layers - config.layer % layers
    found = Nearest(store.read(stored.rows[queries], depth)[:, 0], config.neighbors, own=queries)
    for first in range(0, len(stored.rows), ROWS_AT_ONCE):
        rows = stored.rows[first : first + ROWS_AT_ONCE]
        found.add(store.read(rows, depth)[:, 0], first)
        progress("search images", first + len(rows), len(stored.rows))
    return found


def _rows(
    store: Features, stored: Stored, queries: Ints, found: "Nearest", data: ShardSet | None
) -> "list[list[Shown]]":
    from ijepa.figures.nearest import NONE
    from ijepa.figures.neighbour_sheet import Shown

    wanted = sorted({int(n) for n in (*queries, *found.numbers.ravel()) if n != NONE})
    pixels = dict.fromkeys(wanted)
    if data:
        cut = thumbnails(data, store.header, stored, wanted, THUMBNAIL_PX)
        pixels = dict(zip(wanted, cut, strict=True))
    names = stored.names or stored.keys
    rows = []
    for query, cosines, numbers in zip(queries, found.cosine, found.numbers, strict=True):
        row = [Shown(pixels[query], names[query])]
        for cosine, number in zip(cosines, numbers, strict=True):
            if number != NONE:
                pair = (names[number], names[query])
                is_known = stored.names and UNLABELLED not in pair
                same = pair[0] == pair[1] if is_known else None
                row.append(Shown(pixels[number], names[number], float(cosine), same))
        rows.append(row)
    return rows


def _same_class(rows: "list[list[Shown]]") -> float:
    """Share of the shown neighbours that have their query's class."""
    known = [shown.same for row in rows for shown in row[1:] if shown.same is not None]
    return float(np.mean(known)) if known else float("nan")


def _title(store: Features, config: NeighborsConfig, images: int) -> str:
    header = store.header
    block = header.layers[config.layer]
    return f"{header.encoder}: block {block}, {header.pooling}, {images:,} images"


def _captions(config: NeighborsConfig, store: Features) -> tuple[str, str]:
    chosen = "chosen by key" if config.keys else f"drawn with seed {config.seed}"
    header = store.header
    named = "its key and cosine"
    if config.label:
        named = f"its {config.label} and cosine; = and green: the query's {config.label}"
    return (
        f"Nearest images by cosine of features, below each {named}.",
        f"Data: {header.source}, split {header.split} ({header.data_fingerprint[:12]}), queries "
        f"{chosen}.",
    )
