"""`ijepa visualize`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from ijepa.config import (
    AttentionConfig,
    EmbeddingConfig,
    MasksConfig,
    NeighborsConfig,
    PcaConfig,
    PictureConfig,
    PredictionsConfig,
    RetrievalConfig,
    Runtime,
    validated,
)
from ijepa.recipes import load_recipe
from ijepa_cli.options import Set, stage
from ijepa_cli.show import show, shown_progress

Recipe = Annotated[str, typer.Option(help="A name from `ijepa recipes`, or a YAML file.")]
MaskData = Annotated[Path | None, typer.Option(help="Shard set to take images from; else plain.")]
Rows = Annotated[int, typer.Option(help="How many images to draw.", min=1, max=64)]
Batches = Annotated[int, typer.Option(help="Batches over which to count patches.", min=1)]
Dark = Annotated[bool, typer.Option("--dark", help="Draw on a dark ground.")]
Data = Annotated[Path, typer.Option(help="Shard set of `ijepa shard`.")]
Thumbnails = Annotated[
    Path | None, typer.Option(help="Shard set that the features are of, to show its images.")
]
Features = Annotated[
    list[Path], typer.Option(help="Of `ijepa extract`; repeat for several side by side.")
]
FeatureFile = Annotated[Path, typer.Option(help="Feature file of `ijepa extract`.")]
Out = Annotated[Path, typer.Option(help="Picture to make, a .png or .svg.")]
PageOut = Annotated[Path, typer.Option(help="An .html page, or a still .png or .svg.")]

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
    out: Out,
    data: MaskData = None,
    images: Rows = 4,
    batches: Batches = 100,
    dark: Dark = False,
    overrides: Set = None,
) -> None:
    """Draw a recipe's context and target blocks, and how often each patch is seen.

    Example: ijepa visualize masks --recipe in1k_vith14_ep300 --out masks.png
    """
    given = {"recipe": load_recipe(recipe, overrides or ()), "images": images}
    config = validated(MasksConfig, given | {"batches": batches, "dark": dark}, "options")
    _draw(out, config, data, (), runtime, as_json)


@stage(
    pictures, AttentionConfig, "encoder which split images keys layer query rollout dark", "device"
)
def attention(
    data: Data, out: Out, config: AttentionConfig, runtime: Runtime, as_json: bool
) -> None:
    """Draw what a patch attends to, head by head, and rolled out to the input.

    Example: ijepa visualize attention --encoder runs/scenes --data shards/scenes --out seen.png
    """
    _draw(out, config, data, (), runtime, as_json)


@stage(pictures, PcaConfig, "encoder which split images keys layer foreground dark", "device")
def pca(data: Data, out: Out, config: PcaConfig, runtime: Runtime, as_json: bool) -> None:
    """Draw patch tokens as colours: their first three principal components over many images.

    Example: ijepa visualize pca --encoder runs/scenes --data shards/scenes --out pca.png
    """
    _draw(out, config, data, (), runtime, as_json)


@stage(pictures, NeighborsConfig, "queries keys neighbors label layer dark")
def neighbors(
    features: Features,
    out: Out,
    config: NeighborsConfig,
    runtime: Runtime,
    as_json: bool,
    data: Thumbnails = None,
) -> None:
    """Draw the images whose features are nearest to those of some queries.

    Example: ijepa visualize neighbors --features val.h5 --data shards/scenes --out neighbors.png
    """
    _draw(out, config, data, features, runtime, as_json)


@stage(
    pictures, RetrievalConfig, "encoder split images keys store_split store_images dark", "device"
)
def retrieval(
    data: Data, out: Out, config: RetrievalConfig, runtime: Runtime, as_json: bool
) -> None:
    """Draw what is predicted for a hidden block by the real patches nearest to it: no training.

    Example: ijepa visualize retrieval --encoder runs/scenes --data shards/scenes --out found.png
    """
    _draw(out, config, data, (), runtime, as_json)


@stage(pictures, EmbeddingConfig, "label method perplexity images layer dark")
def embedding(
    features: FeatureFile,
    out: PageOut,
    config: EmbeddingConfig,
    runtime: Runtime,
    as_json: bool,
    data: Thumbnails = None,
) -> None:
    """Draw features on a map, coloured by label: a page to point at, or a still picture.

    Example: ijepa visualize embedding --features val.h5 --data shards/scenes --out embedding.html
    """
    _draw(out, config, data, [features], runtime, as_json)


@stage(
    pictures,
    PredictionsConfig,
    "encoder decoder split images samples target_samples dark",
    "device",
)
def predictions(
    data: Data, out: Out, config: PredictionsConfig, runtime: Runtime, as_json: bool
) -> None:
    """Draw decoded samples of predictions: what stays is predicted, what varies is not.

    Example: ijepa visualize predictions --encoder runs/a --decoder runs/d --data s --out p.png
    """
    _draw(out, config, data, (), runtime, as_json)


def _draw(
    out: Path,
    config: PictureConfig,
    data: Path | None,
    features: Sequence[Path],
    runtime: Runtime,
    as_json: bool,
) -> None:
    from ijepa.visualize import visualize

    with shown_progress() as progress:
        picture = visualize(out, config, data, features, runtime, progress)
    of = "".join(f" {name};" for name in picture.encoders)
    state = "cached" if picture.cached else "drawn"
    lines = [f"{picture.out} {state}:{of} {picture.images:,} images"]
    for name, value in picture.figures.items():
        shown = f"{value:.4g}" if isinstance(value, float) else value
        lines.append(f"  {name.replace('_', ' ')}: {shown}")
    show(picture, as_json, "\n".join(lines))


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.add_typer(pictures, name="visualize")
