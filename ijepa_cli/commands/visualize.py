"""`ijepa visualize`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from ijepa import config as configs
from ijepa.config import PictureConfig, Runtime
from ijepa.recipes import load_recipe
from ijepa_cli.options import PlainGroup, Set, stage
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
    list[Path], typer.Option(help="Of `ijepa extract`; for neighbors, repeat it for several.")
]
Out = Annotated[Path, typer.Option(help="Picture to make: .png, .svg, or for embedding .html.")]
Kinds = dict[str, tuple[type[PictureConfig], str, str, str]]

# Settings, the fields that --help shows, what is drawn, and what the example starts from.
OF_IMAGES: Kinds = {
    "attention": (
        configs.AttentionConfig,
        "encoder which split images keys layer query rollout dark",
        "Draw what a patch attends to, head by head, and rolled out to the input.",
        "--encoder runs/scenes",
    ),
    "pca": (
        configs.PcaConfig,
        "encoder which split images keys layer foreground dark",
        "Draw patch tokens as colours: their first three principal components over many images.",
        "--encoder runs/scenes",
    ),
    "retrieval": (
        configs.RetrievalConfig,
        "encoder split images keys store_split store_images dark",
        "Draw what is predicted for a hidden block by the real patches nearest to it: no training.",
        "--encoder runs/scenes",
    ),
    "predictions": (
        configs.PredictionsConfig,
        "encoder decoder split images samples target_samples dark",
        "Draw decoded samples of predictions: what stays is predicted, what varies is not.",
        "--encoder runs/scenes --decoder runs/decoder",
    ),
}
OF_FEATURES: Kinds = {
    "neighbors": (
        configs.NeighborsConfig,
        "queries keys neighbors label layer dark",
        "Draw the images whose features are nearest to those of some queries.",
        "--features val.h5",
    ),
    "embedding": (
        configs.EmbeddingConfig,
        "label method perplexity images layer dark",
        "Draw features on a map, coloured by label: a page to point at, or a still picture.",
        "--features val.h5",
    ),
}


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
    given |= {"batches": batches, "dark": dark}
    config = configs.validated(configs.MasksConfig, given, "options")
    _draw(out, config, data, (), runtime, as_json)


def of_images(data: Data, out: Out, config: PictureConfig, runtime: Runtime, as_json: bool) -> None:
    """Draw what encoders make of the images of a split, see `OF_IMAGES`."""
    _draw(out, config, data, (), runtime, as_json)


def of_features(
    features: Features,
    out: Out,
    config: PictureConfig,
    runtime: Runtime,
    as_json: bool,
    data: Thumbnails = None,
) -> None:
    """Draw what lies near to each other in feature files, see `OF_FEATURES`."""
    _draw(out, config, data, features, runtime, as_json)


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
    start = "ijepa visualize"
    pictures = typer.Typer(
        cls=PlainGroup,
        no_args_is_help=True,
        help=f"""Draw what the method does: its masks, what encoders see, what is predicted.

        Example: {start} masks --recipe scenes-mini --data shards/scenes --out masks.png
        """,
    )
    stage(pictures)(masks)
    for kinds, function, run in ((OF_IMAGES, of_images, "device"), (OF_FEATURES, of_features, "")):
        for name, (settings, shown, words, of) in kinds.items():
            example = f"{start} {name} {of} --data shards/scenes --out {name}.png"
            words = f"{words}\n\nExample: {example}"
            stage(pictures, settings, shown, run, name=name, help=words)(function)
    app.add_typer(pictures, name="visualize")
