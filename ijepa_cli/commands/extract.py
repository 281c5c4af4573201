"""`ijepa extract`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from ijepa.config import ExtractConfig, Interpolation, Precision, validated
from ijepa_cli.console import Device, Force, Json, Seed, Workers, runtime, show, shown_progress

if TYPE_CHECKING:
    from ijepa.extract import ExtractResult

EncoderName = Annotated[
    str,
    typer.Option(
        help="Run folder, checkpoint, random:RUN, random:ARCH[/PATCH][@PX], pixels, "
        "or a kind of `ijepa encoders`, such as timm:NAME or mae:FILE."
    ),
]
Data = Annotated[Path, typer.Option(help="Shard set of `ijepa shard`.")]
Out = Annotated[Path, typer.Option(help="Feature file to make, F.h5.")]
Split = Annotated[
    str, typer.Option(help="Which split; evaluation: val, else test, else the one beside train.")
]
Which = Annotated[
    Literal["target", "context"], typer.Option(help="Which encoder of a run; the paper's: target.")
]
Layers = Annotated[int, typer.Option(help="How many of the last blocks to store.", min=1)]
ImageSize = Annotated[
    int | None, typer.Option(min=1, help="Side of the square, if not the encoder's.")
]
Crop = Annotated[
    Literal["center", "squash"], typer.Option(help="Centre crop, or the whole image squashed.")
]
Resizing = Annotated[
    Interpolation, typer.Option(help="How images are resized; VISSL, MAE and DINOv2: bicubic.")
]
Views = Annotated[
    int, typer.Option(help="Augmented views of each image, beside the evaluation view.", min=0)
]
Augment = Annotated[
    Literal["none", "flip", "rrc-flip"],
    typer.Option(help="How they are made: random resized crop and flip, or flip alone."),
]
Precise = Annotated[
    Precision,
    typer.Option(help="What the encoder computes in; auto: bf16 on a GPU, fp32 on a CPU."),
]
Dtype = Annotated[Literal["float16", "float32"], typer.Option(help="Of the stored numbers.")]


def extract(
    encoder: EncoderName,
    data: Data,
    out: Out,
    split: Split = "train",
    which: Which = "target",
    layers: Layers = 4,
    image_size: ImageSize = None,
    crop: Crop = "center",
    interpolation: Resizing = "bilinear",
    views: Views = 0,
    augment: Augment = "none",
    precision: Precise = "auto",
    dtype: Dtype = "float16",
    seed: Seed = 0,
    device: Device = "auto",
    workers: Workers = None,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Store frozen features of every image of a split.

    Example: ijepa extract --encoder runs/scenes --data shards/scenes --split val --out val.h5
    """
    choices = {
        "encoder": encoder,
        "which": which,
        "split": split,
        "layers": layers,
        "image_px": image_size,
        "crop": crop,
        "interpolation": interpolation,
        "views": views,
        "augment": augment,
        "precision": precision,
        "dtype": dtype,
        "seed": seed,
    }
    config = validated(ExtractConfig, choices, "options")
    from ijepa.extract import extract as run

    with shown_progress() as progress:
        result = run(data, out, config, runtime(device, workers, force), progress)
    show(result, as_json, _sentence(result))


def _sentence(result: "ExtractResult") -> str:
    state, layers = "cached" if result.cached else "written", "s" if result.layers > 1 else ""
    return (
        f"{result.out} {state}: {result.encoder}, {result.images:,} images"
        f"{f' in {result.views} views' if result.views > 1 else ''}, {result.layers} "
        f"layer{layers} of {result.dim:,}, labels {', '.join(result.labels) or 'none'}"
    )


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(extract)
