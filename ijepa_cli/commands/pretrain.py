"""`ijepa pretrain`."""

import logging
from pathlib import Path
from typing import Annotated

import typer

from ijepa.config import Runtime
from ijepa.recipes import load_recipe, recipe_note
from ijepa_cli.options import Set, stage
from ijepa_cli.show import outlook_shown, print_json, print_text, show, shown_progress, table
from ijepa_cli.slurm import GpusPerNode, Launcher, Minutes, Nodes, Slurm, submit

log = logging.getLogger(__name__)

Recipe = Annotated[str, typer.Option(help="A name from `ijepa recipes`, or a YAML file.")]
Data = Annotated[
    str,
    typer.Option(
        help="Shard set of `ijepa shard`: a folder, or an address (s3://, https://, ...)."
    ),
]
Out = Annotated[Path, typer.Option(help="Run folder to make.")]
Init = Annotated[
    Path | None,
    typer.Option(help="Start from these weights: a run, a checkpoint, a published file."),
]
Prolong = Annotated[
    Path | None,
    typer.Option(help="Go on with this finished run for more epochs; may be OUT itself."),
]


def register(app: typer.Typer) -> None:
    """Add the command."""
    memory = "micro_batch recompute compile parallel cache"
    stage(app, run=f"device workers checkpoint_seconds {memory} replace")(pretrain)


def pretrain(
    recipe: Recipe,
    data: Data,
    out: Out,
    runtime: Runtime,
    as_json: bool,
    overrides: Set = None,
    init: Init = None,
    prolong: Prolong = None,
    launcher: Launcher = "here",
    nodes: Nodes = 1,
    gpus_per_node: GpusPerNode = 1,
    minutes: Minutes = 3 * 24 * 60,
    slurm: Slurm = None,
) -> None:
    """Pretrain I-JEPA on a shard set; started again, it goes on where it stopped.

    Example: ijepa pretrain --recipe scenes-mini --data shards/scenes --out runs/scenes
    """
    config = load_recipe(recipe, overrides or ())
    if note := recipe_note(recipe, config):
        log.warning(note)  # now, and below the summary when all is done
    from ijepa.pretrain import plan_pretrain, started
    from ijepa.pretrain import pretrain as run

    cost = None
    if runtime.dry_run or launcher != "here":  # what cannot run is not submitted
        cost = plan_pretrain(data, started(config, init, prolong), runtime)
    if launcher != "here" and not runtime.dry_run:
        told = submit(out, launcher, nodes, gpus_per_node, minutes, slurm or ())
        print_json({"out": str(out), "job": told}) if as_json else print_text(told + "\n")
        return
    with outlook_shown(as_json, cost, note), shown_progress() as progress:
        result = run(data, out, config, runtime, progress, init=init, prolong=prolong)
        show(result, as_json, table(result, "cached" if result.cached else "pretrained", note=note))
