"""`ijepa shard`: data set to shard set."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.filesize import decimal

from ijepa.config import Runtime, ShardConfig
from ijepa_cli.options import stage
from ijepa_cli.show import show, shown_progress

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
Source = Annotated[str, typer.Argument(help="A folder, an archive, a list, or kind:path.")]
Out = Annotated[
    Path | None, typer.Argument(help="The shard set to make, a folder; not with --check.")
]
Subset = Annotated[Path | None, typer.Option(help="Keys or file names to keep, one a line.")]
Check = Annotated[
    bool, typer.Option("--check", help="Make nothing: look for damage in the shard set SOURCE.")
]
RequireSplit = Annotated[
    list[str] | None,
    typer.Option(help="End with an error without this split (or `evaluation`); repeatable."),
]
RequireLabel = Annotated[
    list[str] | None,
    typer.Option(help="End with an error if a required split lacks this label; repeatable."),
]


def register(app: typer.Typer) -> None:
    """Add the command."""
    shown = "splits val_fraction resize_px shuffle max_bad"
    stage(app, ShardConfig, shown, "workers", epilog=EXAMPLES)(shard)


def shard(
    source: Source,
    config: ShardConfig,
    runtime: Runtime,
    as_json: bool,
    out: Out = None,
    subset: Subset = None,
    check: Check = False,
    require_split: RequireSplit = None,
    require_label: RequireLabel = None,
) -> None:
    """Write the images of SOURCE as WebDataset tars with an index for random access."""
    from ijepa.data.shards import check_shards, open_shards
    from ijepa.shard import shard as run

    if check:
        folder = Path(source) if out is None else out
        with shown_progress() as progress:
            found = check_shards(folder, progress)
        words = f"{found.samples:,} images, {decimal(found.bytes)}, whole and undamaged"
        show(found, as_json, f"{folder}: {words}")
        return
    if out is None:
        raise typer.BadParameter("name the shard set to make", param_hint="OUT")
    with shown_progress() as progress:
        result = run(source, out, config, runtime, progress, subset=subset)
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
