"""`ijepa train-decoder`."""

from pathlib import Path
from typing import Annotated

import typer

from ijepa.config import DecoderConfig, Runtime
from ijepa_cli.options import stage
from ijepa_cli.show import outlook_shown, show, shown_progress, table

Data = Annotated[Path, typer.Option(help="Shard set of `ijepa shard`.")]
Out = Annotated[Path, typer.Option(help="Folder to make.")]


def register(app: typer.Typer) -> None:
    """Add the command."""
    shown, run = (
        "encoder condition steps test_split seed",
        "device workers checkpoint_seconds replace",
    )
    stage(app, DecoderConfig, shown, run, name="train-decoder")(train_decoder)


def train_decoder(
    data: Data, out: Out, config: DecoderConfig, runtime: Runtime, as_json: bool
) -> None:
    """Train a decoder of target blocks, to see predictions; started again, it goes on.

    Example: ijepa train-decoder --encoder runs/mine --data shards/mine --out runs/mine-decoder
    """
    from ijepa.train_decoder import train_decoder as run

    with outlook_shown(as_json), shown_progress() as progress:
        outcome = run(data, out, config, runtime, progress)
        show(outcome, as_json, table(outcome, "cached" if outcome.cached else "trained"))
