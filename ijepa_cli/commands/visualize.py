"""`ijepa visualize`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from ijepa.config import Runtime, validated
from ijepa.recipes import load_recipe
from ijepa_cli.commands.predictions import predictions
from ijepa_cli.options import stage
from ijepa_cli.show import show, shown_progress, table

if TYPE_CHECKING:
    from ijepa.visualize import ImageChoice, Picture

Seed = Annotated[int, typer.Option(help="Seed of everything that is drawn at random.", min=0)]
Recipe = Annotated[str, typer.Option(help="A name from `ijepa recipes`, or a YAML file.")]
MaskData = Annotated[Path | None, typer.Option(help="Shard set to take images from; else plain.")]
Set = Annotated[list[str] | None, typer.Option("--set", help="Override, as a.b=c; repeatable.")]
Batches = Annotated[int, typer.Option(help="Batches over which to take ratios.", min=1)]

Encoders = Annotated[
    list[str],
    typer.Option("--encoder", help="As of `ijepa extract`; repeat it to see several side by side."),
]
Runs = Annotated[
    list[str],
    typer.Option("--encoder", help="Run folder, checkpoint or random:RUN; repeat for several."),
]
Which = Annotated[
    Literal["target", "context"], typer.Option(help="Which encoder of a run; the paper's: target.")
]
Data = Annotated[Path, typer.Option(help="Shard set of `ijepa shard`.")]
Thumbnails = Annotated[
    Path | None, typer.Option(help="Shard set that the features are of, to show its images.")
]
Split = Annotated[str, typer.Option(help="Which split of the shard set.")]
Out = Annotated[Path, typer.Option(help="Picture to make, a .png or .svg.")]
PngOut = Annotated[Path, typer.Option(help="Picture to make, a PNG.")]
PageOut = Annotated[Path, typer.Option(help="An .html page, or a still .png or .svg.")]
Images = Annotated[int, typer.Option(help="How many images to draw.", min=1, max=64)]
Keys = Annotated[str | None, typer.Option(help="These images instead, by key: K,K,...")]
Layer = Annotated[int, typer.Option(help="Number of the block; -1 is the last.")]
Layers = Annotated[
    list[int] | None, typer.Option("--layer", help="Number of a block; repeatable. -1: the last.")
]
StoredLayer = Annotated[int, typer.Option(help="A stored layer; -1 is the last.")]
Queries = Annotated[
    list[str] | None,
    typer.Option("--query", help="center, mean, class, or ROW,COL; repeatable. Center and mean."),
]
Rollout = Annotated[bool, typer.Option(help="Also attention rolled out through all blocks below.")]
Batch = Annotated[int, typer.Option(help="Images that the components are fitted on.", min=1)]
Foreground = Annotated[
    float | None,
    typer.Option(help="Colour only patches above it on the first component, 0 to 1; try 0.5."),
]
FeatureFiles = Annotated[
    list[Path], typer.Option("--features", help="Of `ijepa extract`; repeat for side by side.")
]
FeatureFile = Annotated[Path, typer.Option(help="Feature file of `ijepa extract`.")]
NumQueries = Annotated[int, typer.Option("--queries", help="How many queries.", min=1, max=64)]
Neighbors = Annotated[int, typer.Option(help="How many neighbours of each.", min=1, max=32)]
Label = Annotated[str, typer.Option(help="By whose classes images are named or coloured.")]
NoLabel = Annotated[bool, typer.Option("--no-label", help="The features have no label.")]
StoreSplit = Annotated[str, typer.Option(help="Split that real patches are taken from.")]
StoreImages = Annotated[int, typer.Option(help="Images whose patches may be retrieved.", min=1)]
Measured = Annotated[int, typer.Option(help="Images over which errors are taken.", min=1)]
Method = Annotated[Literal["tsne", "pca"], typer.Option(help="How features come to a plane.")]
Points = Annotated[int, typer.Option("--images", help="At most so many images.", min=3)]
Perplexity = Annotated[float, typer.Option(help="Of t-SNE: how many neighbours count.", min=1)]

pictures = typer.Typer(
    no_args_is_help=True,
    help="""Draw what the method does: its masks, what encoders see, what is predicted.

    Example: ijepa visualize masks --recipe scenes-mini --data shards/scenes --out masks.png
    """,
)


@stage(pictures)
def masks(
    runtime: Runtime,
    as_json: bool,
    recipe: Recipe,
    out: PngOut,
    data: MaskData = None,
    overrides: Set = None,
    images: Images = 4,
    batches: Batches = 100,
) -> None:
    """Draw a recipe's context and target blocks, and how often each patch is seen.

    Example: ijepa visualize masks --recipe in1k_vith14_ep300 --out masks.png
    """
    config = load_recipe(recipe, overrides or ())
    from ijepa.visualize import MaskSheetConfig, visualize_masks

    choices = MaskSheetConfig(recipe=config, num_images=images, num_batches=batches)
    with shown_progress() as progress:
        figures = visualize_masks(out, choices, data, runtime, progress)
    show(figures, as_json, table(figures, "cached" if figures.cached else "drawn"))


@stage(pictures, run="device")
def attention(
    runtime: Runtime,
    as_json: bool,
    encoder: Encoders,
    data: Data,
    out: Out,
    split: Split = "val",
    which: Which = "target",
    images: Images = 4,
    keys: Keys = None,
    layer: Layer = -1,
    query: Queries = None,
    rollout: Rollout = True,
    seed: Seed = 0,
) -> None:
    """Draw what a patch attends to, head by head, and rolled out to the input.

    Example: ijepa visualize attention --encoder runs/scenes --data shards/scenes --out seen.png
    """
    from ijepa.visualize import AttentionConfig, visualize_attention

    choices = {
        "encoder": {"encoders": tuple(encoder), "which": which},
        "images": _images(split, images, keys, seed),
        "layer": layer,
        "rollout": rollout,
    }
    choices |= {"queries": tuple(query)} if query else {}
    config = validated(AttentionConfig, choices, "options")
    with shown_progress() as progress:
        picture = visualize_attention(data, out, config, runtime, progress)
    _show(picture, as_json)


@stage(pictures, run="device")
def pca(
    runtime: Runtime,
    as_json: bool,
    encoder: Encoders,
    data: Data,
    out: Out,
    split: Split = "val",
    which: Which = "target",
    images: Images = 6,
    keys: Keys = None,
    batch: Batch = 64,
    layer: Layers = None,
    foreground: Foreground = None,
    seed: Seed = 0,
) -> None:
    """Draw patch tokens as colours: their first three principal components over many images.

    Example: ijepa visualize pca --encoder runs/scenes --data shards/scenes --out pca.png
    """
    from ijepa.visualize import PcaConfig, visualize_pca

    choices = {
        "encoder": {"encoders": tuple(encoder), "which": which},
        "images": _images(split, images, keys, seed),
        "batch": batch,
        "layers": tuple(layer or (-1,)),
        "foreground": foreground,
    }
    config = validated(PcaConfig, choices, "options")
    with shown_progress() as progress:
        picture = visualize_pca(data, out, config, runtime, progress)
    _show(picture, as_json)


@stage(pictures)
def neighbors(
    runtime: Runtime,
    as_json: bool,
    features: FeatureFiles,
    out: Out,
    data: Thumbnails = None,
    queries: NumQueries = 6,
    keys: Keys = None,
    neighbors: Neighbors = 8,
    label: Label = "class",
    no_label: NoLabel = False,
    layer: StoredLayer = -1,
    seed: Seed = 0,
) -> None:
    """Draw the images whose features are nearest to those of some queries.

    Example: ijepa visualize neighbors --features val.h5 --data shards/scenes --out neighbors.png
    """
    from ijepa.visualize import NeighborsConfig, visualize_neighbors

    choices = {
        "keys": _keys(keys),
        "num_queries": queries,
        "neighbors": neighbors,
        "label": None if no_label else label,
        "layer": layer,
        "seed": seed,
    }
    config = validated(NeighborsConfig, choices, "options")
    with shown_progress() as progress:
        picture = visualize_neighbors(features, out, config, data, runtime, progress)
    _show(picture, as_json)


@stage(pictures, run="device")
def retrieval(
    runtime: Runtime,
    as_json: bool,
    encoder: Runs,
    data: Data,
    out: Out,
    split: Split = "val",
    images: Images = 6,
    keys: Keys = None,
    store_split: StoreSplit = "train",
    store_images: StoreImages = 512,
    measured: Measured = 128,
    seed: Seed = 0,
) -> None:
    """Draw what is predicted for a hidden block by the real patches nearest to it: no training.

    Example: ijepa visualize retrieval --encoder runs/scenes --data shards/scenes --out found.png
    """
    from ijepa.visualize import RetrievalConfig, visualize_retrieval

    choices = {
        "encoder": {"encoders": tuple(encoder)},
        "images": _images(split, images, keys, seed),
        "measured": measured,
        "store_split": store_split,
        "store_images": store_images,
    }
    config = validated(RetrievalConfig, choices, "options")
    with shown_progress() as progress:
        picture = visualize_retrieval(data, out, config, runtime, progress)
    _show(picture, as_json)


@stage(pictures)
def embedding(
    runtime: Runtime,
    as_json: bool,
    features: FeatureFile,
    out: PageOut,
    data: Thumbnails = None,
    label: Label = "class",
    no_label: NoLabel = False,
    method: Method = "tsne",
    perplexity: Perplexity = 30.0,
    images: Points = 2000,
    layer: StoredLayer = -1,
    seed: Seed = 0,
) -> None:
    """Draw features on a map, coloured by label: a page to point at, or a still picture.

    Example: ijepa visualize embedding --features val.h5 --data shards/scenes --out embedding.html
    """
    from ijepa.visualize import EmbeddingConfig, visualize_embedding

    choices = {
        "label": None if no_label else label,
        "method": method,
        "layer": layer,
        "num_images": images,
        "perplexity": perplexity,
        "seed": seed,
    }
    config = validated(EmbeddingConfig, choices, "options")
    with shown_progress() as progress:
        picture = visualize_embedding(features, out, config, data, runtime, progress)
    _show(picture, as_json)


def _images(split: str, count: int, keys: str | None, seed: int) -> "ImageChoice":
    from ijepa.visualize import ImageChoice

    return ImageChoice(split=split, keys=_keys(keys), num_images=count, seed=seed)


def _keys(text: str | None) -> tuple[str, ...]:
    return tuple(key.strip() for key in text.split(",")) if text else ()


def _show(picture: "Picture", as_json: bool) -> None:
    state = "cached" if picture.cached else "drawn"
    lines = [f"{picture.out} {state}: {', '.join(picture.encoders)}; {picture.images:,} images"]
    lines += [f"  {name}: {value:.4g}" for name, value in picture.figures.items()]
    show(picture, as_json, "\n".join(lines))


stage(pictures, run="device")(predictions)


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.add_typer(pictures, name="visualize")
