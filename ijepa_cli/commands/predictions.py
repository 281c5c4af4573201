"""`ijepa visualize predictions`; `visualize` registers it."""

from pathlib import Path
from typing import Annotated

import typer

from ijepa.config import Runtime, validated
from ijepa_cli.show import show, shown_progress, table

Seed = Annotated[int, typer.Option(help="Seed of everything that is drawn at random.", min=0)]
EncoderName = Annotated[str, typer.Option(help="Run folder, checkpoint of a run, or random:RUN.")]
DecoderName = Annotated[Path, typer.Option(help="Decoder of `ijepa train-decoder`, of this run.")]
Data = Annotated[Path, typer.Option(help="Shard set of `ijepa shard`.")]
Out = Annotated[Path, typer.Option(help="Picture to make, a PNG.")]
Split = Annotated[str, typer.Option(help="Split to take images from.")]
Images = Annotated[int, typer.Option(help="How many images to draw.", min=2, max=64)]
Samples = Annotated[int, typer.Option(help="Samples of each prediction.", min=1, max=32)]
TargetSamples = Annotated[
    int, typer.Option(help="Samples of each true embedding, to compare with.", min=0, max=32)
]


def predictions(
    runtime: Runtime,
    as_json: bool,
    encoder: EncoderName,
    decoder: DecoderName,
    data: Data,
    out: Out,
    split: Split = "val",
    images: Images = 6,
    samples: Samples = 4,
    target_samples: TargetSamples = 2,
    seed: Seed = 0,
) -> None:
    """Draw decoded samples of predictions: what stays is predicted, what varies is not.

    Example: ijepa visualize predictions --encoder runs/a --decoder runs/d --data s --out p.png
    """
    from ijepa.visualize.predictions import PredictionsConfig, visualize_predictions

    settings = {
        "encoder": encoder,
        "decoder": str(decoder),
        "split": split,
        "num_images": images,
        "num_samples": samples,
        "num_target_samples": target_samples,
        "seed": seed,
    }
    config = validated(PredictionsConfig, settings, "options")
    with shown_progress() as progress:
        figures = visualize_predictions(data, out, config, runtime, progress)
    show(figures, as_json, table(figures, "cached" if figures.cached else "drawn"))
