"""`ijepa pretrain`."""

import logging
from pathlib import Path
from typing import Annotated, Literal

import typer

from ijepa.recipes import load_recipe, recipe_note
from ijepa_cli.console import (
    CHECKPOINT_MINUTES,
    CheckpointMinutes,
    Device,
    Force,
    Json,
    Replace,
    Workers,
    print_json,
    print_text,
    runtime,
    show,
    shown_progress,
    table,
)
from ijepa_cli.launch import GpusPerNode, Launcher, Minutes, Nodes, Slurm, submit

log = logging.getLogger(__name__)

Recipe = Annotated[str, typer.Option(help="A name from `ijepa recipes`, or a YAML file.")]
Data = Annotated[
    str,
    typer.Option(
        help="Shard set of `ijepa shard`: a folder, or an address (s3://, https://, ...)."
    ),
]
Out = Annotated[Path, typer.Option(help="Run folder to make.")]
Set = Annotated[list[str] | None, typer.Option("--set", help="Override, as a.b=c; repeatable.")]
MicroBatch = Annotated[
    int | None,
    typer.Option(help="Images that a process computes at a time; fewer need less memory.", min=1),
]
Recompute = Annotated[
    bool,
    typer.Option("--recompute", help="Compute blocks twice, to need less memory."),
]
Compile = Annotated[
    bool,
    typer.Option("--compile", help="torch.compile the blocks: slow start, then faster on a GPU."),
]
Parallel = Annotated[
    Literal["ddp", "fsdp"],
    typer.Option(help="What several processes share: the batch; or the weights, too (ViT-g)."),
]
Cache = Annotated[
    Literal["none", "decoded"],
    typer.Option(help="decoded: all images in memory, cropped on the device; for small data."),
]
Init = Annotated[
    Path | None,
    typer.Option(help="Start from these weights: a run, a checkpoint, a published file."),
]
Prolong = Annotated[
    Path | None,
    typer.Option(help="Go on with this finished run for more epochs; may be OUT itself."),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would run, and stop.")]


def pretrain(
    recipe: Recipe,
    data: Data,
    out: Out,
    overrides: Set = None,
    init: Init = None,
    prolong: Prolong = None,
    device: Device = "auto",
    workers: Workers = None,
    checkpoint_minutes: CheckpointMinutes = CHECKPOINT_MINUTES,
    micro_batch: MicroBatch = None,
    recompute: Recompute = False,
    compile_: Compile = False,
    parallel: Parallel = "ddp",
    cache: Cache = "none",
    dry_run: DryRun = False,
    launcher: Launcher = "here",
    nodes: Nodes = 1,
    gpus_per_node: GpusPerNode = 1,
    minutes: Minutes = 3 * 24 * 60,
    slurm: Slurm = None,
    force: Force = False,
    replace: Replace = False,
    as_json: Json = False,
) -> None:
    """Pretrain I-JEPA on a shard set; started again, it goes on where it stopped.

    Example: ijepa pretrain --recipe scenes-mini --data shards/scenes --out runs/scenes
    """
    config = load_recipe(recipe, overrides or ())
    if note := recipe_note(recipe, config):
        log.warning(note)  # now, and below the summary when all is done
    from ijepa.pretrain import plan_pretrain, started
    from ijepa.pretrain import pretrain as run

    config = started(config, init, prolong)
    how = {
        "replace": replace,
        "checkpoint_seconds": 60 * checkpoint_minutes,
        "micro_batch": micro_batch,
        "recompute": recompute,
        "compile": compile_,
        "parallel": parallel,
        "cache": cache,
    }
    choices = runtime(device, workers, force, **how)
    if dry_run:
        plan = plan_pretrain(data, config, choices)
        show(plan, as_json, table(plan, f"{recipe}: what would run", note=note))
        return
    if launcher != "here":
        plan_pretrain(data, config, choices)  # what cannot run is not submitted
        told = submit(out, launcher, nodes, gpus_per_node, minutes, slurm or ())
        if as_json:
            print_json({"out": str(out), "job": told})
        else:
            print_text(told + "\n")
        return
    with shown_progress() as progress:
        result = run(data, out, config, choices, progress, init=init, prolong=prolong)
    title = "cached" if result.cached else "pretrained"
    show(result, as_json, table(result, title, note=note))


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(pretrain)
