"""`ijepa finetune`."""

from pathlib import Path
from typing import Annotated

import typer

from ijepa.config import FinetuneConfig, Runtime
from ijepa_cli.options import Data, app, stage
from ijepa_cli.show import (
    about,
    counted,
    headline,
    images_of,
    next_command,
    outlook_shown,
    result_tables,
    show,
    shown_progress,
)

Out = Annotated[Path, typer.Option(help="Folder to write.")]
Subset = Annotated[
    str,
    typer.Option(
        help="Training images: 1%, 10%, 5-per-class, or a file that lists images, one per line."
    ),
]
SHOWN = "encoder protocol label test_split freeze linear_first seed"


@stage(app, FinetuneConfig, SHOWN, "device workers checkpoint_seconds track replace")
def finetune(
    data: Data,
    out: Out,
    config: FinetuneConfig,
    runtime: Runtime,
    as_json: bool,
    subset: Subset = "",
) -> None:
    """Train an encoder and a classifier on labelled images; started again, it continues.

    Example: ijepa finetune --encoder runs/mine --data shards/mine --subset 1% --out runs/mine-1pct
    """
    from ijepa import finetune as library

    listed = Path(subset) if subset and Path(subset).is_file() else None
    if subset and not listed:
        config = config.model_copy(update={"subset": subset})
    cost = library.plan_finetune(data, config, listed) if runtime.dry_run else None
    part = f"{listed or config.subset} of " if listed or config.subset else ""
    tested = images_of(data, config.test_split, config.split)
    epochs = counted(config.epochs, "epoch")
    if config.linear_first:
        epochs = f"{counted(config.linear_first, 'epoch')} of the head, then {epochs}"
    what = f"{config.encoder} on {part}{images_of(data, config.split)}, tested on {tested}"
    runtime = about(runtime, f"finetune: {what}, {epochs}")
    with outlook_shown(as_json, cost), shown_progress() as progress:
        result = library.finetune(data, out, config, runtime, progress, listed)
    if runtime.dry_run:
        return
    words = f"top-1 {result.scores[0].top1:.1%}"
    page = result.out.with_name(f"{result.out.name}.html")
    first = headline("fine-tuned", result.out, result.cached, words)
    last = next_command("report", result.out, "--out", page)
    show(result, as_json, first, *result_tables([result.scores]), last)
