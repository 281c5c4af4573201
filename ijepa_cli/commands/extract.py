"""`ijepa extract`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ijepa.config import ExtractConfig, Runtime
from ijepa_cli.options import stage
from ijepa_cli.show import show, shown_progress

if TYPE_CHECKING:
    from ijepa.extract import ExtractResult

Data = Annotated[Path, typer.Option(help="Shard set of `ijepa shard`.")]
Out = Annotated[Path, typer.Option(help="Feature file to make, F.h5.")]


def register(app: typer.Typer) -> None:
    """Add the command."""
    shown = "encoder split which layers image_px crop views augment"
    stage(app, ExtractConfig, shown, "device workers")(extract)


def extract(data: Data, out: Out, config: ExtractConfig, runtime: Runtime, as_json: bool) -> None:
    """Store frozen features of every image of a split.

    Example: ijepa extract --encoder runs/scenes --data shards/scenes --split val --out val.h5
    """
    from ijepa.extract import extract as run

    with shown_progress() as progress:
        result = run(data, out, config, runtime, progress)
    show(result, as_json, _sentence(result))


def _sentence(result: "ExtractResult") -> str:
    state, layers = "cached" if result.cached else "written", "s" if result.layers > 1 else ""
    return (
        f"{result.out} {state}: {result.encoder}, {result.images:,} images"
        f"{f' in {result.views} views' if result.views > 1 else ''}, {result.layers} "
        f"layer{layers} of {result.dim:,}, labels {', '.join(result.labels) or 'none'}"
    )
