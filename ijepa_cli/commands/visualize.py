"""`ijepa visualize`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from ijepa import config as configs
from ijepa.config import PictureConfig, Runtime
from ijepa.recipes import load_recipe
from ijepa_cli.options import Data, PlainGroup, Set, stage
from ijepa_cli.show import show, shown_progress
from ijepa_cli.summary import headline, next_command

Recipe = Annotated[str, typer.Option(help="A name from `ijepa recipes`, or a YAML file.")]
MaskData = Annotated[
    Path | None, typer.Option(help="Shard set of the images to draw on. Default: plain grey.")
]
Thumbnails = Annotated[
    Path | None, typer.Option(help="Shard set of the features, to show its images.")
]
Features = Annotated[
    list[Path], typer.Option(help="Feature file of `ijepa extract`; neighbors takes several.")
]
Out = Annotated[
    Path, typer.Option(help="Picture to write: .png or .svg; for embedding also .html.")
]
Kinds = dict[str, tuple[type[PictureConfig], str, str, str]]

# Settings, the fields that --help shows, what is drawn, and what the example starts from.
OF_IMAGES: Kinds = {
    "attention": (
        configs.AttentionConfig,
        "encoder which split images keys layer query rollout show_channels dark",
        "Draw which patches attend to which, for each head and rolled out to the input.",
        "--encoder runs/scenes",
    ),
    "pca": (
        configs.PcaConfig,
        "encoder which split images keys layer foreground show_channels dark",
        "Draw patch tokens as colours: their first three principal components.",
        "--encoder runs/scenes",
    ),
    "retrieval": (
        configs.RetrievalConfig,
        "encoder split images keys store_split store_images show_channels dark",
        "Draw predictions of hidden blocks as the most similar real patches; needs no decoder.",
        "--encoder runs/scenes",
    ),
    "predictions": (
        configs.PredictionsConfig,
        "encoder decoder split images samples target_samples dark",
        "Draw decoded samples of predictions: what they share is predicted, what varies is not.",
        "--encoder runs/scenes --decoder runs/decoder",
    ),
}
OF_FEATURES: Kinds = {
    "neighbors": (
        configs.NeighborsConfig,
        "queries keys neighbors label layer show_channels dark",
        "Draw the nearest neighbours of some images by their features.",
        "--features val.h5",
    ),
    "embedding": (
        configs.EmbeddingConfig,
        "label method perplexity images layer show_channels dark",
        "Draw features as a map coloured by label: an interactive page or a still picture.",
        "--features val.h5",
    ),
}


app = typer.Typer()
pictures = typer.Typer(
    name="visualize",
    cls=PlainGroup,
    no_args_is_help=True,
    help="""Draw masks, attention, features, neighbours and predictions.

    Example: ijepa visualize masks --recipe scenes-mini --data shards/scenes --out masks.png
    """,
)
app.add_typer(pictures)


@stage(pictures, configs.MasksConfig, "images batches show_channels dark")
def masks(
    config: configs.MasksConfig,
    runtime: Runtime,
    as_json: bool,
    recipe: Recipe,
    out: Out,
    data: MaskData = None,
    overrides: Set = None,
) -> None:
    """Draw the context and target blocks of a recipe, and how often each patch is in them.

    Example: ijepa visualize masks --recipe in1k_vith14_ep300 --out masks.png
    """
    config = config.model_copy(update={"recipe": load_recipe(recipe, overrides or ())})
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

    kind = type(config).__name__.removesuffix("Config").lower()
    read = ", ".join(map(str, [*features, data] if data else features)) or "plain patches"
    runtime = runtime.model_copy(update={"about": f"visualize {kind}: {read} to {out}"})
    with shown_progress() as progress:
        picture = visualize(out, config, data, features, runtime, progress)
    words = ", ".join([*picture.encoders, f"{picture.images:,} images"])
    lines = [headline("drawn", picture.out, picture.cached, words)]
    for name, value in picture.figures.items():
        shown = f"{value:.4g}" if isinstance(value, float) else value
        lines.append(f"  {name.replace('_', ' ')}: {shown}")
    page = out.with_name(f"{out.stem}-report.html")
    lines += [next_command("report", out, "--out", page)]
    show(picture, as_json, "\n".join(lines))


for _kinds, _function, _run in ((OF_IMAGES, of_images, "device"), (OF_FEATURES, of_features, "")):
    for _name, (_settings, _shown, _words, _of) in _kinds.items():
        _example = f"ijepa visualize {_name} {_of} --data shards/scenes --out {_name}.png"
        _help = f"{_words}\n\nExample: {_example}"
        stage(pictures, _settings, _shown, _run, name=_name, help=_help)(_function)
