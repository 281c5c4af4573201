"""`ijepa train-decoder`."""

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

EncoderName = Annotated[str, typer.Option(help="Run folder, checkpoint of a run, or random:RUN.")]
Data = Annotated[Path, typer.Option(help="Shard set of `ijepa shard`.")]
Out = Annotated[Path, typer.Option(help="Folder to make.")]
Condition = Annotated[
    Literal["targets", "predictions"],
    typer.Option(help="Decode the target encoder's embeddings, or the predictor's output."),
]
Steps = Annotated[int, typer.Option(help="Optimizer steps.", min=1)]
Split = Annotated[str, typer.Option(help="On which split to train.")]
TestSplit = Annotated[
    str, typer.Option(help="Split to measure on; evaluation: val, else test, else the other.")
]
Set = Annotated[
    list[str] | None, typer.Option("--set", help="Override a setting, as lr=5e-4; repeatable.")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would run, and stop.")]


def train_decoder(
    encoder: EncoderName,
    data: Data,
    out: Out,
    condition: Condition = "targets",
    steps: Steps = 2000,
    overrides: Set = None,
    split: Split = "train",
    test_split: TestSplit = "evaluation",
    seed: Seed = 0,
    device: Device = "auto",
    workers: Workers = None,
    checkpoint_minutes: CheckpointMinutes = CHECKPOINT_MINUTES,
    dry_run: DryRun = False,
    force: Force = False,
    replace: Replace = False,
    as_json: Json = False,
) -> None:
    """Train a decoder of target blocks, to see predictions; started again, it goes on.

    Example: ijepa train-decoder --encoder runs/mine --data shards/mine --out runs/mine-decoder
    """
    settings: dict[str, Any] = {
        "encoder": encoder,
        "condition": condition,
        "steps": steps,
        "split": split,
        "test_split": test_split,
        "seed": seed,
    }
    from ijepa.decode import decoder_config, plan_decoder
    from ijepa.decode import train_decoder as run

    config = decoder_config(settings, overrides or ())
    if dry_run:
        plan = plan_decoder(data, config)
        show(plan, as_json, table(plan, "what would run"))
        return
    seconds = 60 * checkpoint_minutes
    how = runtime(device, workers, force, replace=replace, checkpoint_seconds=seconds)
    with shown_progress() as progress:
        outcome = run(data, out, config, how, progress)
    show(outcome, as_json, table(outcome, "cached" if outcome.cached else "trained"))


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(name="train-decoder")(train_decoder)
