"""A feature file on a plane."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
from pydantic import Field

from ijepa.config import RUNTIME, Config, Runtime, StrPath
from ijepa.config.values import Seed
from ijepa.data.shards import ShardSet
from ijepa.errors import IjepaError
from ijepa.features.store import Features, open_features
from ijepa.files import write_bytes
from ijepa.progress import Progress, silent
from ijepa.stage import StagePlan
from ijepa.visualize.images import Picture, cached_picture, check_format, drawing, publish_picture
from ijepa.visualize.stored import Ints, Stored, open_images, stored_images, thumbnails

if TYPE_CHECKING:
    from ijepa.figures.nearest import Floats

VERSION = 1
THUMBNAIL_PX = 48
FORMATS = (".html", ".png", ".svg")


class EmbeddingConfig(Config):
    """Which images, and how they come to a plane.

    Attributes:
        label: by which points are coloured; None colours all alike.
        method: `tsne` keeps neighbours together; `pca` is the two directions of largest variance.
        layer: a stored one, counted as in a list: -1 is the last.
        num_images: at most so many, drawn by the seed.
        perplexity: of t-SNE: about how many neighbours count.
        seed: of the draw and of t-SNE.
    """

    label: str | None = "class"
    method: Literal["pca", "tsne"] = "tsne"
    layer: int = -1
    num_images: Annotated[int, Field(ge=3)] = 2000
    perplexity: Annotated[float, Field(ge=1)] = 30.0
    seed: Seed = 0


def visualize_embedding(
    features: StrPath,
    out: StrPath,
    config: EmbeddingConfig,
    shards: StrPath | None = None,
    runtime: Runtime = RUNTIME,
    progress: Progress = silent,
) -> Picture:
    """Draw a map of a feature file: an interactive page, or a PNG or SVG.

    Args:
        features: of `ijepa extract`.
        out: ends in .html for one self-contained page, in .png or .svg for a still picture.
        config: which images, which projection.
        shards: where the images come from; None shows no thumbnails.
        runtime: `force` makes it again.
        progress: told when the picture is done.

    Raises:
        IjepaError: a file that is not whole, no such label or layer, or another shard set.
    """
    features, out = Path(features), Path(out)
    shards = Path(shards) if shards is not None else None
    check_format(out, FORMATS)
    with open_features(features, check_numbers=False) as store:
        data = open_images(shards, store.header, features) if shards else None
        inputs = {"features": store.header.fingerprint}
        inputs |= {"data": data.fingerprint} if data else {}
        plan = StagePlan("visualize embedding", VERSION, config, inputs, out)
        with drawing(plan, runtime) as work:
            if work.cached:
                return cached_picture(out)
            content, shown = _draw(store, data, config, out.suffix)
            write_bytes(work.folder / out.name, content)
            picture = Picture(
                out=out, cached=False, encoders=(store.header.encoder,), images=shown, figures={}
            )
            publish_picture(work, picture, runtime)
            progress("draw map", 1, 1)
            return picture


def _draw(
    store: Features, data: ShardSet | None, config: EmbeddingConfig, suffix: str
) -> tuple[bytes, int]:
    """The file's bytes, and how many images are on it."""
    from ijepa.figures.embedding_page import embedding_page
    from ijepa.figures.embedding_sheet import embedding_sheet
    from ijepa.figures.projection import legend_of, project

    stored = stored_images(store, config.label)
    chosen = _choose(store, stored, config)
    places = project(
        _features(store, stored, chosen, config), config.method, config.perplexity, config.seed
    )
    legend = legend_of([stored.names[n] for n in chosen]) if stored.names else None
    cut = None
    if data:
        cut = thumbnails(data, store.header, stored, chosen.tolist(), THUMBNAIL_PX)
    captions = _captions(store, config, len(chosen), len(stored.keys))
    if suffix != ".html":
        sheet = embedding_sheet(places, legend, cut, captions)
        return sheet.encoded(suffix), len(chosen)
    keys = [stored.keys[n] for n in chosen]
    return embedding_page(places, keys, legend, cut, captions).encode(), len(chosen)


def _choose(store: Features, stored: Stored, config: EmbeddingConfig) -> Ints:
    """Places in `stored`, in a random order, so that no class always comes first."""
    if len(stored.keys) < 3:
        raise IjepaError(f"{store.path} holds {len(stored.keys)} images; a map needs three.")
    rng = np.random.default_rng(config.seed)
    return rng.permutation(len(stored.keys))[: config.num_images]


def _features(store: Features, stored: Stored, chosen: Ints, config: EmbeddingConfig) -> "Floats":
    _, layers, _ = store.shape
    if not -layers <= config.layer < layers:
        raise IjepaError(f"{store.path} holds {layers} layers; there is no layer {config.layer}.")
    depth = layers - config.layer % layers
    found: Floats = store.read(stored.rows[chosen], depth)[:, 0].astype(np.float32)
    return found


def _captions(store: Features, config: EmbeddingConfig, shown: int, there: int) -> tuple[str, ...]:
    header = store.header
    how = f"t-SNE, perplexity {config.perplexity:g}" if config.method == "tsne" else "PCA"
    return (
        f"{header.encoder}: block {header.layers[config.layer]}, {header.pooling}.",
        f"{how}, seed {config.seed}; {shown:,} of {there:,} images"
        + (f", coloured by {config.label}." if config.label else "."),
        f"Data: {header.source}, split {header.split} ({header.data_fingerprint[:12]}).",
    )
