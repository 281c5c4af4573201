"""`ijepa extract`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.filesize import decimal

from ijepa.config import ExtractConfig, Runtime
from ijepa_cli.options import stage
from ijepa_cli.show import show, shown_progress
from ijepa_cli.summary import (
    about,
    counted,
    headline,
    images_of,
    next_command,
    other_split,
    renamed,
    retyped,
)

if TYPE_CHECKING:
    from ijepa.extract import ExtractResult

Data = Annotated[Path, typer.Option(help="Shard set made by `ijepa shard`.")]
Out = Annotated[Path, typer.Option(help="Feature file to write, such as val.h5.")]


def register(app: typer.Typer) -> None:
    """Add the command."""
    shown = "encoder split which checkpoint layers tokens image_px crop views augment"
    stage(app, ExtractConfig, shown, "device workers")(extract)


def extract(data: Data, out: Out, config: ExtractConfig, runtime: Runtime, as_json: bool) -> None:
    """Store frozen features of every image of a split.

    Example: ijepa extract --encoder runs/scenes --data shards/scenes --split val --out val.h5
    """
    from ijepa.data.shards import open_shards
    from ijepa.extract import extract as run

    config = config.model_copy(update={"split": open_shards(data).named_split(config.split)})
    where = images_of(data, config.split)
    runtime = about(
        runtime, f"extract: {config.encoder} on {where}, last {counted(config.layers, 'layer')}"
    )
    with shown_progress() as progress:
        result = run(data, out, config, runtime, progress)
    show(result, as_json, None if as_json else _summary(result, data, config, runtime.command))


def _summary(result: "ExtractResult", data: Path, config: ExtractConfig, command: str) -> str:
    """What is in the file, and what to type next."""
    views = f" in {result.views} views" if result.views > 1 else ""
    layers = counted(result.layers, "layer")
    numbers = f"{result.images:,} images{views}, {layers} of {result.dim:,} numbers"
    if result.tokens:
        numbers += ", {} x {} patch tokens of {:,}".format(*result.tokens)
    if result.dense:
        numbers += f", dense labels {', '.join(result.dense)}"
    labels = f"labels {', '.join(result.labels) or 'none'}"
    words = f"{result.encoder}, {numbers}, {labels}, {decimal(result.out.stat().st_size)}"
    return "\n".join([headline("extracted", result.out, result.cached, words),
                      _next(result, data, config.split, command)])  # fmt: skip


def _next(result: "ExtractResult", data: Path, split: str, command: str) -> str:
    """The same for the other split; a probe if that is there; a map where there is no other."""
    out, labels = result.out, result.labels
    label = "class" if "class" in labels else labels[0] if labels else None
    named = ("--label", label) if label else ("--set", "label=null")
    other = other_split(data, split)
    if other is None or label is None:
        page = out.with_suffix(".html")
        return next_command("visualize", "embedding", "--features", out, *named, "--out", page)
    bare = out.with_name(out.stem.removesuffix(f"-{split}") + out.suffix)  # names no split
    beside = bare if bare != out and bare.exists() else renamed(out, split, other)
    if not beside.exists():
        return next_command(*retyped(command, split=other, out=beside))
    train, test = (beside, out) if other == "train" else (out, beside)
    scores = renamed(out, split, "logistic").with_suffix(".json")
    files = ("--train", train, "--test", test, *(named if label != "class" else ()))
    return next_command("probe", "logistic", *files, "--out", scores)
