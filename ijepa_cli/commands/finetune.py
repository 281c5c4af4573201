"""`ijepa finetune`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ijepa.config import FinetuneConfig, Runtime
from ijepa_cli.options import stage
from ijepa_cli.score_table import score_notes
from ijepa_cli.show import outlook_shown, show, shown_progress
from ijepa_cli.summary import about, counted, headline, images_of, next_command

if TYPE_CHECKING:
    from ijepa.finetune import FinetuneOutcome

Data = Annotated[Path, typer.Option(help="Shard set made by `ijepa shard`.")]
Out = Annotated[Path, typer.Option(help="Folder to write.")]
Subset = Annotated[
    str,
    typer.Option(
        help="Training images: 1%, 10%, 5-per-class, or a file that lists images, one per line."
    ),
]


def register(app: typer.Typer) -> None:
    """Add the command."""
    run = "device workers checkpoint_seconds track replace"
    stage(app, FinetuneConfig, "encoder protocol label test_split freeze linear_first seed", run)(
        finetune
    )


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
    from ijepa.finetune import finetune as run
    from ijepa.finetune import plan_finetune

    listed = Path(subset) if subset and Path(subset).is_file() else None
    if subset and not listed:
        config = config.model_copy(update={"subset": subset})
    cost = plan_finetune(data, config, listed) if runtime.dry_run else None
    runtime = about(runtime, _plan(data, config, listed))
    with outlook_shown(as_json, cost):
        with shown_progress() as progress:
            outcome = run(data, out, config, runtime, progress, listed)
        show(outcome, as_json, _summary(outcome))


def _plan(data: Path, config: FinetuneConfig, listed: Path | None) -> str:
    """What will run, on what, how much."""
    part = f"{listed or config.subset} of " if listed or config.subset else ""
    tested = images_of(data, config.test_split, config.split)
    linear = f"{counted(config.linear_first, 'epoch')} of the head, then " * bool(
        config.linear_first
    )
    return (
        f"finetune: {config.encoder} on {part}{images_of(data, config.split)}, tested on "
        f"{tested}, {linear}{counted(config.epochs, 'epoch')}"
    )


def _summary(outcome: "FinetuneOutcome") -> str:
    """Accuracy with its interval, and what to type next."""
    [score] = outcome.scores
    low, high = score.top1_interval
    words = (
        f"top-1 {score.top1:.1%} ({100 * low:.1f} to {100 * high:.1f}) of {score.test_rows:,} "
        f"images of {score.test_split}; the most frequent class alone gives {score.chance:.1%}"
    )
    page = outcome.out.with_name(f"{outcome.out.name}.html")
    lines = [headline("fine-tuned", outcome.out, outcome.cached, words), *score_notes([score])]
    return "\n".join([*lines, next_command("report", outcome.out, "--out", page)])
