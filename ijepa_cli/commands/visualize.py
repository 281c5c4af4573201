"""`ijepa visualize`."""

from pathlib import Path
from typing import Annotated

import typer

from ijepa.recipes import load_recipe
from ijepa_cli.commands.predictions import predictions
from ijepa_cli.console import Force, Json, runtime, show, shown_progress, table

Recipe = Annotated[str, typer.Option(help="A name from `ijepa recipes`, or a YAML file.")]
Data = Annotated[Path | None, typer.Option(help="Shard set to take images from; else plain.")]
Out = Annotated[Path, typer.Option(help="Picture to make, a PNG.")]
Set = Annotated[list[str] | None, typer.Option("--set", help="Override, as a.b=c; repeatable.")]
Images = Annotated[int, typer.Option(help="How many images to draw.", min=1, max=64)]
Batches = Annotated[int, typer.Option(help="Batches over which to take ratios.", min=1)]

pictures = typer.Typer(
    no_args_is_help=True,
    help="""Draw what the method does.

    Example: ijepa visualize masks --recipe scenes-mini --data shards/scenes --out masks.png
    """,
)


@pictures.command()
def masks(
    recipe: Recipe,
    out: Out,
    data: Data = None,
    overrides: Set = None,
    images: Images = 4,
    batches: Batches = 100,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Draw a recipe's context and target blocks, and how often each patch is seen.

    Example: ijepa visualize masks --recipe in1k_vith14_ep300 --out masks.png
    """
    config = load_recipe(recipe, overrides or ())
    from ijepa.visualize import MaskSheetConfig, visualize_masks

    choices = MaskSheetConfig(recipe=config, num_images=images, num_batches=batches)
    with shown_progress() as progress:
        figures = visualize_masks(out, choices, data, runtime("cpu", 0, force), progress)
    show(figures, as_json, table(figures, "cached" if figures.cached else "drawn"))


pictures.command(name="predictions")(predictions)


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.add_typer(pictures, name="visualize")
