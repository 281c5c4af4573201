"""`ijepa shard`: data set to shard set."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.filesize import decimal

from ijepa.config import CPU_WORKERS, MAX_PIXELS, ShardConfig, validated
from ijepa_cli.console import Force, Json, runtime, show, shown_progress

if TYPE_CHECKING:
    from ijepa.shard import ShardResult

EXAMPLES = """SOURCE is a folder of class folders, a flat folder, CLEVR's layout, a tar of any of
these, a .csv, .tsv or .jsonl list of images with a column `path`, or kind:path with one of the
kinds cifar10, cifar100, clevr, imagenet, imagenet22k, inat18, places205, places365, scenes,
torchvision:NAME, webdataset.

Examples:

  ijepa shard cifar10:cifar-10-python.tar.gz shards/cifar10

  ijepa shard clevr:CLEVR_v1.0 shards/clevr --split train --split val

  ijepa shard scenes:train=10000,val=6000 shards/scenes

  ijepa shard photos.csv shards/photos --resize 256

  ijepa shard --check shards/photos
"""


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(epilog=EXAMPLES)(shard)


def shard(
    source: Annotated[str, typer.Argument(help="A folder, an archive, a list, or kind:path.")],
    out: Annotated[
        Path | None, typer.Argument(help="The shard set to make, a folder; not with --check.")
    ] = None,
    split: Annotated[
        list[str] | None, typer.Option(help="Only this split; may be given again.")
    ] = None,
    val_fraction: Annotated[
        float, typer.Option(help="Of a source without splits, the share that becomes val.")
    ] = 0.0,
    resize: Annotated[
        int | None, typer.Option(help="Shrink the short side to this many pixels.")
    ] = None,
    shard_bytes: Annotated[int, typer.Option(help="Size at which a shard is closed.")] = 256
    * 2**20,
    shuffle: Annotated[
        bool, typer.Option("--shuffle", help="Mix classes within shards, for streaming.")
    ] = False,
    max_bad: Annotated[int, typer.Option(help="How many images may fail to decode.")] = 0,
    max_pixels: Annotated[
        int, typer.Option(help="Images whose header claims more pixels are not decoded.")
    ] = MAX_PIXELS,
    pixel_range: Annotated[
        tuple[float, float] | None,
        typer.Option(help="Values of 16-bit, 32-bit and float pixels that become black and white."),
    ] = None,
    exif: Annotated[
        Literal["ignore", "rotate"],
        typer.Option(help="rotate: turn images as their EXIF orientation says."),
    ] = "ignore",
    folders_are_classes: Annotated[
        bool,
        typer.Option("--folders-are-classes", help="Also folders called train, test and so on."),
    ] = False,
    subset: Annotated[
        Path | None, typer.Option(help="Keys or file names to keep, one a line.")
    ] = None,
    workers: Annotated[
        int, typer.Option(help="Processes that check and write images.", min=0)
    ] = CPU_WORKERS,
    check: Annotated[
        bool,
        typer.Option("--check", help="Make nothing: look for damage in the shard set SOURCE."),
    ] = False,
    require_split: Annotated[
        list[str] | None,
        typer.Option(help="End with an error without this split (or `evaluation`); repeatable."),
    ] = None,
    require_label: Annotated[
        list[str] | None,
        typer.Option(help="End with an error if a required split lacks this label; repeatable."),
    ] = None,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Write the images of SOURCE as WebDataset tars with an index for random access."""
    if check:
        _check(Path(source) if out is None else out, as_json)
        return
    if out is None:
        raise typer.BadParameter("name the shard set to make", param_hint="OUT")
    from ijepa.data.shards import open_shards
    from ijepa.shard import shard as run

    options = {
        "splits": split or (),
        "val_fraction": val_fraction,
        "resize_px": resize,
        "shard_bytes": shard_bytes,
        "shuffle": shuffle,
        "max_bad": max_bad,
        "max_pixels": max_pixels,
        "pixel_range": pixel_range,
        "exif": exif,
        "folders_are_classes": folders_are_classes,
    }
    config = validated(ShardConfig, options, "options")
    with shown_progress() as progress:
        result = run(source, out, config, runtime("cpu", workers, force), progress, subset=subset)
    show(result, as_json, _summary(result))
    open_shards(out).require(require_split or (), require_label or ())


def _summary(result: "ShardResult") -> str:
    """What was understood of the source, a line each."""
    counts = ", ".join(f"{name} {samples:,}" for name, samples in result.splits.items())
    shards = "shard" if result.shards == 1 else "shards"
    state = "cached" if result.cached else "written"
    lines = [f"{result.out} {state}: {counts} in {result.shards} {shards}, {decimal(result.bytes)}"]
    for label, facts in result.labels.items():
        names = f"{facts.first} ... {facts.last}" if facts.classes > 1 else facts.first
        where = "" if facts.splits == tuple(result.splits) else f" ({', '.join(facts.splits)} only)"
        lines.append(f"label {label}: {facts.classes:,} classes, {names}{where}")
    lines += ["no labels"] if not result.labels else []
    lines += [f"left out: {number:,} {reason}" for reason, number in result.left_out.items()]
    lines += [f"changed: {number:,} {reason}" for reason, number in result.changes.items()]
    return "\n".join(lines)


def _check(folder: Path, as_json: bool) -> None:
    from ijepa.data.shards import check_shards

    with shown_progress() as progress:
        found = check_shards(folder, progress)
    size = decimal(found.bytes)
    show(found, as_json, f"{folder}: {found.samples:,} images, {size}, whole and undamaged")
