"""`ijepa shard`: data set to shard set."""

from pathlib import Path
from typing import Annotated

import typer
from rich.filesize import decimal

from ijepa.config import Runtime, ShardConfig
from ijepa_cli.options import app, stage
from ijepa_cli.show import counted, headline, next_command, opened, show, shown_progress

EXAMPLES = """SOURCE is a folder of class folders, a flat folder, CLEVR's layout, a tar of any of
these, a .parquet file or a folder of them or of `datasets.save_to_disk`, a .csv, .tsv or .jsonl
list with a column `path`, or kind:path. Kinds are ade20k, cifar10, cifar100, clevr, imagenet,
imagenet22k, inat18, nyu, parquet, places205, places365, scenes, torchvision:NAME, voc, webdataset.

Examples:

  ijepa shard cifar10:FOLDER shards/cifar10

  ijepa shard clevr:CLEVR_v1.0 shards/clevr --split train --split val

  ijepa shard scenes:train=10000,val=6000 shards/scenes

  ijepa shard satellite shards/satellite --channels 8

  ijepa shard --check shards/scenes
"""
Source = Annotated[str, typer.Argument(help="A folder, an archive, a list of files, or kind:path.")]
Out = Annotated[Path | None, typer.Argument(help="Folder to write; not with --check.")]
Masks = Annotated[
    Path | None,
    typer.Option(help="A folder with a PNG of class numbers for each image, of the same name."),
]
Depth = Annotated[
    Path | None,
    typer.Option(help="A folder with a depth map for each image: a 16-bit PNG, or a .npy."),
]
Check = Annotated[bool, typer.Option("--check", help="Only check the shard set SOURCE for damage.")]
Names = list[str] | None
Split = Annotated[Names, typer.Option(help="Fail if this split is missing; repeatable.")]
Label = Annotated[
    Names, typer.Option(help="Fail if a required split has no such label; repeatable.")
]


SHOWN = "splits val_fraction resize_px channels shuffle member max_bad part merge"


@stage(app, ShardConfig, SHOWN, "workers", epilog=EXAMPLES)
def shard(
    source: Source,
    config: ShardConfig,
    runtime: Runtime,
    as_json: bool,
    out: Out = None,
    masks: Masks = None,
    depth: Depth = None,
    check: Check = False,
    require_split: Split = None,
    require_label: Label = None,
) -> None:
    """Write the images of SOURCE as a shard set: WebDataset tars with an index."""
    from ijepa import shard as library

    if check:
        with shown_progress() as progress:
            found = library.check_shards(source, progress)
        size = decimal(found.bytes)
        show(found, as_json, f"{source}: {found.samples:,} images, {size}, whole and undamaged")
        return
    if out is None:
        raise typer.BadParameter("name the shard set to make", param_hint="OUT")
    runtime = runtime.model_copy(update={"about": f"shard: {source} to {out}"})
    with shown_progress() as progress:
        maps = {name: folder for name, folder in (("seg", masks), ("depth", depth)) if folder}
        result = library.shard(source, out, config, runtime, progress, dense=maps)
    counts = ", ".join(f"{name} {samples:,}" for name, samples in result.splits.items())
    words = f"{counts} in {counted(result.shards, 'shard')}, {decimal(result.bytes)}"
    lines = [headline("written", result.out, result.cached, words)]
    changed = [f"changed: {number:,} {reason}" for reason, number in result.changes.items()]
    if config.part:
        lines += changed
        lines += ["when all parts are written, run the same command with --merge instead of --part"]
        show(result, as_json, "\n".join(lines))
        return
    for label, facts in result.labels.items():
        names = f"{facts.first} ... {facts.last}" if facts.classes > 1 else facts.first
        where = "" if facts.splits == tuple(result.splits) else f" ({', '.join(facts.splits)} only)"
        lines.append(f"label {label}: {facts.classes:,} classes, {names}{where}")
    for name, kind in result.dense.items():
        what = f"{len(kind.names):,} classes" if kind.names else f"depth in {kind.unit}"
        lines.append(f"dense label {name}: {what}")
    lines += ["no labels"] if not result.labels else []
    if pixels := result.pixels:
        mean, std = (" ".join(f"{one:.3g}" for one in each) for each in (pixels.mean, pixels.std))
        stored = f"pixels: {counted(pixels.channels, 'channel')} of {pixels.dtype}"
        lines.append(f"{stored}, mean {mean}, std {std} over {pixels.images:,} images")
    lines += [f"left out: {number:,} {reason}" for reason, number in result.left_out.items()]
    run_folder = Path("runs") / result.out.name
    lines += [*changed, next_command("pretrain", "--data", result.out, "--out", run_folder)]
    show(result, as_json, "\n".join(lines))
    everywhere = list(result.splits) if require_label else []
    opened(out).require(require_split or everywhere, require_label or ())
