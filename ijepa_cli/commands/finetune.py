"""`ijepa finetune`."""

from pathlib import Path
from typing import Annotated

import typer

from ijepa.config import FinetuneConfig, Runtime
from ijepa_cli.options import stage
from ijepa_cli.score_table import score_table
from ijepa_cli.show import outlook_shown, show, shown_progress

Data = Annotated[Path, typer.Option(help="Shard set of `ijepa shard`.")]
Out = Annotated[Path, typer.Option(help="Folder to make.")]
Subset = Annotated[
    str, typer.Option(help="1%, 10%, 5-per-class, or a list of images, one file name a line.")
]


def register(app: typer.Typer) -> None:
    """Add the command."""
    run = "device workers checkpoint_seconds replace"
    stage(app, FinetuneConfig, "encoder protocol label test_split seed", run)(finetune)


def finetune(
    data: Data,
    out: Out,
    config: FinetuneConfig,
    runtime: Runtime,
    as_json: bool,
    subset: Subset = "",
) -> None:
    """Train an encoder and a classifier on labelled images; started again, it goes on.

    Example: ijepa finetune --encoder runs/mine --data shards/mine --subset 1% --out runs/mine-1pct
    """
    from ijepa.finetune import finetune as run
    from ijepa.finetune import plan_finetune

    listed = Path(subset) if subset and Path(subset).is_file() else None
    if subset and not listed:
        config = config.model_copy(update={"subset": subset})
    cost = plan_finetune(data, config, listed) if runtime.dry_run else None
    with outlook_shown(as_json, cost), shown_progress() as progress:
        outcome = run(data, out, config, runtime, progress, listed)
        show(outcome, as_json, score_table([outcome.scores], cached=outcome.cached))
