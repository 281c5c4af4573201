"""`ijepa train-decoder`."""

from pathlib import Path
from typing import Annotated

import typer

from ijepa.config import DecoderConfig, Runtime
from ijepa_cli.options import Data, app, stage
from ijepa_cli.show import about, headline, images_of, next_command, opened, show, shown_progress

Out = Annotated[Path, typer.Option(help="Folder to write.")]


SHOWN = "encoder condition steps test_split seed"


@stage(app, DecoderConfig, SHOWN, "device workers checkpoint_seconds replace", name="train-decoder")
def train_decoder(
    data: Data, out: Out, config: DecoderConfig, runtime: Runtime, as_json: bool
) -> None:
    """Train a decoder that draws what I-JEPA predicts; started again, it continues.

    Example: ijepa train-decoder --encoder runs/mine --data shards/mine --out runs/mine-decoder
    """
    from ijepa import train_decoder as library

    work = f"{config.steps:,} steps of {config.batch_size} blocks"
    where = images_of(data, config.split)
    where += f", tested on {images_of(data, config.test_split, config.split)}"
    runtime = about(runtime, f"train-decoder: {config.encoder} on {where}, {work}")
    with shown_progress() as progress:
        found = library.train_decoder(data, out, config, runtime, progress)
    done = headline("trained", out, found.cached, f"{found.steps:,} steps, loss {found.loss:.3g}")
    lines = [
        done,
        f"  cosine distance to a block's embedding, mean of {found.images:,} images (0 is best):",
        f"    {found.true:.3f} for a sample drawn from it",
        f"    {found.predicted:.3f} for a sample drawn from its prediction",
        f"    {found.shuffled:.3f} for one drawn from another image: farther in {found.closer:.0%}",
        f"    {found.resized:.3f} for the true pixels at the decoder's resolution",
    ]
    picture = out.with_name(f"{out.name}.png")
    files = ("--encoder", config.encoder, "--decoder", out, "--data", data, "--out", picture)
    split = opened(data).named_split(config.test_split, config.split)
    lines += [next_command("visualize", "predictions", *files, "--split", split)]
    show(found, as_json, "\n".join(lines))
