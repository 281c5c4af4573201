"""`ijepa finetune`."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from ijepa_cli.console import (
    CHECKPOINT_MINUTES,
    CheckpointMinutes,
    Device,
    Force,
    Json,
    Replace,
    Seed,
    Workers,
    runtime,
    show,
    shown_progress,
    table,
)
from ijepa_cli.score_table import score_table

EncoderName = Annotated[
    str, typer.Option(help="Run, checkpoint, published file, random:ARCH, mae:FILE, timm:NAME, ...")
]
Data = Annotated[Path, typer.Option(help="Shard set of `ijepa shard`.")]
Out = Annotated[Path, typer.Option(help="Folder to make.")]
Protocol = Annotated[
    str, typer.Option(help="imagenet-1pct, imagenet-1pct-huge (ViT-H) or imagenet-full.")
]
Subset = Annotated[
    str, typer.Option(help="1%, 10%, 5-per-class, or a list of images, one file name a line.")
]
Which = Annotated[
    Literal["target", "context"], typer.Option(help="Which encoder of a run; the paper's: target.")
]
Label = Annotated[str, typer.Option(help="Which label, such as class.")]
Split = Annotated[str, typer.Option(help="On which split to train.")]
TestSplit = Annotated[
    str, typer.Option(help="Split to score on; evaluation: val, else test, else the other.")
]
ImageSize = Annotated[
    int | None, typer.Option(min=1, help="Side of the square, if not the encoder's.")
]
Set = Annotated[
    list[str] | None, typer.Option("--set", help="Override a setting, as epochs=10; repeatable.")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would run, and stop.")]


def finetune(
    encoder: EncoderName,
    data: Data,
    out: Out,
    protocol: Protocol = "imagenet-1pct",
    subset: Subset = "",
    overrides: Set = None,
    label: Label = "class",
    split: Split = "train",
    test_split: TestSplit = "evaluation",
    which: Which = "target",
    image_size: ImageSize = None,
    seed: Seed = 0,
    device: Device = "auto",
    workers: Workers = None,
    checkpoint_minutes: CheckpointMinutes = CHECKPOINT_MINUTES,
    dry_run: DryRun = False,
    force: Force = False,
    replace: Replace = False,
    as_json: Json = False,
) -> None:
    """Train an encoder and a classifier on labelled images; started again, it goes on.

    Example: ijepa finetune --encoder runs/mine --data shards/mine --subset 1% --out runs/mine-1pct
    """
    settings: dict[str, Any] = {
        "encoder": encoder,
        "which": which,
        "label": label,
        "split": split,
        "test_split": test_split,
        "image_px": image_size,
        "seed": seed,
    }
    listed = Path(subset) if subset and Path(subset).is_file() else None
    settings["subset"] = "" if listed else subset
    from ijepa.finetune import finetune as run
    from ijepa.finetune import finetune_config, plan_finetune

    config = finetune_config(protocol, settings, overrides or ())
    seconds = 60 * checkpoint_minutes
    how = runtime(device, workers, force, replace=replace, checkpoint_seconds=seconds)
    if dry_run:
        plan = plan_finetune(data, config, listed)
        show(plan, as_json, table(plan, "what would run"))
        return
    with shown_progress() as progress:
        outcome = run(data, out, config, how, progress, listed)
    show(outcome, as_json, score_table([outcome.scores], cached=outcome.cached))


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(finetune)
