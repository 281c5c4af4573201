"""`ijepa visualize`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from ijepa import config as configs
from ijepa.config import PictureConfig, Runtime
from ijepa.recipes import load_recipe
from ijepa_cli.options import Data, Set, app, stage
from ijepa_cli.show import headline, next_command, show, shown_progress

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
# Settings, whose docstring is the help, and the fields that --help shows.
OF_IMAGES: dict[type[PictureConfig], str] = {
    configs.AttentionConfig: "encoder which split images keys layer query show_channels",
    configs.PcaConfig: "encoder which split images keys layer foreground show_channels",
    configs.RetrievalConfig: "encoder split images keys store_split store_images show_channels",
    configs.PredictionsConfig: "encoder decoder split images samples target_samples",
}
OF_FEATURES: dict[type[PictureConfig], str] = {
    configs.NeighborsConfig: "queries keys neighbors label layer show_channels",
    configs.EmbeddingConfig: "label method images layer show_channels",
}
pictures = typer.Typer(
    name="visualize",
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

    read = ", ".join(map(str, [*features, data] if data else features)) or "plain patches"
    runtime = runtime.model_copy(
        update={"about": f"visualize {_kind(type(config))}: {read} to {out}"}
    )
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


def _kind(settings: type[PictureConfig]) -> str:
    return settings.__name__.removesuffix("Config").lower()


for _kinds, _function, _run, _of in (
    (OF_IMAGES, of_images, "device", "--encoder runs/scenes"),
    (OF_FEATURES, of_features, "", "--features val.h5"),
):
    for _settings, _shown in _kinds.items():
        _name = _kind(_settings)
        _typed = f"{_name} {_of}{' --decoder runs/decoder' * ('decoder' in _shown.split())}"
        _example = f"Example: ijepa visualize {_typed} --data shards/scenes --out {_name}.png"
        _help = f"{_settings.__doc__}\n\n{_example}"
        stage(pictures, _settings, f"{_shown} dark", _run, name=_name, help=_help)(_function)
